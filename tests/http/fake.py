"""A stand-in for the endpoint that keeps what it is given, for tests of transports."""

from __future__ import annotations

from collections.abc import Callable

import trio

from dfud.api import Chunks, Code, Credentials, Endpoint, Reply, Request, Waiting

GOOD = b"Basic ZGV2MUBhcHAxOnB3"  # dev1@app1:pw
PACKAGE = "ab" * 16


class FakeEndpoint(Endpoint):
    """Knows the device of GOOD (and identity dev1@app1); answers its statuses with `command`.

    With `hold` a request that waits is parked; `wake()` answers all who are. It has the package PACKAGE of `package`.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.asked: list[tuple[str, int, int]] = []
        self.parked: list[_Parked] = []
        self.cancelled = 0
        self.command = Reply(Code.COMMAND, "dfu", b"\x81\x00\x01")
        self.hold = False
        self.quick_answers = False
        self.package = [bytes([n]) * (1000 + n) for n in range(8)]
        self.keys = {"dev1@app1": b"0123456789abcdef"}

    def _denied(self, credentials: Credentials) -> Reply | None:
        if credentials.authorization == GOOD or credentials.identity == "dev1@app1":
            return None
        return Reply(Code.DENIED, error="AuthenticationError", message="Authentication failed")

    def _answer(self, request: Request) -> Reply | Waiting:
        if (denied := self._denied(request.credentials)) is not None:
            return denied
        self.requests.append(request)
        if request.channel != "dfu" and not (self.hold and request.timeout_s):
            return Reply(Code.ACCEPTED)
        if self.hold and request.timeout_s:
            parked = _Parked(self, request.timeout_s)
            self.parked.append(parked)
            return parked
        return self.command

    def quick(self, request: Request) -> Reply | Waiting | None:
        return self._answer(request) if self.quick_answers else None

    async def post(self, request: Request) -> Reply | Waiting:
        await trio.lowlevel.checkpoint()
        return self._answer(request)

    def _cut(self, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        if (denied := self._denied(credentials)) is not None:
            return denied
        self.asked.append((package, first, last))
        if package != PACKAGE or not 0 <= first <= last or first >= len(self.package):
            return Reply(Code.NOT_FOUND, error="NotFound", message="no such chunk")
        return Chunks(package, first, self.package[first : last + 1])

    def quick_chunks(
        self, peer: str, credentials: Credentials, package: str, first: int, last: int
    ) -> Chunks | Reply | None:
        return self._cut(credentials, package, first, last) if self.quick_answers else None

    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        await trio.lowlevel.checkpoint()
        return self._cut(credentials, package, first, last)

    async def key_for(self, transport: str, identity: str) -> bytes | None:
        return self.keys.get(identity)

    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        return self.keys.get(identity)

    def wake(self, reply: Reply | None = None) -> int:
        """Answer everybody who is parked; return how many that were."""
        parked, self.parked = self.parked, []
        for one in parked:
            one.wake(reply or self.command)
        return len(parked)


class _Parked(Waiting):
    def __init__(self, endpoint: FakeEndpoint, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._endpoint = endpoint
        self._wake: Callable[[Reply], None] | None = None
        self._reply: Reply | None = None

    def wake(self, reply: Reply) -> None:
        self._reply = reply
        if self._wake is not None:
            self._wake(reply)

    def listen(self, wake: Callable[[Reply], None]) -> None:
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        self._leave()
        return self._reply or Reply(Code.ACCEPTED)

    def cancel(self) -> None:
        self._leave()
        self._endpoint.cancelled += 1

    def _leave(self) -> None:
        if self in self._endpoint.parked:
            self._endpoint.parked.remove(self)
