"""The ASGI side of the user plane: every request ends here, whatever it did, and its path has one meaning.

Wraps the application; knows no route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import trio
from quart import request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.routing import PathConverter, UnicodeConverter

from dfud.api import contained

AT_END = "dfud.at_end"
UNREAD_MAX_BYTES = 1 << 16
FAILED = "dfud failed; its log says why"
Send = Callable[[Any], Awaitable[None]]


class Boundary:
    """One request costs itself only: what it raises is logged, counted and answered; what it holds is given back."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(event: Any) -> None:
            nonlocal started
            started = True
            await send(event)

        path, problem = canonical(scope)
        if problem:
            await _answer(send, 400, "InvalidRequest", problem)
            return
        with ExitStack() as at_end, contained("users.request", method=scope["method"]) as guard:
            await self._app({**scope, "path": path, AT_END: at_end}, receive, sending)
        if guard.error is not None and not started:
            await _answer(send, 500, "InternalError", FAILED)
        # An answer that has begun stays without its end, and the connection is closed: nobody takes it for a whole one.


async def _answer(send: Send, status: int, error: str, message: str) -> None:
    body = msgspec.json.encode({"code": status, "error": error, "message": message})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def at_end(call: Callable[[], object]) -> None:
    """Have `call` called when the request that is being answered is over: sent, broken or cancelled."""
    request.scope[AT_END].callback(call)  # type: ignore[literal-required]  # put there by Boundary


def canonical(scope: Any) -> tuple[str, str]:
    """Return (path, problem): the path as it was sent, percent-encoded in one way, so that an encoded slash is no slash.

    problem: a sentence if the path may mean something else to a client or proxy than to dfud. Dots alone between slashes are
    folded by many; percent-encoded they are a name.
    """
    raw = scope.get("raw_path")
    if raw is None:  # a server without it has decoded the path already
        return quote(scope["path"]), ""
    parts = raw.split(b"?", 1)[0].decode("ascii", "replace").split("/")
    if any(part in (".", "..") for part in parts):
        return "", "path: '.' and '..' stand for other paths; as the name of something they are written %2E and %2E%2E"
    if scope["method"] in ("DELETE", "PUT") and len(parts) > 2 and not parts[-1]:
        return "", "path: it ends in a slash, and so without the name of what is meant"
    try:
        return "/".join(quote(unquote(part, errors="strict"), safe="") for part in parts), ""
    except UnicodeDecodeError:
        return "", "path: not UTF-8 after percent-decoding"


class BoundedBody(TrioBody):
    """A body of which only so much is in memory as nobody has read yet."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._read = trio.Event()
        self._wanted_whole = False
        self._discarded = False

    async def __anext__(self) -> bytes:
        data = await super().__anext__()
        self._read.set()
        return data

    def __await__(self) -> Generator[Any, None, Any]:
        self._wanted_whole = True  # by a view of a plugin: up to MAX_CONTENT_LENGTH
        self._read.set()
        return super().__await__()

    def append(self, data: bytes) -> None:
        if not self._discarded:
            super().append(data)

    def discard(self) -> None:
        """Nobody will read more: keep nothing, and hold nothing up."""
        self._discarded = True
        self._data.clear()
        self._read.set()

    async def until_read(self) -> None:
        """Wait until somebody has read what is here."""
        while len(self._data) > UNREAD_MAX_BYTES and not self._wanted_whole:
            self._read = trio.Event()
            await self._read.wait()


class BoundedRequest(TrioRequest):
    body_class = BoundedBody


class BoundedConnection(TrioASGIHTTPConnection):
    """Takes a body as fast as it is read, where quart-trio takes it as fast as it comes, however large.

    A request whose body nobody reads for body_s is ended. What comes once the answer is on its way is dropped.
    """

    def _create_request_from_scope(self, send: Any) -> Any:
        request = super()._create_request_from_scope(send)
        self._body: Any = request.body  # a BoundedBody
        return request

    async def _send_response(self, send: Any, response: Any) -> None:
        self._body.discard()
        await super()._send_response(send, response)

    async def handle_messages(self, nursery: trio.Nursery, request: Any, receive: Any) -> None:  # type: ignore[override]
        unread_s = self.app.config["BODY_TIMEOUT"]
        while (message := await receive())["type"] == "http.request":
            request.body.append(message.get("body", b""))
            if not message.get("more_body", False):
                request.body.set_complete()
                continue
            with trio.move_on_after(unread_s) as scope:
                await request.body.until_read()
            if scope.cancelled_caught:
                break
        nursery.cancel_scope.cancel()


class _Segment(UnicodeConverter):
    def to_python(self, value: str) -> str:
        return unquote(value)


class _Path(PathConverter):
    def to_python(self, value: str) -> str:
        return unquote(value)


def enclose(app: QuartTrio) -> None:
    """Put the boundary around `app`, before any route is made: rules see encoded paths, views the names in them."""
    app.url_map.converters.update({"default": _Segment, "string": _Segment, "path": _Path})
    app.request_class = BoundedRequest
    app.asgi_http_class = BoundedConnection
    app.asgi_app = Boundary(app.asgi_app)  # type: ignore[method-assign]  # as Quart's documentation says
