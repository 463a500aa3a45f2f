"""Ports for programs that are told theirs or come back on it: one that was free a moment ago may be anybody's by now."""

from __future__ import annotations

import os
import socket
import weakref


class KeptPort:
    """`number`: a TCP port of 127.0.0.1 that nobody else is given while this object lives.

    It is bound all the time and never listened on. Linux lets a listener with SO_REUSEADDR, as servers have it, share it, and
    hands it out to nobody who asks for any port, also while that listener is away.
    """

    def __init__(self) -> None:
        with socket.socket() as keeper:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind(("127.0.0.1", 0))
            self.number = int(keeper.getsockname()[1])
            weakref.finalize(self, os.close, keeper.detach())


def own_address() -> str:
    """Return an address of the loopback network that no other process of the tests uses: there, any port is free."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 16 & 63)}.{pid >> 8 & 255}.{pid & 255}"
