"""Tokens, health, metrics."""

from __future__ import annotations

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import PeerError
from dfud.registry.admission import Denials, probe
from dfud.registry.services import Services
from dfud.registry.status import timestamp
from dfud.registry.users import EVERY_APP, ROLES, Forbidden, Role, Token
from dfud.registry.web import json_response, read_json, require, user

TOKENS = "/api/tokens/v1alpha1"


class _TokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a new token is for; without roles it has its maker's, and can never have more."""

    user: str = ""
    roles: dict[str, str] | None = None
    days: int | None = None
    description: str = ""


def register(app: QuartTrio, services: Services, denials: Denials) -> None:
    users = services.users

    @app.post(TOKENS)
    async def create_token() -> Response:
        who = user()
        if who.token == "":
            # It would outlive what the issuer says of him.
            raise Forbidden("users of an OpenID Connect issuer make no access tokens")
        given = await read_json(_TokenRequest, services.config.body_max, empty=_TokenRequest())
        wanted = given.roles if given.roles is not None else dict(who.roles)
        roles: dict[str, Role] = {}
        for name, role in wanted.items():
            if role not in ROLES:
                raise PeerError(f"role {role[:40]!r}: expected one of {', '.join(ROLES)}")
            if not who.may(role, None if name == EVERY_APP else name):
                raise Forbidden(f"you do not have the role {role} for {name} yourself")
            roles[name] = role
        await users.check_apps(given.roles or ())
        if given.user not in ("", who.name):
            require("admin", None)
        days = services.config.token_days if given.days is None else given.days
        if not 1 <= days <= 3650:
            raise PeerError(f"days {days}: expected 1 to 3650")
        description = given.description or request.args.get("description", "")
        token, text = await users.create(
            given.user or who.name,
            roles,
            by=who.name,
            now_s=services.now(),
            days=days,
            description=description,
            most=services.config.tokens_per_user,
        )
        return json_response({"prefix": token.prefix, "token": text})

    @app.get(TOKENS)
    async def list_tokens() -> Response:
        who = user()
        everybody = request.args.get("all") == "true"
        if everybody:
            require("admin", None)
        return json_response([_token_json(t) for t in await users.tokens(None if everybody else who.name)])

    @app.delete(f"{TOKENS}/<prefix>")
    async def delete_token(prefix: str) -> Response:
        who = user()
        await users.delete(prefix, who, services.now())
        return Response("", 204)

    @app.get("/healthz")
    @probe
    async def healthz() -> Response:
        return json_response({"status": "alive", "version": services.version})

    @app.get("/readyz")
    @probe
    async def readyz() -> Response:
        why_not = services.ready()
        return json_response({"status": why_not or "ready"}, 503 if why_not else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        require("reader", None)
        return Response(services.metrics() + denials.metrics(), content_type="text/plain; version=0.0.4")


def _token_json(t: Token) -> dict[str, object]:
    out: dict[str, object] = {"prefix": t.prefix, "created": timestamp(t.created_s), "expires": timestamp(t.expires_s)}
    out |= {"user": t.user, "roles": t.roles}
    if t.description:
        out["description"] = t.description
    return out
