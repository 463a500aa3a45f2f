"""Many devices at once: registration in batches, and how many there are. dfud's own, beside Drogue's API."""

from __future__ import annotations

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import NotFoundError
from dfud.registry.batch import DeviceResult
from dfud.registry.routes_registry import BASE, no_such_reference
from dfud.registry.services import Services
from dfud.registry.web import TooLarge, json_response, read_json, require, selector_of

# A path is percent-encoded whole before rules see it (dfud.registry.boundary), the colon too.
DEVICES = f"{BASE}/<name>/devices%3A"


class _Batch(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """devices: judged one by one, so that one that is wrong costs itself only."""

    devices: list[msgspec.Raw]
    secrets: bool = False
    dry_run: bool = False


class _Answer(msgspec.Struct, rename="camel"):
    results: list[DeviceResult]
    created: int
    exists: int
    refused: int
    dry_run: bool


def register(app: QuartTrio, services: Services) -> None:
    registry, config = services.registry, services.config

    @app.post(f"{DEVICES}batch")
    async def create_devices(name: str) -> Response:
        who = require("manager", name)
        batch = await read_json(_Batch, config.body_max)
        if len(batch.devices) > config.batch_max:
            raise TooLarge(f"devices: {len(batch.devices)}, expected at most {config.batch_max} in one request")
        try:
            results = await registry.create_devices(
                name, batch.devices, who.name, secrets=batch.secrets, dry_run=batch.dry_run
            )
        except NotFoundError:
            return no_such_reference()
        counts = {kind: sum(r.result == kind for r in results) for kind in ("created", "exists", "refused")}
        return json_response(_Answer(results, **counts, dry_run=batch.dry_run))

    @app.get(f"{DEVICES}count")
    async def count_devices(name: str) -> Response:
        require("reader", name)
        selector = selector_of(request.args.get("labels", ""), config)
        try:
            await registry.app(name)
        except NotFoundError:
            return no_such_reference()
        return json_response({"count": await services.store.count(name, selector)})
