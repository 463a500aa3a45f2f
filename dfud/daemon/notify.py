"""systemd's notification protocol. Source: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping

import trio

ALIVE = "WATCHDOG=1"


class Notifier:
    """Tells the service manager how dfud is; without one it does nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        usec = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._untold: list[str] = []
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() and mine else 0.0

    def tell(self, *lines: str) -> None:
        """Send `READY=1` and the like. A manager that does not listen is no reason to fail, or to wait: one that is behind is told
        with the next one."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        lines = (*self._untold, *lines)
        self._untold = []
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock,
        ):
            try:
                sock.sendto("\n".join(lines).encode(), address)
            except BlockingIOError:
                self._untold = [line for line in lines if line != ALIVE]

    async def keep_alive(self, healthy: Callable[[], bool] = lambda: True) -> None:
        """Feed the watchdog at half its time, as long as trio runs and dfud is `healthy()`; return when it is not."""
        while self.watchdog_s and healthy():
            self.tell(ALIVE)
            await trio.sleep(self.watchdog_s / 2)
