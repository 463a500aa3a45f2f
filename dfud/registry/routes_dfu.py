"""dfud's own API, /api/dfu/v1: firmware, updates, deployments; and commands to devices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import (
    Firmware,
    Image,
    NotFoundError,
    PeerError,
    RefusedError,
)
from dfud.model.names import check_name
from dfud.registry import audit
from dfud.registry.config import RegistryConfig
from dfud.registry.firmware import KINDS, Upload, trust_shown
from dfud.registry.groups import GroupJob, versions_of
from dfud.registry.images import bound_of, read_attributes_untrusted, refuse_recalled
from dfud.registry.services import Services
from dfud.registry.status import deployment_json, timestamp
from dfud.registry.uploads import read_range_untrusted
from dfud.registry.web import error_response, is_number, json_response, read_body, read_json, require, selector_of, user
from dfud.wire.manifest import beside_of

BASE = "/api/dfu/v1/apps/<app>"
EXPIRES_MAX_S = 604_800  # of a command, as [endpoint] commands_expire_s
_PATHS = "<path:device>"


class _Update(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """firmware None removes the wish. selector: which devices; without one and without device: the app's default.

    all_at_once: however many devices the selector matches.
    """

    firmware: dict[str, Any] | None
    device: str | None = None
    selector: str | None = None
    all_at_once: bool = False


def register(app: QuartTrio, services: Services) -> None:
    _firmware(app, services)
    _jobs(app, services)
    _deployments(app, services)
    _commands(app, services)


def _firmware(app: QuartTrio, services: Services) -> None:
    @app.get(f"{BASE}/firmware")
    async def list_firmware(app: str) -> Response:
        require("reader", app)
        return json_response([firmware_json(f) for f in await services.firmware.list(app)])

    @app.post(f"{BASE}/firmware")
    async def publish_firmware(app: str) -> Response:
        who = require("manager", app)
        args = request.args
        sequence = args.get("sequence")
        if sequence is not None and not (is_number(sequence) and int(sequence) < 1 << 32):
            raise PeerError(f"sequence {sequence[:20]!r}: expected an integer below 2^32")
        if args.get("kind", "esp-image") not in KINDS:
            raise PeerError(f"kind {args['kind'][:40]!r}: expected one of {', '.join(KINDS)}")
        upload = Upload(
            version=args.get("version", ""),
            hardware=args.get("hardware", ""),
            sequence=int(sequence) if sequence is not None else None,
            kind=args.get("kind", "esp-image"),  # type: ignore[arg-type]  # checked above
            sha256=args.get("sha256", ""),
            notes=args.get("notes", ""),
            envelope=_envelope(request.headers.get("dfud-manifest", "")),
            attributes=read_attributes_untrusted(args.getlist("attribute")),
            requires=bound_of(args.get("requiresFrom"), args.get("requiresTo")),
            stop=args.get("stop") == "true",
            beside=read_range_untrusted(args["with"]) if args.get("with") else None,
        )
        # The body is streamed to the store; the limit of other bodies' time does not fit it.
        with trio.fail_after(services.config.upload_s):
            made = await services.firmware.publish(app, upload, request.body, who.name)
        return json_response(firmware_json(made), 201)

    @app.get(f"{BASE}/firmware/<version>")
    async def get_firmware(app: str, version: str) -> Response:
        require("reader", app)
        return json_response(firmware_json(await services.firmware.get(app, version)))

    @app.get(f"{BASE}/firmware/<version>/image")
    async def download_firmware(app: str, version: str) -> Response:
        require("reader", app)
        attributes = read_attributes_untrusted(request.args.getlist("attribute"))
        which = request.args.get("hardware", "")
        async with services.firmware.image(app, version, which, attributes) as (path, record):
            opened = await trio.open_file(path, "rb")  # who has opened it may read on

        async def blocks() -> AsyncIterator[bytes]:
            async with opened as file:
                while block := await file.read(1 << 16):
                    yield block

        headers = {"content-length": str(record.size_bytes), "etag": f'"{record.sha256}"'}
        return Response(blocks(), 200, headers, content_type="application/octet-stream")

    @app.delete(f"{BASE}/firmware/<version>")
    async def delete_firmware(app: str, version: str) -> Response:
        who = require("manager", app)
        hardware, attributes = request.args.get("hardware", ""), request.args.getlist("attribute")
        if hardware or attributes:
            of = read_attributes_untrusted(attributes)
            await services.firmware.delete_image(app, version, hardware, of, who.name)
        else:
            await services.firmware.delete(app, version, who.name)
        return Response("", 204)

    @app.post(f"{BASE}/update")
    async def update(app: str) -> Response:
        """Say what should run on one device, on the devices of a selector, or on the app's."""
        who = require("manager", app)
        given = await read_json(_Update, services.config.body_max)
        versions = versions_of(given.firmware)
        for version in versions:
            refuse_recalled(await services.firmware.get(app, version))
        if given.selector is not None and given.device is None:
            selector = selector_of(given.selector, services.config)
            if not selector.requirements:
                raise PeerError("selector: empty; leave it out to change the app's default")
            if given.firmware is not None and not given.all_at_once and given.firmware.get("hold") is not True:
                number = await services.store.count(app, selector)
                check_number(number, given.selector, given.firmware, services.config)
            job = await services.registry.groups.accept(app, selector, given.selector, given.firmware, who.name)
            return json_response(job_json(job), 202)
        changed = await services.registry.set_firmware(app, given.device, given.firmware, who.name, published=True)
        return json_response({"changed": [given.device] if changed else []})


