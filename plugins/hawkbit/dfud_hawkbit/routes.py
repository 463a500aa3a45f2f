"""What users may ask of hawkBit through dfud: how it is, reconciliation, and confirming for a device."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

from quart import Response, g, request

from dfud.api import NotFoundError, RefusedError, UserRoutes
from dfud_hawkbit import feedback, records
from dfud_hawkbit.http import Answering
from dfud_hawkbit.names import target_id
from dfud_hawkbit.reconcile import Reconciler, plain
from dfud_hawkbit.records import Link
from dfud_hawkbit.store import HawkbitStore

BASE = "/api/hawkbit/v1"


class HawkbitRoutes(UserRoutes):
    name = "hawkbit"

    def register(self, app: Any, services: Any) -> None:
        store = services.store
        if not isinstance(store, HawkbitStore):
            return  # the plugin is enabled, another store is used
        store.connect(services.registry, services.firmware, services.bus)

        @app.get(f"{BASE}/status")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        async def hawkbit_status() -> Response:
            if not g.user.may("reader", None):
                return _forbidden("reader")
            worker, answering = store.sync.worker, store.sync.client.answering
            return _json(
                {
                    "url": store.config.url,
                    "away": worker.health.problem or silence(answering),
                    "answered": feedback.at(answering.answered_s) if answering.answered_s else "",
                    "unansweredSince": feedback.at(answering.since_s) if answering.silent_s() else "",
                    "owner": store.sync.owner.mark,
                    "waiting": {"devices": len(worker.work), "firmware": len(store.sync.publishing.work)},
                    "problems": dict(sorted(store.sync.known.problems.items())[:100]),
                    "requests": dict(sorted(store.sync.client.requests.items())),
                    "failures": dict(sorted(store.sync.client.failures.items())),
                }
            )

        @app.post(f"{BASE}/apps/<name>/reconcile")  # type: ignore[untyped-decorator]  # as above
        async def hawkbit_reconcile(name: str) -> Response:
            dry_run = request.args.get("dryRun") == "true"
            role = "reader" if dry_run else "manager"
            if not g.user.may(role, name):
                return _forbidden(role)
            return _json(plain(await Reconciler(store).run(name, dry_run=dry_run)))

        @app.post(f"{BASE}/apps/<name>/take-over")  # type: ignore[untyped-decorator]  # as above
        async def hawkbit_take_over(name: str) -> Response:
            if not g.user.may("admin", name):
                return _forbidden("admin")
            return _json({"app": name, "targets": await take_over(store, name)})

        @app.post(f"{BASE}/apps/<name>/confirm/<path:device>")  # type: ignore[untyped-decorator]  # as above
        async def hawkbit_confirm(name: str, device: str) -> Response:
            if not g.user.may("manager", name):
                return _forbidden("manager")
            key = records.device_key(name, device)
            link = await records.get(store.inner, records.LINKS, key, Link)
            if link is None:
                raise NotFoundError(f"no device {device} in app {name}")
            if link.kind != "confirm" or not link.action:
                raise RefusedError(f"nothing of device {device} waits to be confirmed")
            word = "denied" if request.args.get("deny") == "true" else "confirmed"
            told = {"confirmation": word, "details": feedback.details([f"{word} by {g.user.name}"])}
            taken = await store.sync.client.feedback(target_id(name, device), "confirmationBase", link.action, told)
            store.sync.feed.look(key)
            if not taken:
                raise RefusedError(
                    f"nothing of device {device} waits to be confirmed in hawkBit any longer: look again"
                )
            return _json({"device": device, "version": link.version, "confirmation": word})


def silence(answering: Answering) -> str:
    """Say that hawkBit takes requests and does not answer them, or nothing."""
    silent_s = answering.silent_s()
    return f"has not answered for {silent_s:.0f} s, since {feedback.at(answering.since_s)}" if silent_s else ""


async def take_over(store: HawkbitStore, app: str) -> list[str]:
    """Make those targets of an app this dfud's that were another's; return them."""
    taken = []
    async with aclosing(records.every(store.inner, records.LINKS, f"{app}/")) as known:
        async for key, value in known:
            link = records.decoded(records.LINKS, key, value, Link)
            if link is not None and link.foreign:
                target = target_id(*records.split(key))
                await store.sync.owner.take(app, target)
                store.sync.known.recheck.add(key)
                store.sync.feed.look(key)
                taken.append(target)
    return taken


def _forbidden(role: str) -> Response:
    return _json({"code": 403, "error": "Forbidden", "message": f"this needs the role {role}"}, 403)


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")
