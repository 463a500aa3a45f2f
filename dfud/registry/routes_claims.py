"""Claim codes: making, listing and ending them."""

from __future__ import annotations

from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

from dfud.registry.claims import Claim
from dfud.registry.services import Services
from dfud.registry.status import timestamp
from dfud.registry.web import json_response, read_json, require

BASE = "/api/dfu/v1/apps/<app>/claims"


class _ClaimRequest(msgspec.Struct, forbid_unknown_fields=True):
    uses: int = 1
    hours: int = 24
    device: str = ""
    labels: dict[str, str] = {}


def register(app: QuartTrio, services: Services) -> None:
    claims = services.claims

    @app.post(BASE)
    async def create_claim(app: str) -> Response:
        who = require("manager", app)
        given = await read_json(_ClaimRequest, services.config.body_max)
        claim, code = await claims.create(
            app,
            who.name,
            uses=given.uses,
            hours=given.hours,
            device=given.device,
            labels=given.labels,
            most=services.config.claims_per_app,
        )
        return json_response({**_claim_json(claim, claim.uses), "code": code}, 201)

    @app.get(BASE)
    async def list_claims(app: str) -> Response:
        require("manager", app)
        return json_response([_claim_json(claim, left) for claim, left in await claims.all_of(app)])

    @app.delete(f"{BASE}/<name>")
    async def delete_claim(app: str, name: str) -> Response:
        who = require("manager", app)
        await claims.delete(app, name, who.name)
        return Response("", 204)


def _claim_json(claim: Claim, left: int) -> dict[str, Any]:
    out: dict[str, Any] = {"id": claim.id, "by": claim.by, "created": timestamp(claim.created_s)}
    out |= {"expires": timestamp(claim.expires_s), "uses": claim.uses, "left": left}
    if claim.device:
        out["device"] = claim.device
    if claim.labels:
        out["labels"] = claim.labels
    return out
