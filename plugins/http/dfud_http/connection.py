"""One connection: read, answer in order, park. Whatever the peer does, `serve()` ends without an exception."""

from __future__ import annotations

import math

import trio

from dfud.api import (
    Chunks,
    Code,
    Credentials,
    Endpoint,
    Reply,
    Request,
    Waiting,
    chunk_range_untrusted,
    is_acceptable,
    note,
    timeout_untrusted,
)
from dfud_http.answer import CONTINUE, encode_chunks, encode_plain, encode_reply, etag
from dfud_http.budget import FREE_BYTES, Budget
from dfud_http.config import HttpConfig
from dfud_http.lot import Left, Place
from dfud_http.parse import Fault, HttpRequest, RequestReader, split_target_untrusted
from dfud_http.stream import PlainStream, TlsStream

RECEIVE_BYTES = 16384
FAILED = "the request failed; the log of dfud says why"
NO_ROOM = "too many large requests at a time"
Stream = PlainStream | TlsStream


class Connection:
    """Owns the stream's traffic, not its closing. parks: whether a device that waits is left to a lot."""

    __slots__ = (
        "_budget",
        "_certificate",
        "_config",
        "_draining",
        "_encrypted",
        "_endpoint",
        "_held",
        "_parks",
        "_peer",
        "_reader",
        "_scope",
        "_stream",
        "busy",
    )

    def __init__(
        self,
        stream: Stream,
        peer: str,
        endpoint: Endpoint,
        config: HttpConfig,
        budget: Budget,
        *,
        certificate: bytes,
        encrypted: bool,
        parks: bool = False,
    ) -> None:
        self._parks = parks
        self._stream = stream
        self._peer = peer
        self._endpoint = endpoint
        self._config = config
        self._certificate = certificate
        self._encrypted = encrypted
        self._budget = budget
        self._held = 0
        self._reader = RequestReader(config)
        self._scope = trio.CancelScope()
        self._draining = False
        self.busy = False

    def drain(self) -> None:
        """Close after what is under way; at once if nothing is."""
        self._draining = True
        if not self.busy:
            self._scope.cancel()

    async def serve(self, place: Place | None = None) -> Left | None:
        """Serve until either side has had enough, or until the device waits and nothing else is to be done for it: then return what
        is to be parked. place: where it was parked till now.

        One cancel scope lives as long as the connection, and only its deadline moves: a scope for each step would be a fifth
        of what a poll costs.
        """
        late = None
        try:
            with self._scope:
                fault: bytes | Left | None = None if place is None else await self._go_on(place)
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

    async def _go_on(self, place: Place) -> bytes | None:
        """Finish what was under way when the connection left the lot; return as _serve_one()."""
        if place.rest:
            self.busy = True
            self._scope.deadline = trio.current_time() + self._config.send_s
            await self._stream.send_all(place.rest)
            self.busy = False
            return None if place.keep_alive and not self._draining else b""
        if place.waiting is None:
            return None
        self.busy = True
        return await self._answer_later(place.waiting, place.keep_alive, place)

    async def _answer_later(self, waiting: Waiting, keep_alive: bool, place: Place | None = None) -> bytes | None:
        reply = await self._wait(waiting, place)
        if reply is None:
            return b""
        self._scope.deadline = trio.current_time() + self._config.send_s
        await self._stream.send_all(encode_reply(reply, keep_alive and not self._draining))
        self.busy = False
        return None if keep_alive and not self._draining else b""

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
        if not reader.requests:
            end = await self._read_request()
            if end is not None:
                return end
        request = reader.take()
        self.busy = True
        keep_alive = request.keep_alive and not self._draining
        self._scope.deadline = math.inf
        try:
            answer = await self._answer(request, keep_alive)
        except Exception as error:
            # Not contained(): this is what a poll costs. A group with a cancellation in it ends the connection, which is.
            note("http.request", error, peer=self._peer)
            answer = encode_plain(500, FAILED, keep_alive=keep_alive)
        del request
        self._account()
        if isinstance(answer, Waiting):
            idle = not reader.requests and not reader.mid_request and reader.fault is None
            # What OpenSSL holds already would wake nobody.
            idle = idle and not (isinstance(self._stream, TlsStream) and self._stream.socket.pending())
            if self._parks and idle and not self._draining:
                return Left(answer, keep_alive=keep_alive)
            return await self._answer_later(answer, keep_alive)
        self._scope.deadline = trio.current_time() + self._config.send_s
        await self._stream.send_all(answer)
        self.busy = False
        return None if keep_alive and not self._draining else b""

    async def _read_request(self) -> bytes | None:
        """Read until there is a whole request; otherwise return what is still to be sent before closing."""
        reader = self._reader
        started = False
        self._scope.deadline = trio.current_time() + self._config.idle_s
        while not reader.requests:
            if reader.fault is not None:
                return encode_plain(reader.fault.status, reader.fault.message)
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return b""
            if not self._feed(data):
                return encode_plain(503, NO_ROOM, headers=b"retry-after: 10\r\n")
            if reader.requests:
                break
            if not started:
                # One deadline for the whole request: a byte now and then does not extend it.
                started = True
                self._scope.deadline = trio.current_time() + self._config.request_s
            if reader.expects_continue and reader.fault is None:
                reader.expects_continue = False
                await self._stream.send_all(CONTINUE)
        return None

    async def _answer(self, request: HttpRequest, keep_alive: bool) -> bytes | Waiting:
        """Return the whole answer, or what it waits for."""
        method = request.method
        split = split_target_untrusted(request.target)
        if split is None:
            return encode_plain(400, "the target cannot be read", keep_alive=keep_alive)
        path, query = split
        if method == b"POST":
            if len(path) >= 2 and path[0] == "v1" and path[1]:
                return await self._publish(request, path, query, keep_alive)
        elif method in (b"GET", b"HEAD"):
            if path == [""]:
                return encode_plain(200, keep_alive=keep_alive)
            if len(path) == 4 and path[:2] == ["v1", "dfu"]:
                return await self._chunks(request, path[2], path[3], query, keep_alive)
        else:
            return encode_plain(
                405, "expected GET, HEAD or POST", keep_alive=keep_alive, headers=b"allow: GET, HEAD, POST\r\n"
            )
        return encode_plain(404, "no such path", keep_alive=keep_alive)

    def _credentials(self, request: HttpRequest, query: dict[str, str]) -> Credentials:
        return Credentials(
            authorization=request.headers.get(b"authorization", b""),
            certificate=self._certificate,
            application=query.get("application", ""),
            device=query.get("device", ""),
        )

    async def _publish(
        self, request: HttpRequest, path: list[str], query: dict[str, str], keep_alive: bool
    ) -> bytes | Waiting:
        timeout_s = timeout_untrusted(query)
        if timeout_s is None:
            return encode_plain(400, "ct: expected a number of seconds", keep_alive=keep_alive)
        channel = path[1]
        content_type = request.headers.get(b"content-type", b"").decode("latin-1")
        if not is_acceptable(channel, content_type, request.body):
            return encode_plain(406, keep_alive=keep_alive)
        publish = Request(
            transport="http",
            peer=self._peer,
            credentials=self._credentials(request, query),
            channel=channel,
            body=request.body,
            content_type=content_type,
            timeout_s=timeout_s,
            as_device=query.get("as", ""),
            data_schema=query.get("data_schema", ""),
            topic="/".join(path[2:]),
            encrypted=self._encrypted,
        )
        found = self._endpoint.quick(publish)
        if found is None:
            found = await self._endpoint.post(publish)
        return found if isinstance(found, Waiting) else encode_reply(found, keep_alive)

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
        with scope:
            while reply is None:
                if len(self._reader.requests) >= self._config.pipelined or self._reader.fault is not None:
                    await trio.sleep(math.inf)
                data = await self._stream.receive_some(RECEIVE_BYTES)
                if not data:
                    break
                if not self._feed(data):
                    self._reader.fault = Fault(503, NO_ROOM)  # told behind the answer that it waits for
        if reply is not None:
            return reply
        if scope.cancelled_caught or data:
            return waiting.expire()
        waiting.cancel()
        return None

    async def _chunks(
        self, request: HttpRequest, package: str, which: str, query: dict[str, str], keep_alive: bool
    ) -> bytes:
        asked = chunk_range_untrusted(package, which)
        if asked is None:
            return encode_reply(Reply(Code.NOT_FOUND, error="NotFound", message="no such chunk"), keep_alive)
        first, last = asked
        credentials = self._credentials(request, query)
        found = self._endpoint.quick_chunks(self._peer, credentials, package, first, last)
        if found is None:
            found = await self._endpoint.chunks(self._peer, credentials, package, first, last)
        if isinstance(found, Chunks):
            if b'"%s"' % etag(found) in request.headers.get(b"if-none-match", b""):
                return encode_plain(304, keep_alive=keep_alive, headers=b'etag: "%s"\r\n' % etag(found))
            return encode_chunks(found, keep_alive, head_only=request.method == b"HEAD")
        return encode_reply(found, keep_alive)
