"""What every transport is held to, and the endpoint that stands in for dfud meanwhile.

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

import abc
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec
import pytest
import trio

from dfud.api import Chunks, Code, Credentials, Endpoint, Reply, Request, Transport, Waiting

KEPT_MAX = 10_000
AUTHORIZATION = b"Basic ZGV2MUBhcHAxOnNlY3JldA=="  # dev1@app1:secret
DENIED = Reply(Code.DENIED, error="AuthenticationError", message="Authentication failed")
NOT_FOUND = Reply(Code.NOT_FOUND, error="NotFound", message="No such package or chunk for this device")


class FakeWaiting(Waiting):
    """Keeps its fate: `ended` is "", "woken", "expired" or "cancelled"."""

    def __init__(self, endpoint: FakeEndpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self.timeout_s = timeout_s
        self.ended = ""
        self._wake: Callable[[Reply], None] | None = None
        self._reply: Reply | None = None

    def answer(self, reply: Reply) -> None:
        """Wake whoever waits, now or as soon as it listens."""
        if self.ended:
            return
        self._end("woken")
        self._reply = reply
        if self._wake is not None:
            self._wake(reply)

    def listen(self, wake: Callable[[Reply], None]) -> None:
        assert self._wake is None, "listen() is called once"
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        if not self.ended:
            self._end("expired")
        return self._reply or Reply(Code.ACCEPTED)

    def cancel(self) -> None:
        if not self.ended:
            self._end("cancelled")

    def _end(self, how: str) -> None:
        self.ended = how
        self._endpoint.parked.discard(self)


class FakeEndpoint(Endpoint):
    """Answers by rule and keeps what it is given: the last KEPT_MAX `requests` and `fetches`, everything that is `parked`.

    authorization: the one value that is let in; None: everybody is. packages: chunks by package name. keys: pre-shared keys
    by identity. answers: what to reply on a channel; without one, channel dfu gets a command `dfu` with the status as its
    body, any other is accepted; a request with a timeout is parked instead, on any channel without an answer.
    quickly: False makes every quick method return None, so that the slow ones are used; they then take a checkpoint.
    """

    def __init__(
        self,
        *,
        authorization: bytes | None = AUTHORIZATION,
        packages: Mapping[str, Sequence[bytes]] | None = None,
        keys: Mapping[str, bytes] | None = None,
        answers: Mapping[str, Reply] | None = None,
        quickly: bool = True,
        kept_max: int = KEPT_MAX,
    ) -> None:
        self.authorization = authorization
        self.packages = dict(packages or {})
        self.keys = dict(keys or {})
        self.answers = dict(answers or {})
        self.quickly = quickly
        self.requests: deque[Request] = deque(maxlen=kept_max)
        self.fetches: deque[tuple[str, Credentials, str, int, int]] = deque(maxlen=kept_max)
        self.parked: set[FakeWaiting] = set()
        self.last_waiting: FakeWaiting | None = None

    def wake(self, reply: Reply) -> int:
        """Answer everybody who is parked; return how many that were."""
        woken = tuple(self.parked)
        for waiting in woken:
            waiting.answer(reply)
        return len(woken)

    def _allowed(self, credentials: Credentials) -> bool:
        if credentials.identity:
            return credentials.identity in self.keys
        return self.authorization is None or credentials.authorization == self.authorization

    def _take(self, request: Request) -> Reply | Waiting:
        self.requests.append(request)
        if not self._allowed(request.credentials):
            return DENIED
        found = self.answers.get(request.channel)
        if found is not None:
            return found
        if request.timeout_s > 0:
            self.last_waiting = FakeWaiting(self, request.timeout_s)
            self.parked.add(self.last_waiting)
            return self.last_waiting
        return Reply(Code.COMMAND, "dfu", request.body) if request.channel == "dfu" else Reply(Code.ACCEPTED)

    def quick(self, request: Request) -> Reply | Waiting | None:
        return self._take(request) if self.quickly else None

    async def post(self, request: Request) -> Reply | Waiting:
        await trio.lowlevel.checkpoint()
        return self._take(request)

    def _cut(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        self.fetches.append((peer, credentials, package, first, last))
        if not self._allowed(credentials):
            return DENIED
        chunks = self.packages.get(package, ())
        if not 0 <= first <= last or first >= len(chunks):
            return NOT_FOUND
        return Chunks(package, first, chunks[first : last + 1])

    def quick_chunks(
        self, peer: str, credentials: Credentials, package: str, first: int, last: int
    ) -> Chunks | Reply | None:
        return self._cut(peer, credentials, package, first, last) if self.quickly else None

    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        await trio.lowlevel.checkpoint()
        return self._cut(peer, credentials, package, first, last)

    async def key_for(self, transport: str, identity: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.keys.get(identity)

    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        return self.keys.get(identity)


class Publish(msgspec.Struct, frozen=True):
    """What a peer is asked to send. query: ct, as, application, device, data_schema."""

    channel: str
    body: bytes = b""
    query: Mapping[str, str] = msgspec.field(default_factory=dict)
    authorization: bytes = AUTHORIZATION


class TransportPeer(abc.ABC):
    """A device's end of the transport. Every call is one exchange on one new connection to `url`."""

    @abc.abstractmethod
    async def publish(self, url: str, publish: Publish) -> Reply:
        """Send and return the answer: code, command and body are looked at. Cancellation hangs up."""

    @abc.abstractmethod
    async def fetch(
        self, url: str, package: str, first: int, last: int, *, authorization: bytes = AUTHORIZATION
    ) -> tuple[Code, bytes]:
        """Fetch the chunks first..last and return COMMAND for success, and the bytes."""


PACKAGE = "0123456789abcdef0123456789abcdef"
CHUNKS = [bytes([n]) * (700 + 300 * n) for n in range(4)]


class TransportConformance:
    """The promise of dfud.api.Transport, as tests."""

    answer_time_s = 10.0

    @pytest.fixture(params=[True, False], ids=["quick", "slow"])
    def endpoint(self, request: pytest.FixtureRequest) -> FakeEndpoint:
        return FakeEndpoint(packages={PACKAGE: CHUNKS}, quickly=request.param)

    @pytest.fixture
    async def url(self, transport: Transport, endpoint: FakeEndpoint, nursery: trio.Nursery) -> AsyncIterator[str]:
        urls = await nursery.start(transport.run, endpoint)
        yield urls[0]
        nursery.cancel_scope.cancel()

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

    async def _until(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`, at most answer_time_s; polls, for what is waited for is no event of trio's."""
        with trio.fail_after(self.answer_time_s):
            while not true():  # noqa: ASYNC110 - as the docstring says
                await trio.sleep(0.005)
