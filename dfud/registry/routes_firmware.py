"""Recalling a firmware, and the ways that lead to it."""

from __future__ import annotations

import msgspec
from quart import Response
from quart_trio import QuartTrio

from dfud.model.untrusted import check_json_untrusted
from dfud.registry.images import Bound
from dfud.registry.routes_dfu import firmware_json
from dfud.registry.services import Services
from dfud.registry.web import json_response, read_json, require

BASE = "/api/dfu/v1/apps/<app>/firmware/<version>"
REASON_MAX = 500


class _Reason(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class _Ways(msgspec.Struct, forbid_unknown_fields=True):
    """requires None: every version may go to it directly. stop: nobody who comes from an older one may skip it."""

    requires: Bound | None = None
    stop: bool = False


def register(app: QuartTrio, services: Services) -> None:
    firmware = services.firmware

    @app.post(f"{BASE}/recall")
    async def recall(app: str, version: str) -> Response:
        """Have nobody get a version any longer; rollouts of it pause."""
        who = require("manager", app)
        given = await read_json(_Reason, services.config.body_max)
        reason = given.reason[:REASON_MAX]
        check_json_untrusted(reason, "reason")
        return json_response(firmware_json(await firmware.recall(app, version, reason, who.name)))

    @app.post(f"{BASE}/unrecall")
    async def unrecall(app: str, version: str) -> Response:
        who = require("manager", app)
        return json_response(firmware_json(await firmware.unrecall(app, version, who.name)))

    @app.put(f"{BASE}/ways")
    async def ways(app: str, version: str) -> Response:
        who = require("manager", app)
        given = await read_json(_Ways, services.config.body_max)
        return json_response(firmware_json(await firmware.set_ways(app, version, given.requires, given.stop, who.name)))
