"""The board's serial line as a pseudo-terminal, opened when the bootloader first listens to it."""

from __future__ import annotations

import os
import select
import tty
from collections.abc import Callable

import trio

WAIT_S = 0.05
READ_BYTES = 4096


class SerialLine:
    """The bootloader's end; on_open is told the path of the host's end. Works in a thread of trio's; ends when that is cancelled."""

    def __init__(self, on_open: Callable[[str], None]) -> None:
        self._on_open = on_open
        self._ends: tuple[int, int] | None = None

    def _open(self) -> int:
        if self._ends is None:
            self._ends = os.openpty()
            tty.setraw(self._ends[1])
            self._on_open(os.ttyname(self._ends[1]))
        return self._ends[0]

    def receive(self) -> bytes:
        """Return what the host sent, as soon as there is something; raises trio.Cancelled when the board is switched off."""
        end = self._open()
        while True:
            trio.from_thread.check_cancelled()
            if select.select([end], [], [], WAIT_S)[0]:
                return os.read(end, READ_BYTES)

    def send(self, data: bytes) -> None:
        end = self._open()
        while data:
            data = data[os.write(end, data) :]

    def close(self) -> None:
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            self._ends = None
