"""Rollouts of an app: making, looking at, steering and deleting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

from dfud.api import Capability, Change, Metadata, NotFoundError, OwnRollout, RefusedError, Rollout
from dfud.model.counts import REVERT_WAVE, WaveCounts
from dfud.model.rollout_spec import WAVES_MAX
from dfud.model.untrusted import check_json_untrusted
from dfud.registry import audit, guards
from dfud.registry.rules import check_metadata_untrusted, check_rollout_untrusted, limits_of
from dfud.registry.services import Services
from dfud.registry.status import timestamp
from dfud.registry.web import json_response, read_json, require

BASE = "/api/dfu/v1/apps/<app>/rollouts"
REASON_MAX = 500


class _NewRollout(msgspec.Struct, forbid_unknown_fields=True):
    """draft: it waits for `start`."""

    metadata: Metadata
    spec: dict[str, Any]
    draft: bool = False


class _Steering(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """call_back: of an abort, also stop the updates that are under way."""

    reason: str = ""
    call_back: bool = False


def register(app: QuartTrio, services: Services) -> None:
    rollouts = services.rollouts
    limits = limits_of(services.config)

    async def shown(rollout: Rollout) -> dict[str, Any]:
        uid = rollout.metadata.uid
        out = rollout_json(rollout, await rollouts.counts(uid))
        if failures := await rollouts.failed(uid):
            out["status"]["failures"] = failures
        return out

    def own() -> bool:
        return Capability.OWN_ROLLOUTS in services.store.capabilities

    def refuse_own(todo: str) -> None:
        if own():
            raise RefusedError(f"the store {services.store.name} has rollouts of its own: {todo}")

    async def owned(app: str, name: str) -> OwnRollout:
        found = await services.store.own_rollout(app, name)
        if found is None:
            raise NotFoundError(f"no rollout {name} of app {app} in the store {services.store.name}")
        return found

    @app.post(BASE)
    async def create_rollout(app: str) -> Response:
        who = require("manager", app)
        refuse_own("make this one there")
        given = await read_json(_NewRollout, services.config.body_max)
        check_metadata_untrusted(given.metadata, limits)
        check_rollout_untrusted(given.spec, limits)
        target = f"{app}/rollout/{given.metadata.name}"
        entry = audit.entry(services.now(), who.name, "create-rollout", target, _brought(given.spec))
        also = [entry, guards.touch(guards.wishes_of(app))]

        async def create(published: Sequence[Change]) -> Rollout:
            return await rollouts.create(
                app, given.metadata, given.spec, who.name, draft=given.draft, also=[*also, *published]
            )

        return json_response(await shown(await guards.held(services.store, guards.deletions_in(app), create)), 201)

    @app.get(BASE)
    async def list_rollouts(app: str) -> Response:
        require("reader", app)
        await services.registry.app(app)
        if own():
            return json_response([own_json(r, services.store.name) for r in await services.store.own_rollouts(app)])
        return json_response([await shown(r) for r in rollouts.all_of(app)])

    @app.get(f"{BASE}/<name>")
    async def get_rollout(app: str, name: str) -> Response:
        require("reader", app)
        if own():
            await services.registry.app(app)
            return json_response(own_json(await owned(app, name), services.store.name))
        return json_response(await shown(rollouts.get(app, name)))

    @app.delete(f"{BASE}/<name>")
    async def delete_rollout(app: str, name: str) -> Response:
        who = require("manager", app)
        if own():
            refuse_own(f"delete it there, {(await owned(app, name)).link}")
        entry = audit.entry(services.now(), who.name, "delete-rollout", f"{app}/rollout/{name}")
        await rollouts.delete(app, name, [entry])
        return Response("", 204)

    @app.post(f"{BASE}/<name>/<action>")
    async def act(app: str, name: str, action: str) -> Response:
        """Steer a rollout: start, approve, deny, pause, resume, next, retry, activate, revert, abort."""
        who = require("manager", app)
        if own():
            refuse_own(f"steer it there, {(await owned(app, name)).link}")
        given = await read_json(_Steering, services.config.body_max)
        reason = given.reason[:REASON_MAX]
        check_json_untrusted(reason, "reason")
        entry = audit.entry(services.now(), who.name, f"{action[:20]}-rollout", f"{app}/rollout/{name}", reason)
        done = await rollouts.act(app, name, action, who.name, reason, [entry], call_back=given.call_back)
        return json_response(await shown(done))


def rollout_json(rollout: Rollout, counts: dict[int, WaveCounts]) -> dict[str, Any]:
    """Return a rollout as users see it, with what its devices came to."""
    status = rollout.status
    out: dict[str, Any] = {
        "state": status.state,
        "wave": status.wave + 1,
        "since": timestamp(status.since_s),
        "author": status.author,
    }
    for key, value in (
        ("code", status.code),
        ("reason", status.reason),
        ("by", status.by),
        ("approved", status.approved),
    ):
        if value:
            out[key] = value
    if status.started_s:
        out["started"] = timestamp(status.started_s)
    if status.activated_s:
        out["activated"] = timestamp(status.activated_s)
    if status.retries:
        out["retries"] = status.retries
    if status.called_back:
        out["calledBack"] = True
    opened = min(max([status.wave, *counts]), WAVES_MAX - 1) if status.started_s else -1
    out["waves"] = [
        {"expected": status.expected[n] if n < len(status.expected) else 0, **_counts_json(counts.get(n, WaveCounts()))}
        for n in range(opened + 1)
    ]
    for wave, silent in zip(out["waves"], status.silent, strict=False):
        if silent:
            wave["silent"] = silent
    if REVERT_WAVE in counts:
        out["goingBack"] = _counts_json(counts[REVERT_WAVE])
    out["history"] = [
        {"at": timestamp(h.at_s), **{k: v for k, v in msgspec.to_builtins(h).items() if k != "atS"}, "wave": h.wave + 1}
        for h in reversed(status.history)
    ]
    metadata = msgspec.to_builtins(rollout.metadata)
    metadata["annotations"] = {k: v for k, v in rollout.metadata.annotations.items() if k != "app"}
    return {"metadata": metadata, "spec": rollout.spec, "status": out}


def own_json(rollout: OwnRollout, store: str) -> dict[str, Any]:
    """Return a rollout of the store's own system in the form of dfud's. What only that system knows is left out."""
    waves = [
        {
            "name": wave.name,
            "state": wave.state,
            "expected": wave.devices,
            "told": wave.told,
            "underWay": wave.under_way,
            "done": wave.done,
            "failed": wave.failed,
            "left": 0,
        }
        for wave in rollout.waves
    ]
    now = next((number for number, wave in enumerate(waves, 1) if wave["state"] != "finished"), max(1, len(waves)))
    status = {
        "state": rollout.state,
        "said": rollout.said,
        "wave": now,
        "author": rollout.by,
        "devices": rollout.devices,
    }
    return {
        "metadata": {"name": rollout.name},
        "spec": {"firmware": rollout.firmware},
        "status": {**status, "waves": waves, "history": [], "store": store, "link": rollout.link},
    }


def _counts_json(counts: WaveCounts) -> dict[str, int]:
    out = {
        "told": counts.told,
        "underWay": counts.under_way,
        "done": counts.done,
        "failed": counts.failed,
        "left": counts.left,
    }
    return out | ({"written": counts.written} if counts.written else {})


def _brought(spec: dict[str, Any]) -> str:
    """Say for the audit log what a rollout brings; not judged yet."""
    named = [(word, spec[key]) for word, key in (("", "firmware"), ("app ", "app")) if key in spec]
    return " with ".join(f"{word}{str(version)[:64]}" for word, version in named)
