"""The server without sockets, under a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from dfud_coap.config import CoapConfig
from dfud_coap.peer import Peer
from dfud_coap.server import Server

from dfud.testing.transport import FakeEndpoint
from tests.plugins.coap.world import IDENTITY, KEY, PACKAGE

CHUNK = bytes(n * 7 & 0xFF for n in range(300))


class Patient(random.Random):
    """Always the shortest time-out: retransmissions come after 2, 4, 8 and 16 s."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Virtual:
    """`sent` is what came out: (time, datagram). Tasks run at once to their end: the endpoint never waits for long."""

    def __init__(self, **config: Any) -> None:
        self.now_s = 1000.0
        self.zero_s = self.now_s
        self.endpoint = FakeEndpoint(packages={PACKAGE: [CHUNK]}, keys={IDENTITY: KEY})
        self.sent: list[tuple[float, bytes]] = []
        self.server = Server(
            CoapConfig(**{"plain": True, **config}),
            self.endpoint,
            spawn=self._spawn,
            now=lambda: self.now_s,
            wall=lambda: 1_800_000_000.0 + self.now_s,
            key=b"k" * 32,
            rng=Patient(),
        )
        self.peer = self.new_peer(("192.0.2.1", 40000))

    def new_peer(self, address: tuple[str, int]) -> Peer:
        return Peer(address, address[0], lambda data: self.sent.append((self.now_s - self.zero_s, data)), 1000)

    @staticmethod
    def _spawn(work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        async def run() -> None:
            await work(*arguments)

        _TASKS.append(run)

    def until(self, at_s: float) -> None:
        """Let time pass."""
        while (next_s := self.server.timers.next_s()) is not None and next_s <= self.zero_s + at_s:
            self.now_s = max(self.now_s, next_s)
            self.server.timers.run(self.now_s)
        self.now_s = self.zero_s + at_s

    def take(self, data: bytes, peer: Peer | None = None) -> list[bytes]:
        """Give the server a datagram; return what it sends on that."""
        before = len(self.sent)
        self.server.datagram(peer or self.peer, data)
        self.settle()
        return [d for _, d in self.sent[before:]]

    def settle(self) -> None:
        """Run what was spawned."""
        while _TASKS:
            trio.run(_TASKS.pop(0))


_TASKS: list[Callable[[], Awaitable[None]]] = []
