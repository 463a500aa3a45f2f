"""Drogue's registry API, v1alpha1: apps and devices. docs/drogue.md says what its clients rely on."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from quart import Response
from quart_trio import QuartTrio

from dfud.api import App, Device, NotFoundError
from dfud.registry.registry import Precondition
from dfud.registry.services import Services
from dfud.registry.web import error_response, json_response, page, read_json, require, user

BASE = "/api/registry/v1alpha1/apps"


class _Preconditions(msgspec.Struct, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class _DeleteBody(msgspec.Struct):
    preconditions: _Preconditions = msgspec.field(default_factory=_Preconditions)


def register(app: QuartTrio, services: Services) -> None:
    registry, limit = services.registry, services.config.body_max

    async def precondition() -> Precondition:
        found = await read_json(_DeleteBody, limit, empty=_DeleteBody())
        return Precondition(found.preconditions.uid, found.preconditions.resource_version)

    @app.get(BASE)
    async def list_apps() -> Response:
        selector, count, offset = page()
        who = user()
        found = [a for a in await registry.apps(selector, count, offset) if who.sees(a.name)]
        return json_response([resource(a) for a in found])

    @app.post(BASE)
    async def create_app() -> Response:
        who = require("admin", None)
        given = await read_json(App, limit)
        made = await registry.create_app(given, who.name)
        return Response("", 201, {"location": f"{BASE}/{made.name}"})

    @app.get(f"{BASE}/<name>")
    async def get_app(name: str) -> Response:
        require("reader", name)
        return json_response(resource(await registry.app(name)))

    @app.put(f"{BASE}/<name>")
    async def put_app(name: str) -> Response:
        who = require("manager", name)
        given = await read_json(App, limit)
        if given.spec.get("signing") != (await registry.app(name)).spec.get("signing"):
            require("admin", name)
        await registry.update_app(name, given, who.name)
        return Response("", 204)

    @app.delete(f"{BASE}/<name>")
    async def delete_app(name: str) -> Response:
        who = require("admin", name)
        await registry.delete_app(name, await precondition(), who.name)
        return Response("", 204)

    @app.get(f"{BASE}/<name>/devices")
    async def list_devices(name: str) -> Response:
        require("reader", name)
        try:
            devices = await registry.devices(name, *page())
        except NotFoundError:
            return no_such_reference()
        return json_response([resource(d) for d in devices])

    @app.post(f"{BASE}/<name>/devices")
    async def create_device(name: str) -> Response:
        given = await read_json(Device, limit)
        of = given.app or name
        who = require("manager", of)
        try:
            made = await registry.create_device(of, given, who.name)
        except NotFoundError:
            return no_such_reference()
        return Response("", 201, {"location": f"{BASE}/{of}/devices/{quote(made.name, safe='')}"})

    @app.get(f"{BASE}/<name>/devices/<path:device>")
    async def get_device(name: str, device: str) -> Response:
        require("reader", name)
        return json_response(resource(await registry.device(name, device)))

    @app.put(f"{BASE}/<name>/devices/<path:device>")
    async def put_device(name: str, device: str) -> Response:
        who = require("manager", name)
        await registry.update_device(name, device, await read_json(Device, limit), who.name)
        return Response("", 204)

    @app.delete(f"{BASE}/<name>/devices/<path:device>")
    async def delete_device(name: str, device: str) -> Response:
        who = require("manager", name)
        await registry.delete_device(name, device, await precondition(), who.name)
        return Response("", 204)


def no_such_reference() -> Response:
    return error_response(404, "ReferenceNotFound", "Referenced a non-existing entity")


def resource(found: App | Device) -> dict[str, Any]:
    """Return a resource as Drogue's clients read it: what is empty is left out, but for spec and status."""
    return {"metadata": msgspec.to_builtins(found.metadata), "spec": found.spec, "status": found.status}
