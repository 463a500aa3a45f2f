"""A TCP link that misbehaves on purpose: between a client and a server, seeded, so that a failure can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import trio

Corrupt = Callable[[bytes, random.Random], bytes]


class Faults(msgspec.Struct):
    """What the link does to the server's bytes. drop_after: end the connection behind so many of them, counted over
    all connections, each number once. corrupt: this share of pieces gets one byte changed. delay_s: before each piece."""

    drop_after: list[int] = []
    corrupt: float = 0.0
    delay_s: float = 0.0


class FaultyLink:
    """Listens on the loopback and passes everything on to host:port. `dropped` and `corrupted` count what it did."""

    def __init__(self, port: int, faults: Faults, *, seed: int = 1, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self.faults = faults
        self._random = random.Random(seed)
        self.dropped = 0
        self.corrupted = 0
        self.passed_bytes = 0

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; reports its port as started."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(int(listeners[0].socket.getsockname()[1]))
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream(*self._target)
        except OSError:
            await client.aclose()
            return
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, client, server, nursery.cancel_scope, False)
            await self._pass(server, client, nursery.cancel_scope, True)

    async def _pass(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, faulty: bool
    ) -> None:
        try:
            while data := await source.receive_some(4096):
                if faulty:
                    data = await self._harm(bytes(data))
                await sink.send_all(data)
                if faulty and self.faults.drop_after and self.passed_bytes >= self.faults.drop_after[0]:
                    self.faults.drop_after.pop(0)
                    self.dropped += 1
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def _harm(self, data: bytes) -> bytes:
        if self.faults.delay_s:
            await trio.sleep(self.faults.delay_s)
        if self.faults.drop_after:
            data = data[: max(0, self.faults.drop_after[0] - self.passed_bytes)] or data
        self.passed_bytes += len(data)
        if self._random.random() < self.faults.corrupt:
            self.corrupted += 1
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]
        return data
