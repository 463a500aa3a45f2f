"""One connection that needs a task: read, answer in order, leave. Whatever the peer does, `serve()` ends without an exception."""

from __future__ import annotations

import math
import ssl

import trio

from dfud.api import Endpoint, Reply, Waiting, is_acceptable, note
from dfud_http.answer import CONTINUE, FAILED, encode_plain, encode_reply
from dfud_http.asked import Fetch, Plain, Publish, credentials, understand
from dfud_http.budget import FREE_BYTES, Budget
from dfud_http.config import HttpConfig
from dfud_http.forwarded import ForwardedReader
from dfud_http.lot import RECEIVE_BYTES, Left, Place
from dfud_http.parse import Fault, HttpRequest, RequestReader
from dfud_http.quick import encode_fetched
from dfud_http.stream import PlainStream, TlsStream

NO_ROOM = "too many large requests at a time"
Stream = PlainStream | TlsStream


class Connection:
    """Owns the traffic of a place's socket, not its closing. One that waits, or has nothing to say, is left to the lot."""

    __slots__ = (
        "_budget",
        "_config",
        "_draining",
        "_endpoint",
        "_held",
        "_place",
        "_reader",
        "_scope",
        "_stream",
        "busy",
    )

    def __init__(self, place: Place, endpoint: Endpoint, config: HttpConfig, budget: Budget) -> None:
        self._place = place
        self._stream: Stream = (
            TlsStream(place.sock) if isinstance(place.sock, ssl.SSLSocket) else PlainStream(place.sock)
        )
        self._endpoint = endpoint
        self._config = config
        self._budget = budget
        self._held = 0
        self._reader = place.reader or (RequestReader if place.proxies is None else ForwardedReader)(config)
        place.reader = None
        self._scope = trio.CancelScope()
        self._draining = False
        self.busy = bool(place.rest or place.waiting is not None or self._reader.requests)

    def drain(self) -> None:
        """Close after what is under way; at once if nothing is."""
        self._draining = True
        if not self.busy:
            self._scope.cancel()

    async def serve(self) -> Left | None:
        """Serve until either side has had enough, or until nothing is to be done but to wait for the endpoint or for the peer: then
        return what is to be left.

        One cancel scope lives as long as the task, and only its deadline moves: a scope for each step would be a fifth of what a
        poll costs.
        """
        late = None
        try:
            with self._scope:
                fault = await self._go_on(self._place)
                while fault is None:
                    fault = await self._serve_one()
                if isinstance(fault, Left):
                    return fault
                late = fault or None
            if self._scope.cancelled_caught and self._reader.mid_request and not self._draining:
                late = encode_plain(408, "the request did not come in time")
            if late is not None:
                with trio.move_on_after(self._config.send_s):
                    await self._stream.send_all(late)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        finally:
            self._budget.change(self._held, 0)
        return None

    async def _go_on(self, place: Place) -> bytes | Left | None:
        """Finish what was under way when the connection left the lot; return as _serve_one()."""
        if place.rest:
            rest, place.rest = place.rest, b""
            return await self._send(rest, place.keep_alive)
        if place.waiting is None:
            return None
        waiting, place.waiting = place.waiting, None
        return await self._answer_later(waiting, place.keep_alive, place)

    async def _answer_later(
        self, waiting: Waiting, keep_alive: bool, place: Place | None = None
    ) -> bytes | Left | None:
        reply = await self._wait(waiting, place)
        if reply is None:
            return b""
        return await self._send(encode_reply(reply, keep_alive and not self._draining), keep_alive)

    async def _send(self, answer: bytes, keep_alive: bool) -> bytes | Left | None:
        self._scope.deadline = trio.current_time() + self._config.send_s
        await self._stream.send_all(answer)
        self.busy = False
        if not keep_alive or self._draining:
            return b""
        return Left(None, keep_alive=True) if self._may_leave() else None

    def _feed(self, data: bytes) -> bool:
        """Take what the peer sent; return whether there is room for it."""
        self._reader.feed(data)
        return self._account()

    def _account(self) -> bool:
        held = self._reader.held
        if held <= FREE_BYTES and self._held <= FREE_BYTES:
            self._held = held
            return True
        if not self._budget.change(self._held, held):
            return False
        self._held = held
        return True

    async def _serve_one(self) -> bytes | Left | None:
        """Take and answer one request; return None to go on, what is still to be sent before closing, or b"".

        Or what is to be parked: what it waits for, where nothing has come behind it.
        """
        reader = self._reader
        if not self._account():
            return encode_plain(503, NO_ROOM, headers=b"retry-after: 10\r\n")
        if not reader.requests:
            end = await self._read_request()
            if end is not None:
                return end
        request = reader.take()
        self.busy = True
        keep_alive = request.keep_alive and not self._draining
        place = self._place
        peer = place.peer if place.proxies is None else place.proxies.client_of(place.peer, request)
        self._scope.deadline = math.inf
        try:
            answer = await self._answer(request, peer, keep_alive)
        except Exception as error:
            # Not contained(): this is what a poll costs. A group with a cancellation in it ends the connection, which is.
            note("http.request", error, peer=peer)
            answer = encode_plain(500, FAILED, keep_alive=keep_alive)
        del request
        self._account()
        if isinstance(answer, Waiting):
            if self._may_leave():
                return Left(answer, keep_alive=keep_alive)
            return await self._answer_later(answer, keep_alive)
        return await self._send(answer, keep_alive)

    def _may_leave(self) -> bool:
        """Whether nothing has come that is not answered yet."""
        reader = self._reader
        idle = not reader.requests and not reader.mid_request and reader.fault is None
        # What OpenSSL holds already would wake nobody.
        held = isinstance(self._stream, TlsStream) and self._stream.socket.pending()
        return idle and not held and not self._draining

    async def _read_request(self) -> bytes | None:
        """Read until there is a whole request; otherwise return what is still to be sent before closing."""
        reader = self._reader
        # One deadline for the whole request: a byte now and then does not extend it.
        started = reader.mid_request
        self._scope.deadline = trio.current_time() + (self._config.request_s if started else self._config.idle_s)
        while not reader.requests:
            if reader.fault is not None:
                return encode_plain(reader.fault.status, reader.fault.message)
            if reader.expects_continue:
                reader.expects_continue = False
                await self._stream.send_all(CONTINUE)
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return b""
            if not self._feed(data):
                return encode_plain(503, NO_ROOM, headers=b"retry-after: 10\r\n")
            if not started:
                started = True
                self._scope.deadline = trio.current_time() + self._config.request_s
        return None

    async def _answer(self, request: HttpRequest, peer: str, keep_alive: bool) -> bytes | Waiting:
        """Return the whole answer, or what it waits for."""
        asked = understand(request)
        if isinstance(asked, Plain):
            return encode_plain(asked.status, asked.message, keep_alive=keep_alive, headers=asked.headers)
        authorization = request.headers.get(b"authorization", b"")
        if isinstance(asked, Publish):
            return await self._publish(asked, peer, authorization, request.body, keep_alive)
        return await self._fetch(asked, peer, authorization, keep_alive)

    async def _publish(
        self, asked: Publish, peer: str, authorization: bytes, body: bytes, keep_alive: bool
    ) -> bytes | Waiting:
        if not is_acceptable(asked.channel, asked.content_type, body):
            return encode_plain(406, keep_alive=keep_alive)
        place = self._place
        request = asked.of(peer, authorization, place.certificate, body, encrypted=place.encrypted)
        found = self._endpoint.quick(request)
        if found is None:
            found = await self._endpoint.post(request)
        return found if isinstance(found, Waiting) else encode_reply(found, keep_alive)

    async def _fetch(self, asked: Fetch, peer: str, authorization: bytes, keep_alive: bool) -> bytes:
        shown = credentials(asked, authorization, self._place.certificate)
        found = self._endpoint.quick_chunks(peer, shown, asked.package, asked.first, asked.last)
        if found is None:
            found = await self._endpoint.chunks(peer, shown, asked.package, asked.first, asked.last)
        return encode_fetched(found, asked, keep_alive)

    async def _wait(self, waiting: Waiting, place: Place | None = None) -> Reply | None:
        """Wait for the reply while watching for the peer's going; None if it has gone. place: where it was waited till now."""
        if place is not None and place.reply is not None:
            return place.reply
        if self._draining:
            return waiting.expire()
        reply: Reply | None = None
        until_s = place.until_s if place is not None else trio.current_time() + min(waiting.timeout_s, 1e9)
        scope = trio.CancelScope(deadline=until_s)

        def wake(answer: Reply) -> None:
            nonlocal reply
            reply = answer
            scope.cancel()

        if place is not None:
            place.woken = wake
        else:
            waiting.listen(wake)
        data: bytes | None = None
        try:
            with scope:
                while reply is None:
                    if len(self._reader.requests) >= self._config.pipelined or self._reader.fault is not None:
                        await trio.sleep(math.inf)
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                    if not data:
                        break
                    if not self._feed(data):
                        self._reader.fault = Fault(503, NO_ROOM)  # told behind the answer that it waits for
        except BaseException:
            waiting.cancel()
            raise
        if reply is not None:
            return reply
        if scope.cancelled_caught or data:
            return waiting.expire()
        waiting.cancel()
        return None
