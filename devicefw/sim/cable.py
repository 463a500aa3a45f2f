"""A serial cable between a simulated board's UART and this machine: two pseudo-terminals, and what befalls the bytes in between."""

from __future__ import annotations

import errno
import os
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

LINE = {"id": 1, "baudrate": 115200, "tx": 4, "rx": 5}  # the agent's `line`; rate and pins are documentation here
READ_BYTES = 4096
TAKES_S = 2.0  # nobody reads at the other end: what comes more is lost, as on a wire
Through = Callable[[bytes], bytes]


class Cable:
    """`board` is the path for a Board's uart; `port`, a link that comes and goes with unplug() and plug(), the one for dfuctl bridge.

    to_host and to_board say what becomes of bytes on their way; they may be changed at any time.
    """

    def __init__(self, port: Path) -> None:
        self.port = port
        self.to_host: Through = bytes
        self.to_board: Through = bytes
        self._board = os.openpty()
        tty.setraw(self._board[1])
        os.set_blocking(self._board[0], False)
        self.board = os.ttyname(self._board[1])  # the other end stays open here, too: the line outlives a reset
        self._host: tuple[int, int] | None = None
        self._plugged = trio.Event()
        self._scope = trio.CancelScope()
        self.plug()

    def plug(self) -> None:
        """Connect the host's end: the port is there."""
        self._host = os.openpty()
        tty.setraw(self._host[1])
        os.set_blocking(self._host[0], False)
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(self._host[1]))
        self._plugged.set()

    def unplug(self) -> None:
        """Take the port away, from under who has it open, too."""
        host, self._host = self._host, None
        self._plugged = trio.Event()
        self.port.unlink(missing_ok=True)
        self._scope.cancel()  # who was woken already sees that its end is gone: the number may be another file's by then
        if host is not None:
            for end in host:
                os.close(end)

    async def run(self) -> None:
        """Carry bytes until cancelled."""
        try:
            while True:
                await self._plugged.wait()
                host = self._host
                assert host is not None, "plugged"
                with trio.CancelScope() as self._scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._carry, host, False)
                        nursery.start_soon(self._carry, host, True)
        finally:
            self.unplug()
            for end in self._board:
                os.close(end)

    async def _carry(self, host: tuple[int, int], to_board: bool) -> None:
        source, target = (host[0], self._board[0]) if to_board else (self._board[0], host[0])
        while self._host is host:
            await trio.lowlevel.wait_readable(source)
            if self._host is not host:
                return
            try:
                data = os.read(source, READ_BYTES)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EAGAIN):
                    raise
                await trio.sleep(0.05)
                continue
            data = (self.to_board if to_board else self.to_host)(data)
            with trio.move_on_after(TAKES_S), suppress(BrokenPipeError):
                while data and self._host is host:
                    try:
                        data = data[os.write(target, data) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(target)
