"""The forecast of a rollout: what it would do, before anything is sent. With `progress=true` as lines, while the fleet is read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import trio
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import Capability, NotFoundError, RefusedError
from dfud.registry.rules import check_rollout_untrusted, limits_of
from dfud.registry.services import Services
from dfud.registry.web import json_response, number_of, read_json, require, user

BASE = "/api/dfu/v1/apps/<app>/rollouts"
DAYS_MAX = 3650
TELL_S = 0.5


class _Planned(msgspec.Struct, forbid_unknown_fields=True):
    """What is posted to make a rollout may be posted here, too; only the spec counts."""

    spec: dict[str, Any]
    metadata: dict[str, Any] = {}
    draft: bool = False


def register(app: QuartTrio, services: Services) -> None:
    @app.post(f"{BASE}%3Aplan")  # as paths are matched: percent-encoded
    async def plan_rollout(app: str) -> Response:
        require("manager", app)
        if Capability.OWN_ROLLOUTS in services.store.capabilities:
            raise RefusedError(f"the store {services.store.name} has rollouts of its own: plan this one there")
        given = await read_json(_Planned, services.config.body_max)
        check_rollout_untrusted(given.spec, limits_of(services.config))
        return await _answer(services, app, given.spec, "", prepare=True)

    @app.get(f"{BASE}/<name>/plan")
    async def plan_of_rollout(app: str, name: str) -> Response:
        """Forecast what a rollout that is made still has before it. Who may only read has no packages made."""
        require("reader", app)
        rollout = services.rollouts.get(app, name)
        return await _answer(services, app, rollout.spec, name, prepare=user().may("manager", app))


async def _answer(services: Services, app: str, spec: dict[str, Any], name: str, *, prepare: bool) -> Response:
    days = number_of("silentDays", 30, 1, DAYS_MAX)
    if await services.store.app(app) is None:
        raise NotFoundError(f"no app {app}")
    size = await services.planner.size(app, spec)
    if request.args.get("progress") != "true":
        return json_response(await services.planner.plan(app, spec, name=name, silent_days=days, prepare=prepare))
    pages = _lines(services, app, spec, name, days, size, prepare=prepare)

    async def body() -> AsyncGenerator[bytes, None]:
        async with aclosing(pages):
            async for line in pages:
                yield line

    response = Response(body(), 200, content_type="application/x-ndjson")
    response.timeout = None
    return response


async def _lines(
    services: Services, app: str, spec: dict[str, Any], name: str, days: int, size: int, *, prepare: bool
) -> AsyncGenerator[bytes, None]:
    """Yield `{"read", "of"}` now and then, and at the end the forecast, or `{"error"}`."""
    plan = services.planner.plan
    job = services.planner.begin(
        lambda progress: plan(app, spec, name=name, silent_days=days, prepare=prepare, progress=progress)
    )
    try:
        while not job.done.is_set():
            yield msgspec.json.encode({"read": job.read, "of": size}) + b"\n"
            with trio.move_on_after(TELL_S):
                await job.done.wait()
        yield msgspec.json.encode({"error": job.error} if job.error else {"plan": job.result}) + b"\n"
    finally:
        job.scope.cancel()
