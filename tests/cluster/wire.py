"""The network between a dfud and its database or its images: slow, cut, or silent, whenever a test says so."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

PIECE_BYTES = 65536


class Wire:
    """Listens on an address of the loopback and passes on to a port of it or a Unix socket.

    delay_s: of each piece in either direction. `cut()` breaks what there is and refuses what comes; `silence()` loses every byte
    and tells nobody, as a firewall that was restarted or a machine without power; `mend()` ends either, and what was silenced
    is broken for good.
    """

    def __init__(self, target: int | Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target
        self.host = host
        self._socket = socket.create_server((host, port), backlog=1024)
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        self.delay_s = 0.0
        self.taken = 0
        self._is_cut = False
        self._is_silent = False
        self._live: set[trio.CancelScope] = set()
        self._lost: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.serve_listeners(self._serve, [trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))])

    def cut(self) -> None:
        self._is_cut = True
        for scope in self._live:
            scope.cancel()

    def silence(self) -> None:
        self._is_silent = True
        self._lost |= self._live

    def mend(self) -> None:
        self._is_cut = self._is_silent = False
        for scope in self._lost:
            scope.cancel()
        self._lost.clear()

    async def _serve(self, client: trio.SocketStream) -> None:
        self.taken += 1
        with trio.CancelScope() as scope:
            self._live.add(scope)
            if self._is_silent:
                self._lost.add(scope)
            try:
                if not self._is_cut:
                    await self._join(client, scope)
            finally:
                self._live.discard(scope)
                self._lost.discard(scope)
        await trio.aclose_forcefully(client)

    async def _join(self, client: trio.SocketStream, scope: trio.CancelScope) -> None:
        while self._is_silent:
            await trio.sleep(0.05)
        try:
            server: trio.SocketStream
            if isinstance(self._target, Path):
                server = await trio.open_unix_socket(str(self._target))
            else:
                server = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, client, server, scope)
                nursery.start_soon(self._pass, server, client, scope)
        finally:
            await trio.aclose_forcefully(server)

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(PIECE_BYTES):
                if self.delay_s:
                    await trio.sleep(self.delay_s)
                if scope in self._lost:
                    await trio.sleep_forever()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