def _jobs(app: QuartTrio, services: Services) -> None:
    groups = services.registry.groups

    @app.get(f"{BASE}/jobs")
    async def list_jobs(app: str) -> Response:
        require("reader", app)
        return json_response([job_json(job) for job in await groups.of_app(app)])

    @app.get(f"{BASE}/jobs/<job>")
    async def get_job(app: str, job: str) -> Response:
        require("reader", app)
        return json_response(job_json(await groups.get(app, job)))

    @app.post(f"{BASE}/jobs/<job>/cancel")
    async def cancel_job(app: str, job: str) -> Response:
        who = require("manager", app)
        return json_response(job_json(await groups.cancel(app, job, who.name)))


def _deployments(app: QuartTrio, services: Services) -> None:
    async def known(app: str, device: str) -> None:
        if await services.store.device(app, device) is None:
            raise NotFoundError(f"no device {device} in app {app}")

    @app.get(f"{BASE}/deployments/{_PATHS}")
    async def list_deployments(app: str, device: str) -> Response:
        require("reader", app)
        await known(app, device)
        return json_response([deployment_json(d) for d in await services.store.deployments(app, device)])

    @app.get(f"{BASE}/explain/{_PATHS}")
    async def explain(app: str, device: str) -> Response:
        require("reader", app)
        return json_response(msgspec.to_builtins(await services.insight.explain(app, device)))

    @app.get(f"{BASE}/drift")
    async def drift(app: str) -> Response:
        require("reader", app)
        return json_response(msgspec.to_builtins(await services.insight.drift(app)))

    @app.get(f"{BASE}/history/{_PATHS}")
    async def history(app: str, device: str) -> Response:
        require("reader", app)
        await known(app, device)
        entries = await services.store.history(app, device)
        return json_response([{"at": timestamp(e.at_s), **_without_place(msgspec.to_builtins(e))} for e in entries])

    @app.post(f"{BASE}/retry/{_PATHS}")
    async def retry(app: str, device: str) -> Response:
        who = require("manager", app)
        await known(app, device)
        entry = audit.entry(services.now(), who.name, "retry", f"{app}/{device}")
        await services.updates.retry(app, device, who.name, [entry])
        return Response("", 202)

    @app.post(f"{BASE}/cancel/{_PATHS}")
    async def cancel(app: str, device: str) -> Response:
        who = require("manager", app)
        await known(app, device)
        entry = audit.entry(services.now(), who.name, "cancel", f"{app}/{device}")
        await services.updates.cancel(app, device, who.name, [entry])
        return Response("", 202)

    @app.post(f"{BASE}/secret/{_PATHS}")
    async def new_secret(app: str, device: str) -> Response:
        """Give a device another secret; the newest old one stays valid until the next time."""
        who = require("manager", app)
        keep = 0 if request.args.get("revoke") == "true" else 1
        secret = await services.registry.new_secret(app, device, who.name, keep=keep)
        return json_response({"secret": secret}, 201)

    @app.post(f"{BASE}/psk/{_PATHS}")
    async def new_psk(app: str, device: str) -> Response:
        """Give a device another pre-shared key; the old one ends at once."""
        who = require("manager", app)
        psk = await services.registry.new_psk(app, device, who.name)
        return json_response({"psk": psk.hex()}, 201)


