"""What happens to an app's devices, as a stream of lines: GET /api/dfu/v1/apps/<app>/events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import (
    ActualChanged,
    DeploymentChanged,
    DeviceChanged,
    PeerError,
    ProgressChanged,
    RolloutChanged,
    change_event,
)
from dfud.registry.services import Services
from dfud.registry.status import deployment_json
from dfud.registry.web import require

HEARTBEAT_S = 15.0


def register(app: QuartTrio, services: Services, shutdown: trio.Event) -> None:
    @app.get("/api/dfu/v1/apps/<app>/events")
    async def events(app: str) -> Response:
        """Stream what happens to the app's devices, one JSON object a line, until the reader or dfud ends it."""
        require("reader", app)
        only = request.args.get("device")
        form = request.args.get("format", "json")
        if form not in ("json", "cloudevents"):
            raise PeerError(f"format {form[:40]!r}: expected json or cloudevents")
        encode = _event_line if form == "json" else _cloud_lines

        async def lines() -> AsyncIterator[bytes]:
            kinds = (DeploymentChanged, ProgressChanged, ActualChanged, DeviceChanged, RolloutChanged)
            async with services.bus.stream(*kinds, capacity=services.config.events_behind) as stream:
                yield b"\n"
                while not shutdown.is_set():
                    event: Any = None
                    with trio.move_on_after(HEARTBEAT_S):
                        event = await _next(stream, shutdown)
                    told = encode(event, app, only)
                    if told:
                        yield told
                    elif event is None and not shutdown.is_set():
                        yield b"\n"

        response = Response(lines(), 200, content_type="application/x-ndjson")
        response.timeout = None
        return response


async def _next(stream: trio.MemoryReceiveChannel[Any], shutdown: trio.Event) -> Any:
    """Return the next event, or None when dfud shuts down."""
    found: Any = None
    async with trio.open_nursery() as nursery:

        async def ending() -> None:
            await shutdown.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(ending)
        found = await stream.receive()
        nursery.cancel_scope.cancel()
    return found


def _event_line(event: Any, app: str, device: str | None) -> bytes:
    found = _event_json(event, app, device)
    return msgspec.json.encode(found) + b"\n" if found is not None else b""


def _cloud_lines(event: Any, app: str, device: str | None) -> bytes:
    """Return what event sinks are told of it, in the same form and with the same ids; b"" if that is nothing."""
    told = event.told if isinstance(event, RolloutChanged) else ()
    if isinstance(event, DeploymentChanged) and event.told is not None:
        told = (event.told,)
    chosen = [e for e in told if e.app == app and (device is None or (e.kind == "deployment" and e.subject == device))]
    return b"".join(change_event(e) + b"\n" for e in chosen)


def _event_json(event: Any, app: str, device: str | None) -> dict[str, Any] | None:
    if isinstance(event, RolloutChanged):
        return _rollout_json(event) if event.rollout.app == app and device is None else None
    subject = event
    if isinstance(event, (DeploymentChanged, ProgressChanged)):
        subject = event.deployment
    elif isinstance(event, ActualChanged):
        subject = event.actual
    elif not isinstance(event, DeviceChanged):
        return None
    if subject.app != app or device not in (None, subject.device):
        return None
    out: dict[str, Any] = {"event": type(event).__name__, "device": subject.device}
    if isinstance(event, (DeploymentChanged, ProgressChanged)):
        out["deployment"] = deployment_json(event.deployment)
    elif isinstance(event, ActualChanged):
        out["current"] = event.actual.version
        if event.actual.program is not None:
            out["app"] = event.actual.program.version
        out["trial"] = event.actual.trial
    return out


def _rollout_json(event: RolloutChanged) -> dict[str, Any]:
    """device "": it is of no one device, and whoever follows some looks at all of them."""
    status = event.rollout.status
    out = {
        "event": "RolloutChanged",
        "device": "",
        "rollout": event.rollout.name,
        "firmware": event.rollout.spec.get("firmware"),
        **({"app": event.rollout.spec["app"]} if "app" in event.rollout.spec else {}),
        "state": status.state,
        "wave": status.wave + 1,
    }
    more = {"code": status.code, "reason": status.reason, "by": status.by, "deleted": event.deleted}
    return out | {key: value for key, value in more.items() if value}
