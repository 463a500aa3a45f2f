"""The CoAP transport keeps the promise of dfud.api.Transport; aiocoap is the peer."""

from __future__ import annotations

import pytest
from dfud_coap.config import CoapConfig
from dfud_coap.transport import CoapTransport

from dfud.testing.transport import TransportConformance
from tests.plugins.coap.peers import AiocoapPeer


class TestCoapTransport(TransportConformance):
    answer_time_s = 30.0

    @pytest.fixture
    def transport(self) -> CoapTransport:
        return CoapTransport(CoapConfig(port=0, plain=True))

    @pytest.fixture
    def peer(self) -> AiocoapPeer:
        return AiocoapPeer()
