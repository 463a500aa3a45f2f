"""The HTTP transport keeps the promise of dfud.api.Transport; httpx is the peer."""

from __future__ import annotations

import httpx
import pytest
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from dfud.api import Code, Reply
from dfud.testing.transport import AUTHORIZATION, PACKAGE, Publish, TransportConformance, TransportPeer
from tests.plugins.http.test_listener import AUTH, get, post


class HttpPeer(TransportPeer):
    async def publish(self, url: str, publish: Publish) -> Reply:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
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
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            answer = await client.get(f"/v1/dfu/{package}/{which}", headers={"authorization": authorization.decode()})
        return Code(answer.status_code), answer.content


    def samples(self) -> list[bytes]:
        return [
            post("/v1/dfu?ct=0", b"\x81\x00\x01"),
            post("/v1/temp/in?application=a&device=d&as=x&ct=9", b'{"t":1e9}', AUTH + b"Content-Type: application/json\r\n"),
            get(f"/v1/dfu/{PACKAGE}/0-2", close=False),
            b"POST /v1/dfu HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n3\r\n\x81\x00\x01\r\n0\r\n\r\n",
            b"POST /v1/t HTTP/1.1\r\n" + AUTH + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        ]


class TestHttpTransport(TransportConformance):
    @pytest.fixture
    def transport(self) -> HttpTransport:
        return HttpTransport(HttpConfig(port=0))

    @pytest.fixture
    def peer(self) -> HttpPeer:
        return HttpPeer()
