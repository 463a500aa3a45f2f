"""Changes on their way to event sinks: how it stands, and what they did not take. Of all apps, so the role is for all of them."""

from __future__ import annotations

from typing import Any

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from dfud.model.times import time_of
from dfud.registry import audit
from dfud.registry.services import Services
from dfud.registry.web import json_response, read_json, require

BASE = "/api/dfu/v1/outbox"
LETTERS_MAX = 1000
UNREADABLE = "the stored letter cannot be read: it cannot be told again, only dropped"


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    """ids null: all dead letters of the sink."""

    sink: str
    ids: list[str] | None = None


def register(app: QuartTrio, services: Services) -> None:
    outbox = services.outbox

    @app.get(BASE)
    async def outbox_status() -> Response:
        require("reader", None)
        return json_response(outbox.status())

    @app.get(f"{BASE}/dead")
    async def dead_letters() -> Response:
        """List dead letters of all sinks, or of `sink`, the oldest first; `after` goes on behind one of a sink."""
        require("reader", None)
        asked, after = request.args.get("sink"), request.args.get("after", "")
        out: list[dict[str, Any]] = []
        for sink in [asked] if asked is not None else [one["sink"] for one in outbox.status()]:
            for key, letter in await outbox.letters(sink, after=after, limit=LETTERS_MAX):
                if letter is None:
                    out.append({"sink": sink, "id": key, "problem": UNREADABLE})
                    continue
                event = letter.event
                out.append(
                    {
                        "sink": sink,
                        "id": key,
                        "event": event.id,
                        "kind": event.kind,
                        "app": event.app,
                        "subject": event.subject,
                        "time": time_of(event.at_s),
                        "data": event.data,
                        "problem": letter.problem,
                        "attempts": letter.attempts,
                        "given": time_of(letter.at_s),
                    }
                )
        return json_response(out)

    async def steered(what: str) -> Response:
        who = require("manager", None)
        given = await read_json(_Which, services.config.body_max)
        number = await (outbox.retry if what == "retry" else outbox.drop)(given.sink, given.ids)
        detail = f"{number} dead letters"
        await services.store.commit(
            [audit.entry(services.now(), who.name, f"{what}-events", f"sink/{given.sink}", detail)]
        )
        left = next(one["dead"] for one in outbox.status() if one["sink"] == given.sink)
        return json_response({"sink": given.sink, "number": number, "left": left})

    @app.post(f"{BASE}/dead/retry")
    async def retry_letters() -> Response:
        return await steered("retry")

    @app.post(f"{BASE}/dead/drop")
    async def drop_letters() -> Response:
        return await steered("drop")
