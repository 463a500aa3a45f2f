"""The real transport on loopback sockets, with the endpoint that keeps what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from dfud_coap.config import CoapConfig
from dfud_coap.server import Server
from dfud_coap.transport import CoapTransport

from dfud.testing.transport import FakeEndpoint

KEY = bytes(range(16))
IDENTITY = "dev1@app1"
PACKAGE = "0123456789abcdef0123456789abcdef"
CHUNK = bytes(n * 7 & 0xFF for n in range(5000))
LIMIT_S = 120.0


class World:
    def __init__(self, **config: Any) -> None:
        self.endpoint = FakeEndpoint(packages={PACKAGE: [b"first", CHUNK, CHUNK[::-1]]}, keys={IDENTITY: KEY})
        self.transport = CoapTransport(CoapConfig(**{"port": 0, "dtls_port": 0, "plain": True, **config}))
        self.urls: list[str] = []

    async def start(self, nursery: trio.Nursery) -> World:
        self.urls = await nursery.start(self.transport.run, self.endpoint)
        return self

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def server(self) -> Server:
        assert self.transport._server is not None
        return self.transport._server


async def until(true: Callable[[], Any]) -> None:
    """Wait for what is no event of trio's."""
    with trio.fail_after(LIMIT_S):
        while not true():
            await trio.sleep(0.002)
