"""What every transport is held to.

    class TestMyTransport(TransportConformance):
        @pytest.fixture
        def transport(self):
            return MyTransport(...)          # listening on a free port of the loopback

        @pytest.fixture
        def peer(self):
            return MyPeer()                  # a TransportPeer that speaks the transport's protocol

Needs pytest and pytest-trio.
"""

from __future__ import annotations

import pytest
import trio

from dfud.api import Code, Reply, Transport
from dfud.testing.fake_endpoint import AUTHORIZATION, FakeEndpoint, FakeWaiting
from dfud.testing.hostile import TransportContainment
from dfud.testing.peer import Publish, TransportPeer

__all__ = [
    "AUTHORIZATION",
    "PACKAGE",
    "FakeEndpoint",
    "FakeWaiting",
    "Publish",
    "TransportConformance",
    "TransportContainment",
    "TransportPeer",
]

PACKAGE = "0123456789abcdef0123456789abcdef"
CHUNKS = [bytes([n]) * (700 + 300 * n) for n in range(4)]


class TransportConformance(TransportContainment):
    """The promise of dfud.api.Transport, as tests."""

    @pytest.fixture(params=[True, False], ids=["quick", "slow"])
    def endpoint(self, request: pytest.FixtureRequest) -> FakeEndpoint:
        return FakeEndpoint(packages={PACKAGE: CHUNKS}, quickly=request.param)

    async def test_a_publish_reaches_the_endpoint_as_it_was_sent(
        self, url: str, transport: Transport, endpoint: FakeEndpoint, peer: TransportPeer
    ) -> None:
        body = bytes(range(256))
        query = {"as": "dev 2/ü", "application": "a", "device": "d", "data_schema": "urn:x"}
        reply = await peer.publish(url, Publish("temperature", body, query))
        assert reply.code is Code.ACCEPTED
        (got,) = endpoint.requests
        assert (got.transport, got.channel, got.body, got.timeout_s) == (transport.name, "temperature", body, 0)
        assert (got.as_device, got.data_schema) == ("dev 2/ü", "urn:x")
        assert (got.credentials.application, got.credentials.device) == ("a", "d")
        assert got.credentials.authorization == AUTHORIZATION
        assert got.peer in ("127.0.0.1", "::1")

    async def test_a_status_is_answered_with_the_command(self, url: str, peer: TransportPeer) -> None:
        reply = await peer.publish(url, Publish("dfu", b"\x81\x00\x01"))
        assert (reply.code, reply.command, reply.body) == (Code.COMMAND, "dfu", b"\x81\x00\x01")

    @pytest.mark.parametrize("code", [c for c in Code if c not in (Code.COMMAND, Code.ACCEPTED)])
    async def test_every_error_code_arrives(
        self, url: str, endpoint: FakeEndpoint, peer: TransportPeer, code: Code
    ) -> None:
        endpoint.answers["x"] = Reply(code, error="Some", message="thing", retry_after_s=3)
        assert (await peer.publish(url, Publish("x", b"1"))).code is code

    async def test_a_stranger_is_denied(self, url: str, peer: TransportPeer) -> None:
        reply = await peer.publish(url, Publish("dfu", b"\x80", authorization=b"Basic eDp5"))
        assert reply.code is Code.DENIED
        code, _ = await peer.fetch(url, PACKAGE, 0, 0, authorization=b"Basic eDp5")
        assert code is Code.DENIED

    async def test_chunks_arrive_alone_and_several_at_once(self, url: str, peer: TransportPeer) -> None:
        assert await peer.fetch(url, PACKAGE, 2, 2) == (Code.COMMAND, CHUNKS[2])
        assert await peer.fetch(url, PACKAGE, 1, 3) == (Code.COMMAND, b"".join(CHUNKS[1:]))

    async def test_a_chunk_that_is_not_there_is_not_found(self, url: str, peer: TransportPeer) -> None:
        assert (await peer.fetch(url, PACKAGE, 9, 9))[0] is Code.NOT_FOUND
        assert (await peer.fetch(url, "f" * 32, 0, 0))[0] is Code.NOT_FOUND

    async def test_a_parked_peer_gets_what_wakes_it(
        self, url: str, endpoint: FakeEndpoint, peer: TransportPeer, nursery: trio.Nursery
    ) -> None:
        replies: list[Reply] = []

        async def wait() -> None:
            replies.append(await peer.publish(url, Publish("x", b"1", {"ct": "60"})))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            await self._until(lambda: bool(endpoint.parked))
            assert endpoint.last_waiting is not None and endpoint.last_waiting.timeout_s == 60
            endpoint.wake(Reply(Code.COMMAND, "blink", b"now"))
        assert [(r.code, r.command, r.body) for r in replies] == [(Code.COMMAND, "blink", b"now")]

    async def test_a_parked_peer_that_hangs_up_is_let_go(
        self, url: str, endpoint: FakeEndpoint, peer: TransportPeer
    ) -> None:
        """So a command that comes for it goes to whoever waits next. With datagrams nobody can know that it is gone."""
        if peer.datagrams:
            pytest.skip("the transport's peers have no connection to hang up")
        for _ in range(3):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(peer.publish, url, Publish("x", b"1", {"ct": "60"}))
                await self._until(lambda: bool(endpoint.parked))
                waiting.cancel_scope.cancel()
            await self._until(lambda: not endpoint.parked)
            assert endpoint.last_waiting is not None and endpoint.last_waiting.ended == "cancelled"
        await self.honest(url, peer)

    async def test_a_parked_peer_whose_time_has_passed_is_told_so(
        self, url: str, endpoint: FakeEndpoint, peer: TransportPeer
    ) -> None:
        reply = await peer.publish(url, Publish("x", b"1", {"ct": "1"}))
        assert reply.code is Code.ACCEPTED
        assert endpoint.last_waiting is not None and endpoint.last_waiting.ended == "expired"

    async def test_draining_ends_when_what_is_parked_is_answered(
        self, url: str, transport: Transport, endpoint: FakeEndpoint, peer: TransportPeer
    ) -> None:
        replies: list[Reply] = []

        async def wait() -> None:
            replies.append(await peer.publish(url, Publish("x", b"1", {"ct": "60"})))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            await self._until(lambda: bool(endpoint.parked))
            endpoint.wake(Reply(Code.ACCEPTED))
            with trio.fail_after(self.answer_time_s):
                await transport.drain()
        assert [r.code for r in replies] == [Code.ACCEPTED]
