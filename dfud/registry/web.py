"""The user plane's application: who asks, what may be asked, and how errors read. Routes are in routes_*.py."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
import trio
from quart import Response, current_app, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from dfud.api import (
    ConflictError,
    DfudError,
    NotFoundError,
    PeerError,
    RefusedError,
    Selector,
    StoreError,
    UserRoutes,
    parse_selector_untrusted,
)
from dfud.model.address import limited
from dfud.model.names import check_app_name
from dfud.registry.oidc import looks_like_jwt
from dfud.registry.services import Services
from dfud.registry.users import Role, User

log = logging.getLogger("dfud.registry")
T = TypeVar("T")
WINDOW_S = 60.0
LIST_MAX = 1000
ADDRESSES_MAX = 100_000


class Forbidden(DfudError):
    """Not with this token."""


def make_app(services: Services, routes: Iterable[UserRoutes], shutdown: trio.Event) -> QuartTrio:
    """Return the application with dfud's own routes and the plugins'."""
    from dfud.registry import routes_audit, routes_claims, routes_dfu, routes_registry, routes_service

    app = QuartTrio("dfud", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_CONTENT_LENGTH=None,
        BODY_TIMEOUT=services.config.body_s,
        RESPONSE_TIMEOUT=None,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    limits = _Limits(services)
    app.before_request(_before(services, limits))
    app.register_error_handler(Exception, _error)
    routes_registry.register(app, services)
    routes_dfu.register(app, services, shutdown)
    routes_service.register(app, services)
    routes_claims.register(app, services)
    routes_audit.register(app, services)
    for plugin in routes:
        plugin.register(app, services)
    return app


class _Limits:
    """Requests and failures of each address in the current minute."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._window = -1
        self._requests: dict[str, int] = {}
        self._failures: dict[str, int] = {}

    def _roll(self) -> None:
        window = int(self._services.now() / WINDOW_S)
        if window != self._window:
            self._window = window
            self._requests.clear()
            self._failures.clear()

    def allowed(self, peer: str) -> bool:
        self._roll()
        if peer not in self._requests and len(self._requests) >= ADDRESSES_MAX:
            return False
        count = self._requests[peer] = self._requests.get(peer, 0) + 1
        config = self._services.config
        return count <= config.requests_per_minute and self._failures.get(peer, 0) < config.failures_per_minute

    def failed(self, peer: str) -> None:
        self._roll()
        self._failures[peer] = self._failures.get(peer, 0) + 1  # only of addresses that allowed() has let in


def _before(services: Services, limits: _Limits) -> Callable[[], Awaitable[Response | None]]:
    async def before() -> Response | None:
        peer = limited(request.remote_addr or "")
        if not limits.allowed(peer):
            response = error_response(429, "TooManyRequests", "too many requests from this address")
            response.headers["retry-after"] = "60"
            return response
        if request.endpoint is None or getattr(current_app.view_functions[request.endpoint], "open_to_all", False):
            return None
        user = await _user(services)
        if user is None:
            limits.failed(peer)
            return error_response(403, "AuthenticationError", "Authentication failed")
        g.user = user
        return None

    return before


async def _user(services: Services) -> User | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    claimed: str | None = None
    if scheme.lower() == "bearer":
        token = value.strip()
    elif scheme.lower() == "basic":
        try:
            claimed, _, token = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
    else:
        return None
    if services.oidc is not None and looks_like_jwt(token):
        return await services.oidc.user(token) if claimed is None else None
    return await services.users.of_token(token, services.now(), claimed)


def user() -> User:
    """Return who asks."""
    found: User = g.user
    return found


def require(role: Role, app: str | None) -> User:
    """Return who asks, if he has at least `role` for `app`.

    Raises NotFoundError if he may not even know the app, Forbidden if he may know it and not do this.
    """
    found = user()
    if app is not None:
        check_app_name(app)
    if not found.may(role, app):
        if app is not None and not found.sees(app):
            raise NotFoundError(f"no app {app}")
        raise Forbidden(f"this needs the role {role}{f' for app {app}' if app else ''}")
    return found


async def read_body(limit: int) -> bytes:
    """Read the body, up to `limit` bytes. Raises PeerError."""
    length = request.content_length
    if length is not None and length > limit:
        raise TooLarge(f"the body has {length} bytes, expected at most {limit}")
    out = bytearray()
    async for data in request.body:
        out += data
        if len(out) > limit:
            raise TooLarge(f"the body has more than {limit} bytes")
    return bytes(out)


class TooLarge(PeerError):
    """A body beyond its limit."""


async def read_json(kind: type[T], limit: int) -> T:
    """Read the body as JSON of `kind`. Raises PeerError that says where it is not."""
    try:
        return msgspec.json.decode(await read_body(limit), type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PeerError(f"the body is not what it should be: {error}") from None


def page() -> tuple[Selector, int, int]:
    """Return (selector, limit, offset) of a list request. Raises PeerError."""
    numbers = {}
    for name, default, high in (("limit", LIST_MAX, LIST_MAX), ("offset", 0, 1 << 31)):
        text = request.args.get(name, str(default))
        if not (text.isascii() and text.isdigit() and int(text[:12]) <= high):
            raise PeerError(f"{name} {text[:20]!r}: expected 0 to {high}")
        numbers[name] = int(text)
    return parse_selector_untrusted(request.args.get("labels", "")), numbers["limit"], numbers["offset"]


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, content_type="application/json")


def error_response(status: int, error: str, message: str) -> Response:
    return json_response({"code": status, "error": error, "message": message}, status)


_STATUS: tuple[tuple[type[DfudError], int, str], ...] = (
    (Forbidden, 403, "Forbidden"),
    (NotFoundError, 404, "NotFound"),
    (ConflictError, 409, "Conflict"),
    (RefusedError, 409, "Refused"),
    (TooLarge, 413, "TooLarge"),
    (PeerError, 400, "InvalidRequest"),
    (StoreError, 503, "ServiceUnavailable"),
)


async def _error(error: Exception) -> Response:
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            return error_response(status, name, str(error))
    if isinstance(error, HTTPException):
        code = error.code or 500
        return error_response(code, (error.name or "Error").replace(" ", ""), error.description or "")
    log.error("a request failed", exc_info=error, extra={"path": request.path})
    return error_response(500, "InternalError", "dfud failed; its log says why")
