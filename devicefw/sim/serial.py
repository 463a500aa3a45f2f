"""The board's serial line as a pseudo-terminal, opened when the bootloader first listens to it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
import tty
from collections.abc import Callable

import trio

WAIT_S = 0.05
READ_BYTES = 4096
TAKEN_S = 2.0
ARRIVES_S = 0.05  # the kernel carries bytes from one end to the other in a task of its own


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

    def _taken(self) -> None:
        """Wait until the host has read what was sent, or TAKEN_S: closing a pseudo-terminal throws away what a wire would carry."""
        now_s = time.monotonic()
        end_s, quiet_s = now_s + TAKEN_S, now_s
        while self._ends is not None and now_s < end_s and now_s - quiet_s < ARRIVES_S:
            waiting = fcntl.ioctl(self._ends[1], termios.FIONREAD, b"\0" * 4)
            now_s = time.monotonic()
            if struct.unpack("i", waiting)[0]:
                quiet_s = now_s
            time.sleep(0.002)

    def close(self) -> None:
        self._taken()
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            self._ends = None
