"""The HTTP transport keeps the promise of dfud.api.Transport; httpx is the peer."""

from __future__ import annotations

import httpx
import pytest
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from dfud.api import Code, Reply
from dfud.testing.transport import AUTHORIZATION, Publish, TransportConformance, TransportPeer


class HttpPeer(TransportPeer):
    async def publish(self, url: str, publish: Publish) -> Reply:
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.post(
                f"/v1/{publish.channel}",
                content=publish.body,
                params=dict(publish.query),
                headers={"authorization": publish.authorization.decode()},
                timeout=60,
            )
        return Reply(Code(answer.status_code), answer.headers.get("command", ""), answer.content)

    async def fetch(
        self, url: str, package: str, first: int, last: int, *, authorization: bytes = AUTHORIZATION
    ) -> tuple[Code, bytes]:
        which = str(first) if first == last else f"{first}-{last}"
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.get(f"/v1/dfu/{package}/{which}", headers={"authorization": authorization.decode()})
        return Code(answer.status_code), answer.content


class TestHttpTransport(TransportConformance):
    @pytest.fixture
    def transport(self) -> HttpTransport:
        return HttpTransport(HttpConfig(port=0))

    @pytest.fixture
    def peer(self) -> HttpPeer:
        return HttpPeer()
