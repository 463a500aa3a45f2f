"""The user plane's application: every route, who may ask at all, and how errors read. The one place that puts it together."""

from __future__ import annotations

from collections.abc import Iterable

import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from dfud.api import (
    ConflictError,
    DfudError,
    NotFoundError,
    PeerError,
    RefusedError,
    StoreError,
    UnreadableError,
    UserRoutes,
    note,
)
from dfud.model.text import visible
from dfud.registry import (
    boundary,
    routes_audit,
    routes_batch,
    routes_claims,
    routes_dfu,
    routes_events,
    routes_firmware,
    routes_fleet,
    routes_plan,
    routes_registry,
    routes_rollouts,
    routes_service,
    routes_stream,
)
from dfud.registry.admission import Admission, Denials
from dfud.registry.groups import NobodyMatches
from dfud.registry.services import Services
from dfud.registry.users import Forbidden, User
from dfud.registry.web import Busy, TooLarge, TooSlow, error_response

ADMISSION = "dfud.admission"


def make_app(services: Services, routes: Iterable[UserRoutes], shutdown: trio.Event) -> QuartTrio:
    """Return the application with dfud's own routes and the plugins'. Raises ConfigError."""
    app = QuartTrio("dfud", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_CONTENT_LENGTH=None,  # each view reads up to its own limit, and no more is taken than is read
        BODY_TIMEOUT=services.config.body_s,
        RESPONSE_TIMEOUT=None,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    boundary.enclose(app)
    denials = Denials(services.now, services.config)
    admission = Admission(services, denials)
    app.before_request(admission.before)
    app.extensions[ADMISSION] = admission

    async def failed(error: Exception) -> Response:
        return _answer(error, denials)

    app.register_error_handler(Exception, failed)
    own_routes(app, services, shutdown, denials)
    for plugin in routes:
        plugin.register(app, services)
    return app


def own_routes(app: QuartTrio, services: Services, shutdown: trio.Event, denials: Denials) -> None:
    """Register the routes that dfud has itself."""
    routes_registry.register(app, services)
    routes_batch.register(app, services)
    routes_dfu.register(app, services)
    routes_stream.register(app, services, shutdown)
    routes_firmware.register(app, services)
    routes_service.register(app, services, denials)
    routes_plan.register(app, services)
    routes_rollouts.register(app, services)
    routes_fleet.register(app, services)
    routes_events.register(app, services)
    routes_claims.register(app, services)
    routes_audit.register(app, services)


_STATUS: tuple[tuple[type[DfudError], int, str], ...] = (
    (Forbidden, 403, "Forbidden"),
    (NotFoundError, 404, "NotFound"),
    (ConflictError, 409, "Conflict"),
    (NobodyMatches, 409, "NobodyMatches"),
    (RefusedError, 409, "Refused"),
    (TooLarge, 413, "TooLarge"),
    (TooSlow, 408, "TooSlow"),
    (PeerError, 400, "InvalidRequest"),
    (Busy, 503, "ServiceUnavailable"),
    (UnreadableError, 500, "Unreadable"),
    (StoreError, 503, "ServiceUnavailable"),
)


def _answer(error: Exception, denials: Denials) -> Response:
    """Return what a user reads of an error of his request."""
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            if kind is Forbidden:
                who: User = g.user
                denials.add("not-allowed", g.peer, who.name, who.token)
            response = error_response(status, name, str(error))
            if kind is Busy:
                response.headers["retry-after"] = "5"
            return response
    if isinstance(error, HTTPException):
        code = error.code or 500
        return error_response(code, (error.name or "Error").replace(" ", ""), _told(error))
    if isinstance(error, trio.TooSlowError):
        return error_response(408, "TooSlow", "the body did not arrive in time")
    note("users.request", error)
    return error_response(500, "InternalError", boundary.FAILED)


def _told(error: HTTPException) -> str:
    """Return what to say of a request that no view takes; the framework's own words are for people at a browser."""
    asked = f"{request.method} {visible(request.path[:200])}"
    if error.code == 404:
        return f"{asked}: this dfud has no such address; a plugin's are there only while [plugins] enables it"
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        return f"{asked}: expected {' or '.join(sorted({*error.valid_methods} - {'HEAD', 'OPTIONS'}))} there"
    return error.description or ""
