"""TCP and UDP links that misbehave on purpose: between a client and a server, seeded, so that a failure can be repeated."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable

import msgspec
import trio

Corrupt = Callable[[bytes, random.Random], bytes]
SEEN_MAX = 100_000  # datagrams remembered for counting repetitions


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


class UdpFaults(msgspec.Struct):
    """What a UDP link does to datagrams of either direction: the share that is lost, sent twice, or held back until
    `reorder_by` others of its direction have passed (or hold_s is over). delay_s: for every one."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_by: int = 2
    hold_s: float = 0.2
    delay_s: float = 0.0


class _Way:
    """One direction of one client's traffic. The n-th datagram of a way always meets the same fate under the same seed."""

    def __init__(self, link: FaultyUdpLink, seed: str, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._link = link
        self._random = random.Random(seed)
        self._send = send
        self._held: list[tuple[int, bytes, float]] = []
        self._count = 0
        self._before: set[bytes] = set()

    async def take(self, data: bytes) -> None:
        link, faults = self._link, self._link.faults
        self._count += 1
        link.on_datagram(data)
        draws = [self._random.random() for _ in range(3)]
        link.passed += 1
        if data in self._before:
            link.repeated += 1
        elif len(self._before) < SEEN_MAX:
            self._before.add(data)
        lost = link.down or draws[0] < faults.loss
        if lost:
            link.lost += 1
        elif draws[1] < faults.reorder:
            link.reordered += 1
            self._held.append((self._count + faults.reorder_by, data, trio.current_time() + faults.hold_s))
            link.nursery.start_soon(self._release_late)
        else:
            await self._out(data)
            if draws[2] < faults.duplicate:
                link.duplicated += 1
                await self._out(data)
        await self._release()

    async def _out(self, data: bytes) -> None:
        if self._link.faults.delay_s:
            self._link.nursery.start_soon(self._later, data)
        else:
            await self._send(data)

    async def _later(self, data: bytes) -> None:
        await trio.sleep(self._link.faults.delay_s)
        await self._send(data)

    async def _release(self) -> None:
        now = trio.current_time()
        due = [h for h in self._held if h[0] <= self._count or h[2] <= now]
        self._held = [h for h in self._held if h not in due]
        for _, data, _ in due:
            await self._out(data)

    async def _release_late(self) -> None:
        await trio.sleep(self._link.faults.hold_s)
        await self._release()


class FaultyUdpLink:
    """Listens on a UDP port of the loopback and passes datagrams on to host:port and back; each client gets an address
    of its own at the server. `down` loses everything; `rebind()` gives the clients new addresses, as a NAT does. on_datagram
    is called with everything that comes in, before its fate.

    Counts, over both directions: `passed` (all that came in), `lost`, `duplicated`, `reordered`; `repeated` is how many came
    in with the bytes of an earlier one: retransmissions.
    """

    def __init__(self, port: int, faults: UdpFaults, *, seed: int = 1, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self.faults = faults
        self.seed = seed
        self.down = False
        self.passed = self.lost = self.duplicated = self.reordered = self.repeated = 0
        self.on_datagram: Callable[[bytes], None] = lambda data: None
        self.nursery: trio.Nursery
        self._clients: dict[tuple[str, int], tuple[_Way, trio.CancelScope]] = {}

    def rebind(self) -> None:
        """Forget the clients: their next datagrams reach the server from other ports."""
        for _, scope in self._clients.values():
            scope.cancel()
        self._clients.clear()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; reports its port as started."""
        front = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        with front:
            await front.bind(("127.0.0.1", 0))
            async with trio.open_nursery() as self.nursery:
                task_status.started(int(front.getsockname()[1]))
                while True:
                    try:
                        data, address = await front.recvfrom(65536)
                    except OSError:
                        continue  # a client has gone; the system tells by ICMP
                    if address not in self._clients:
                        await self.nursery.start(self._serve, front, address)
                    await self._clients[address][0].take(data)

    async def _serve(
        self,
        front: trio.socket.SocketType,
        address: tuple[str, int],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        back = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)

        async def up(data: bytes) -> None:
            with contextlib.suppress(OSError):
                await back.send(data)

        async def down(data: bytes) -> None:
            with contextlib.suppress(OSError):
                await front.sendto(data, address)

        number = len(self._clients)
        with back, trio.CancelScope() as scope:
            await back.connect(self._target)
            self._clients[address] = (_Way(self, f"{self.seed} {number} up", up), scope)
            returning = _Way(self, f"{self.seed} {number} down", down)
            task_status.started()
            while True:
                try:
                    data = await back.recv(65536)
                except ConnectionRefusedError:
                    continue  # the server is away for the moment
                await returning.take(data)