def check_number(number: int, selector: str, firmware: dict[str, Any], config: RegistryConfig) -> None:
    """Raise RefusedError where an update means more devices than should be told at once without somebody's saying so."""
    if number > config.update_max:
        said = [firmware.get("version"), f"--app {firmware['app']}" if "app" in firmware else None]
        version = " ".join(str(text) for text in said if text)
        raise RefusedError(
            f"selector: {selector[:100]} matches {number} devices, expected at most {config.update_max} ([registry] update_max): "
            f"make a rollout (dfuctl rollout create NAME {version} -l {selector[:100]!r}), or say allAtOnce (--all-at-once)"
        )


def _without_place(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in ("app", "device", "atS")}


def _commands(app: QuartTrio, services: Services) -> None:
    @app.post(f"/api/command/v1alpha1/apps/<app>/devices/{_PATHS}")
    async def send_command(app: str, device: str) -> Response:
        """Take a command to a device: 202 if it waits or the command is stored, 406 if neither."""
        who = require("manager", app)
        name = check_name("command", request.args.get("command", ""))
        expires = request.args.get("expires")
        if expires is not None and not (is_number(expires) and int(expires) <= EXPIRES_MAX_S):
            raise PeerError(f"expires {expires[:20]!r}: expected a number of seconds up to {EXPIRES_MAX_S}")
        payload = await read_body(services.config.body_max)
        view = await services.store.device(app, device)
        if view is None:
            return error_response(406, "NotAcceptable", f"no device {device} in app {app}")
        core = view.device.spec.get("core")
        if isinstance(core, dict) and core.get("disabled") is True:
            return error_response(406, "NotAcceptable", f"device {device} is disabled")
        selector = view.device.spec.get("gatewaySelector")
        names = selector.get("matchNames") if isinstance(selector, dict) else None
        gateways = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
        taken = await services.commands.send(
            app,
            device,
            view.device.metadata.uid,
            name,
            payload,
            expires_s=float(expires) if expires is not None else None,
            gateways=gateways,
            also=[audit.entry(services.now(), who.name, "command", f"{app}/{device}", name)],
        )
        if taken:
            return Response("", 202)
        return error_response(406, "NotAcceptable", "the device is not waiting, and the command is not kept")

    @app.get("/api/dfu/v1/whoami")
    async def whoami() -> Response:
        return json_response({"user": user().name, "roles": dict(user().roles)})


def firmware_json(f: Firmware) -> dict[str, Any]:
    out = {
        "version": f.version,
        "hardware": f.hardware,
        "sequence": f.sequence,
        "size": f.size_bytes,
        "sha256": f.sha256,
        "kind": f.kind,
        "signed": f.signed,
        "trust": trust_shown(f),
        "created": f.created,
        "uploadedBy": f.uploaded_by,
        "manifest": msgspec.to_builtins(f.manifest),
    }
    if (beside := beside_of(f.manifest)) is not None:
        out["with"] = list(beside)
    if f.notes:
        out["notes"] = f.notes
    if f.attributes:
        out["attributes"] = f.attributes
    if f.more:
        out["images"] = [_image_json(image) for image in f.images]
    if f.requires is not None:
        out["requires"] = {"from": f.requires.low, "to": f.requires.high}
    if f.stop:
        out["stop"] = True
    if f.recalled is not None:
        out["recalled"] = msgspec.to_builtins(f.recalled)
    return out


def _image_json(image: Image) -> dict[str, Any]:
    beside = beside_of(image.manifest)
    return ({"with": list(beside)} if beside is not None else {}) | {
        "hardware": image.hardware,
        "attributes": image.attributes,
        "sequence": image.sequence,
        "size": image.size_bytes,
        "sha256": image.sha256,
        "kind": image.kind,
        "signed": image.signed,
        "trust": trust_shown(image),
        "manifest": msgspec.to_builtins(image.manifest),
    }


def job_json(job: GroupJob) -> dict[str, Any]:
    out: dict[str, Any] = {
        "job": job.id,
        "state": str(job.state),
        "selector": job.selector,
        "firmware": job.firmware,
        "by": job.by,
        "created": timestamp(job.created_s),
        "matched": job.matched,
        "changed": job.changed,
        "unchanged": job.unchanged,
        "replaced": job.replaced,
    }
    if job.ended_s:
        out["ended"] = timestamp(job.ended_s)
    if job.problem:
        out["problem"] = job.problem
    return out


def _envelope(text: str) -> bytes:
    try:
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        raise PeerError("dfud-manifest: expected base64") from None
