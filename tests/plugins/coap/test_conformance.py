"""The CoAP transport keeps the promise of dfud.api.Transport; aiocoap is the peer."""

from __future__ import annotations

import pytest
from dfud_coap.config import CoapConfig
from dfud_coap.message import CON, NON, Code, Message, Option, encode
from dfud_coap.transport import CoapTransport

from dfud.testing.hostile import STATUS
from dfud.testing.transport import AUTHORIZATION, PACKAGE, TransportConformance
from tests.plugins.coap.peers import AiocoapPeer


class HostilePeer(AiocoapPeer):
    datagrams = True

    def samples(self) -> list[bytes]:
        path = [(int(Option.URI_PATH), p) for p in (b"v1", b"dfu")]
        auth = (int(Option.AUTHORIZATION), AUTHORIZATION)
        wait = (int(Option.URI_QUERY), b"ct=9")
        block = (int(Option.BLOCK1), b"\x0e")
        oscore = (int(Option.OSCORE), b"\x19\x00\x0d" + bytes(8) + b"d@app\x01")
        chunk = [*path, *((int(Option.URI_PATH), p) for p in (PACKAGE.encode(), b"0-2")), auth]
        return [
            encode(Message(CON, Code.POST, 1, b"t", [*path, auth], STATUS)),
            encode(Message(CON, Code.POST, 2, b"t", [*path, wait, auth], STATUS)),
            encode(Message(CON, Code.POST, 3, b"t", [*path, block, auth], bytes(1024))),
            encode(Message(NON, Code.FETCH, 4, b"o", [(int(Option.OBSERVE), b""), *path, auth], STATUS)),
            encode(Message(CON, Code.GET, 5, b"t", chunk)),
            encode(Message(CON, Code.POST, 6, b"t", [oscore], bytes(40))),
            bytes.fromhex("70000001"),
        ]


class TestCoapTransport(TransportConformance):
    answer_time_s = 30.0

    @pytest.fixture
    def transport(self) -> CoapTransport:
        return CoapTransport(CoapConfig(port=0, plain=True))

    @pytest.fixture
    def peer(self) -> AiocoapPeer:
        return HostilePeer()
