"""The endpoint that stands in for dfud where a transport is tested alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import trio

from dfud.api import Chunks, Code, Credentials, Endpoint, Reply, Request, Waiting

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


@lru_cache(maxsize=256)
def _one_for_all(reply: Reply) -> Reply:
    """Return the reply that is equal and was given before: a transport may recognise it, as it does dfud's own."""
    return reply


class FakeEndpoint(Endpoint):
    """Answers by rule and keeps what it is given: the last KEPT_MAX `requests` and `fetches` (without the peer: of
    a chunk that was asked for again), everything that is `parked`.

    authorization: the one value that is let in; None: everybody is. packages: chunks by package name. keys: pre-shared keys
    by identity. answers: what to reply on a channel; without one, channel dfu gets a command `dfu` with the status as its
    body, any other is accepted; a request with a timeout is parked instead, on any channel without an answer.
    quickly: False makes every quick method return None, so that the slow ones are used; they then take a checkpoint.
    full: what is_full() says.
    failing: what every method raises meanwhile, against the promise of Endpoint: a transport has to stand that, too.
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
        self.failing: Exception | None = None
        self.full = False
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
        if self.failing is not None:
            raise self.failing
        self.requests.append(request)
        found = self._rule(request)
        if found is not None:
            return found
        self.last_waiting = FakeWaiting(self, request.timeout_s)
        self.parked.add(self.last_waiting)
        return self.last_waiting

    def _rule(self, request: Request) -> Reply | None:
        """Return the reply to a request, or None: it is parked."""
        if not self._allowed(request.credentials):
            return DENIED
        found = self.answers.get(request.channel)
        if found is not None:
            return found
        if request.timeout_s > 0:
            return None
        return _one_for_all(
            Reply(Code.COMMAND, "dfu", request.body) if request.channel == "dfu" else Reply(Code.ACCEPTED)
        )

    def is_full(self) -> bool:
        return self.full

    def quick(self, request: Request) -> Reply | Waiting | None:
        return self._take(request) if self.quickly else None

    def quick_again(self, request: Request) -> Callable[[], Reply | None] | None:
        reply = self._rule(request)

        def again() -> Reply | None:
            if self.failing is not None:
                raise self.failing
            if reply is None or not self.quickly or self._rule(request) is not reply:
                return None
            self.requests.append(request)
            return reply

        return again

    async def post(self, request: Request) -> Reply | Waiting:
        await trio.lowlevel.checkpoint()
        return self._take(request)

    def _cut(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        if self.failing is not None:
            raise self.failing
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

    def chunk_again(self, credentials: Credentials, package: str) -> Callable[[int, float], bytes | None] | None:
        def again(number: int, now_s: float) -> bytes | None:
            if self.failing is not None:
                raise self.failing
            chunks = self.packages.get(package, ())
            if not self.quickly or not self._allowed(credentials) or number >= len(chunks):
                return None
            self.fetches.append(("", credentials, package, number, number))
            return chunks[number]

        return again

    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        await trio.lowlevel.checkpoint()
        return self._cut(peer, credentials, package, first, last)

    async def key_for(self, transport: str, identity: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.keys.get(identity)

    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        return self.keys.get(identity)
