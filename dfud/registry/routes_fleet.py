"""The fleet of an app in numbers, its crashes, and what needs attention."""

from __future__ import annotations

from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

from dfud.model.names import path_of
from dfud.model.times import time_of
from dfud.registry.services import Services
from dfud.registry.web import json_response, number_of, require

BASE = "/api/dfu/v1/apps/<app>"
API = "/api/dfu/v1/apps"
HOURS_MAX = 24 * 800
POINTS_MAX = 1000


def register(app: QuartTrio, services: Services) -> None:
    def linked(app: str, crash: dict[str, Any]) -> dict[str, Any]:
        """Return a crash with where more of it is: the first device's own words, and the records of those that showed it."""
        link = path_of(API, app, "fleet", "crashes", crash["fingerprint"])
        records = [path_of(API, app, "deployments", device) for device in crash.get("among", ())]
        return {**crash, "link": link, "records": records}

    @app.get(f"{BASE}/fleet")
    async def fleet(app: str) -> Response:
        require("reader", app)
        hours, points = number_of("hours", 168, 1, HOURS_MAX), number_of("points", 60, 1, POINTS_MAX)
        found = await services.fleet.numbers(app, hours=hours, points=points)
        found["crashes"] = [linked(app, crash) for crash in found["crashes"]]
        return json_response(found)

    @app.get(f"{BASE}/fleet/crashes/<fingerprint>")
    async def crash(app: str, fingerprint: str) -> Response:
        require("reader", app)
        return json_response(linked(app, await services.fleet.crash(app, fingerprint)))

    @app.get(f"{BASE}/attention")
    async def attention(app: str) -> Response:
        require("reader", app)
        found: dict[str, Any] = msgspec.to_builtins(await services.insight.attention(app))
        for cause in found["causes"].values():
            cause["devices"] = [{**one, "since": time_of(one.pop("sinceS"))} for one in cause["devices"]]
        return json_response(found)
