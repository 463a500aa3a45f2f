"""The ASGI side of the user plane: every request ends here, whatever it did, and its path has one meaning.

Wraps the application; knows no route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from quart import request
from quart_trio import QuartTrio
from werkzeug.routing import PathConverter, UnicodeConverter

from dfud.api import contained

AT_END = "dfud.at_end"
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


class _Segment(UnicodeConverter):
    def to_python(self, value: str) -> str:
        return unquote(value)


class _Path(PathConverter):
    def to_python(self, value: str) -> str:
        return unquote(value)


def enclose(app: QuartTrio) -> None:
    """Put the boundary around `app`, before any route is made: rules see encoded paths, views the names in them."""
    app.url_map.converters.update({"default": _Segment, "string": _Segment, "path": _Path})
    app.asgi_app = Boundary(app.asgi_app)  # type: ignore[method-assign]  # as Quart's documentation says
