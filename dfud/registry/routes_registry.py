"""Drogue's registry API, v1alpha1: apps and devices. docs/drogue.md says what its clients rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import App, Device, DeviceView, NotFoundError, Selector, Store, UnreadableError
from dfud.registry.lists import Lists, Page
from dfud.registry.services import Services
from dfud.registry.users import EVERY_APP, User
from dfud.registry.web import error_response, json_response, page, read_json, require, user
from dfud.registry.writing import Precondition

BASE = "/api/registry/v1alpha1/apps"


class _Preconditions(msgspec.Struct, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class _DeleteBody(msgspec.Struct):
    preconditions: _Preconditions = msgspec.field(default_factory=_Preconditions)


def register(app: QuartTrio, services: Services) -> None:
    registry, limit = services.registry, services.config.body_max
    lists = Lists(services.config)

    async def precondition() -> Precondition:
        found = await read_json(_DeleteBody, limit, empty=_DeleteBody())
        return Precondition(found.preconditions.uid, found.preconditions.resource_version)

    @app.get(BASE)
    async def list_apps() -> Response:
        selector, count, offset = page(services.config)
        return await lists.answer(_apps(services.store, user(), selector, offset), _app_json, count, lambda a: a.name)

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
        await registry.update_app(name, given, who.name, may_sign=who.may("admin", name))
        return Response("", 204)

    @app.delete(f"{BASE}/<name>")
    async def delete_app(name: str) -> Response:
        who = require("admin", name)
        await registry.delete_app(name, await precondition(), who.name)
        return Response("", 204)

    @app.get(f"{BASE}/<name>/devices")
    async def list_devices(name: str) -> Response:
        require("reader", name)
        selector, count, offset = page(services.config)
        after = request.args.get("after", "")
        try:
            parent = await registry.app(name)
        except NotFoundError:
            return no_such_reference()

        async def read(last: DeviceView | None, rows: int) -> Sequence[DeviceView]:
            if last is None:
                return await services.store.devices(name, selector, limit=rows, offset=offset, after=after)
            return await services.store.devices(name, selector, limit=rows, after=last.device.name)

        async def encode(view: DeviceView) -> bytes:
            return msgspec.json.encode(resource(await registry.with_status(parent, view)))

        return await lists.answer(read, encode, count, lambda view: view.device.name)

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


def _apps(store: Store, who: User, selector: Selector, offset: int) -> Page[App]:
    """Return how to read the apps that `who` sees, from the one at `offset` on."""
    seen = offset

    async def every(last: App | None, rows: int) -> Sequence[App]:
        nonlocal seen
        found = await store.apps(selector, limit=rows, offset=seen)
        seen += len(found)
        return found

    async def named(last: App | None, rows: int) -> Sequence[App]:
        nonlocal seen
        found: list[App] = []
        names = sorted(name for name in who.roles if name != EVERY_APP)
        for name in names if last is None else names[names.index(last.name) + 1 :]:
            try:
                app = await store.app(name)
            except UnreadableError:
                continue  # left out, as the store leaves it out of a list; its log names it
            if app is None or not selector.matches(app.metadata.labels):
                continue
            if last is None and seen:
                seen -= 1
                continue
            found.append(app)
            if len(found) == rows:
                break
        return found

    return every if EVERY_APP in who.roles else named


async def _app_json(app: App) -> bytes:
    return msgspec.json.encode(resource(app))


def no_such_reference() -> Response:
    return error_response(404, "ReferenceNotFound", "Referenced a non-existing entity")


def resource(found: App | Device) -> dict[str, Any]:
    """Return a resource as Drogue's clients read it: what is empty is left out, but for spec and status."""
    return {"metadata": msgspec.to_builtins(found.metadata), "spec": found.spec, "status": found.status}
