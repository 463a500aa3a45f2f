"""The user plane's application: every route, who may ask at all, and how errors read. The one place that puts it together."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Iterable

import trio
from quart import Response, current_app, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from dfud.api import ConflictError, DfudError, NotFoundError, PeerError, RefusedError, StoreError, UserRoutes
from dfud.model.address import limited
from dfud.model.windows import PerMinute
from dfud.registry import routes_audit, routes_claims, routes_dfu, routes_registry, routes_service
from dfud.registry.oidc import looks_like_jwt
from dfud.registry.services import Services
from dfud.registry.users import User
from dfud.registry.web import Forbidden, TooLarge, error_response

log = logging.getLogger("dfud.registry")


def make_app(services: Services, routes: Iterable[UserRoutes], shutdown: trio.Event) -> QuartTrio:
    """Return the application with dfud's own routes and the plugins'."""
    app = QuartTrio("dfud", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_CONTENT_LENGTH=None,
        BODY_TIMEOUT=services.config.body_s,
        RESPONSE_TIMEOUT=None,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.before_request(_before(services, _Limits(services)))
    app.register_error_handler(Exception, _error)
    own_routes(app, services, shutdown)
    for plugin in routes:
        plugin.register(app, services)
    return app


def own_routes(app: QuartTrio, services: Services, shutdown: trio.Event) -> None:
    """Register the routes that dfud has itself."""
    routes_registry.register(app, services)
    routes_dfu.register(app, services, shutdown)
    routes_service.register(app, services)
    routes_claims.register(app, services)
    routes_audit.register(app, services)


class _Limits:
    """Requests and failures of each address in the current minute."""

    def __init__(self, services: Services) -> None:
        self._now = services.now
        self._requests = PerMinute(services.config.requests_per_minute)
        self._failures = PerMinute(services.config.failures_per_minute)

    def allowed(self, peer: str) -> bool:
        now_s = self._now()
        return self._requests.take(peer, now_s) and not self._failures.blocked(peer, now_s)

    def failed(self, peer: str) -> None:
        self._failures.add(peer, self._now())


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
