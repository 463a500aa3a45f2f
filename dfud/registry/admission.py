"""Who may ask at all: tokens, and the limits of those who have none. Counted before anything is done for them."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from quart import Response, current_app, g, request

from dfud.api import SharedCounts
from dfud.model.address import client_of, limited
from dfud.model.windows import PerMinute
from dfud.registry.config import RegistryConfig, proxies_of
from dfud.registry.oidc import looks_like_jwt
from dfud.registry.services import Services
from dfud.registry.users import User
from dfud.registry.web import error_response

log = logging.getLogger("dfud.registry")
_PREFIX = re.compile(r"drg_[0-9A-Za-z]{6}(?=_|$)")
V = TypeVar("V", bound=Callable[..., Any])


def probe(view: V) -> V:
    """Mark a view that a supervisor asks: it needs no token and is never refused."""
    view.open_to_all = view.probe = True  # type: ignore[attr-defined]  # functions take attributes
    return view


class Denials:
    """Counts who was refused, and logs each address once a minute for each reason. No secret, and nothing of strangers', in it."""

    def __init__(self, now: Callable[[], float], config: RegistryConfig) -> None:
        self._now = now
        self._counts: Counter[str] = Counter()
        # Each one who is refused has one line a minute, and all of them so many.
        self._told = PerMinute(1, config.counted_max)
        self._lines = PerMinute(config.denials_logged)

    def add(self, reason: str, peer: str, user: str = "", token: str = "") -> None:
        """Note one refusal. token: the prefix that names it."""
        self._counts[reason] += 1
        now_s = self._now()
        if not self._told.take((reason, peer, user), now_s) or not self._lines.take("", now_s):
            return
        rule = str(request.url_rule) if request.url_rule is not None else ""
        about = {"reason": reason, "peer": peer, "user": user, "token": token, "method": request.method, "route": rule}
        log.warning("a user was refused", extra={name: value for name, value in about.items() if value})

    def metrics(self) -> bytes:
        """Return the lines of /metrics."""
        lines = ["# TYPE dfud_denied_users_total counter"]
        lines += [f'dfud_denied_users_total{{reason="{reason}"}} {n}' for reason, n in sorted(self._counts.items())]
        return ("\n".join(lines) + "\n").encode()


class Admission:
    """Decides before each request. `denials` is told whom it refuses."""

    def __init__(self, services: Services, denials: Denials) -> None:
        """Raises ConfigError."""
        config = services.config
        self._services = services
        self._denials = denials
        self._proxies = proxies_of(config)
        self._requests = PerMinute(config.requests_per_minute, config.counted_max)
        self._failures = PerMinute(config.failures_per_minute, config.counted_max)
        self.shared = SharedCounts(services.store, services.bus, "users", self._failed_elsewhere)

    def _failed_elsewhere(self, key: tuple[str, ...], number: int) -> None:
        now_s = self._services.now()
        for _ in range(min(number, self._failures.left(key[0], now_s))):
            self._failures.add(key[0], now_s)

    async def before(self) -> Response | None:
        """Return the answer to whoever may not ask, or None; then g.user is who asks, and g.peer where from."""
        view = current_app.view_functions[request.endpoint] if request.endpoint is not None else None
        g.peer = limited(self._client())
        if getattr(view, "probe", False):
            return None
        now_s = self._services.now()
        if view is None or getattr(view, "open_to_all", False):
            return None if self._requests.take(g.peer, now_s) else self._too_many("address")
        token, claimed = _token()
        user = await self._known(token, claimed)
        if user is None:
            # Nobody: counted for the address before anything dear is done for it. Who is known above does not come here, so that
            # a stranger behind the same address cannot lock him out.
            if not self._requests.take(g.peer, now_s):
                return self._too_many("address")
            if self._failures.blocked(g.peer, now_s):
                return self._too_many("failures")
            user = await self._judged(token, claimed)
        elif not self._requests.take(("token", user.token or user.name), now_s):
            return self._too_many("token", user)
        if user is None:
            self._failures.add(g.peer, now_s)
            self.shared.add((g.peer,))
            found = _PREFIX.match(token)
            self._denials.add("wrong-token" if token else "no-token", g.peer, token=found[0] if found else "")
            return error_response(403, "AuthenticationError", "Authentication failed")
        g.user = user
        return None

    def _client(self) -> str:
        client = request.scope.get("client")
        return client_of(client[0] if client else "", request.headers.getlist("X-Forwarded-For"), self._proxies)

    def _too_many(self, what: str, user: User | None = None) -> Response:
        self._denials.add(f"too-many-{what}", g.peer, user.name if user is not None else "")
        of = {"address": "requests from this address", "failures": "wrong tokens from this address"}
        response = error_response(429, "TooManyRequests", f"too many {of.get(what, 'requests with this token')}")
        response.headers["retry-after"] = "60"
        return response

    async def _known(self, token: str, claimed: str | None) -> User | None:
        """Return whose token this is as far as that costs a read and a fast hash."""
        if not token:
            return None
        oidc = self._services.oidc
        if oidc is not None and looks_like_jwt(token):
            return oidc.known(token) if claimed is None else None
        return await self._services.users.of_token(token, self._services.now(), claimed)

    async def _judged(self, token: str, claimed: str | None) -> User | None:
        """Return whose token this is, whatever it costs to find out."""
        oidc = self._services.oidc
        if oidc is not None and looks_like_jwt(token) and claimed is None:
            return await oidc.user(token)
        return None


def _token() -> tuple[str, str | None]:
    """Return the token of the request, "" if it has none, and the user that is named beside it."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip(), None
    if scheme.lower() == "basic":
        try:
            claimed, _, token = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return "", None
        return token, claimed
    return "", None
