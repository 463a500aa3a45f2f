"""A registry's store in memory that waits at every step until the test says who goes on, and keeps the order of what was stored."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dfud.api import (
    App,
    BlobWriter,
    Change,
    ConflictError,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    Deployment,
    Device,
    DeviceView,
    Firmware,
    HistoryEntry,
    NotFoundError,
    Pruned,
    PutApp,
    PutDevice,
    PutDocument,
    PutFirmware,
    Selector,
    SetFirmware,
    Store,
    StoreError,
)
from dfud.registry.groups import with_firmware
from dfud.registry.naming import aliases_of
from tests.endpoint.scheduled import Gates

T = TypeVar("T")
ANY = Selector()


class Tables(msgspec.Struct):
    apps: dict[str, App] = {}
    devices: dict[tuple[str, str], Device] = {}
    firmware: dict[tuple[str, str], Firmware] = {}
    documents: dict[tuple[str, str], bytes] = {}

    def copy(self) -> Tables:
        return Tables(dict(self.apps), dict(self.devices), dict(self.firmware), dict(self.documents))


class Writer(BlobWriter):
    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._data = b""

    async def write(self, data: bytes) -> None:
        await self._gates.pass_()
        self._data += data

    async def commit(self) -> str:
        await self._gates.pass_()
        return hashlib.sha256(self._data).hexdigest()

    async def aclose(self) -> None:
        self._data = b""


class GatedRegistryStore(Store):
    """Every answer was true at some moment between two gates. committed: the changes of each commit that was done, in order."""

    name = "gated"

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.tables = Tables()
        self.committed: list[Sequence[Change]] = []

    async def run(self, bus: Any, *, task_status: Any = None) -> None:
        raise AssertionError

    async def commit(self, changes: Sequence[Change]) -> None:
        await self._gates.pass_()
        after = self.tables.copy()
        for change in changes:
            _apply(after, change)
        self.tables = after
        self.committed.append(changes)
        await self._gates.pass_()

    async def _read(self, what: Callable[[], T]) -> T:
        await self._gates.pass_()
        found = what()
        await self._gates.pass_()
        return found

    async def app(self, name: str) -> App | None:
        return await self._read(lambda: self.tables.apps.get(name))

    async def apps(self, selector: Selector = ANY, *, limit: int = 1000, offset: int = 0) -> list[App]:
        return await self._read(lambda: list(self.tables.apps.values())[offset : offset + limit])

    async def device(self, app: str, device: str) -> DeviceView | None:
        def view() -> DeviceView | None:
            found = self.tables.devices.get((app, device))
            return DeviceView(found) if found is not None else None

        return await self._read(view)

    async def devices(
        self, app: str, selector: Selector = ANY, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        def views() -> list[DeviceView]:
            named = sorted(self.tables.devices.items())
            found = [d for (place, name), d in named if place == app and name > after]
            return [DeviceView(d) for d in found if selector.matches(d.metadata.labels)][offset : offset + limit]

        return await self._read(views)

    async def count(self, app: str, selector: Selector = ANY) -> int:
        return len(await self.devices(app, selector))

    async def find_alias(self, app: str, alias: str) -> str | None:
        def find() -> str | None:
            if (app, alias) in self.tables.devices:
                return alias
            return next((n for (a, n), d in self.tables.devices.items() if a == app and alias in aliases_of(d.spec)), None)

        return await self._read(find)

    async def firmware(self, app: str, version: str) -> Firmware | None:
        return await self._read(lambda: self.tables.firmware.get((app, version)))

    async def firmwares(self, app: str) -> list[Firmware]:
        return await self._read(lambda: sorted(self.tables.firmware.values(), key=lambda f: -f.sequence))

    async def users_of(self, app: str, version: str) -> list[str]:
        def users() -> list[str]:
            return [n for (_, n), d in self.tables.devices.items() if d.spec.get("firmware", {}).get("version") == version]

        return await self._read(users)

    async def document(self, collection: str, key: str) -> bytes | None:
        return await self._read(lambda: self.tables.documents.get((collection, key)))

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        def found() -> list[tuple[str, bytes]]:
            every = sorted(self.tables.documents.items())
            return [(k, v) for (c, k), v in every if c == collection and k.startswith(prefix) and k > after][:limit]

        return await self._read(found)

    async def new_blob(self) -> BlobWriter:
        await self._gates.pass_()
        return Writer(self._gates)

    # Nobody asks for these here.

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        raise AssertionError

    async def deployment(self, deployment_id: str) -> Deployment | None:
        raise AssertionError

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        raise AssertionError

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        raise AssertionError

    async def prune(self, before_s: float, now_s: float, *, after: str = "", limit: int = 500) -> Pruned:
        raise AssertionError

    async def counts(self, scope: str) -> dict[str, int]:
        raise AssertionError

    def blob(self, sha256: str) -> AbstractAsyncContextManager[Path | None]:
        raise AssertionError

    def backup(self) -> AsyncIterator[bytes]:
        raise AssertionError


def _apply(tables: Tables, change: Change) -> None:
    match change:
        case PutApp(app, expect):
            _check(expect, tables.apps.get(app.name))
            tables.apps[app.name] = app
        case PutDevice(device, expect):
            key = (device.app, device.name)
            _check(expect, tables.devices.get(key))
            for other, held in tables.devices.items():
                if other != key and other[0] == key[0] and aliases_of(held.spec) & aliases_of(device.spec):
                    raise ConflictError("an alias of another device")
            tables.devices[key] = device
        case SetFirmware(app, names, firmware, version):
            for key in [(app, name) for name in names if (app, name) in tables.devices]:
                tables.devices[key] = set_firmware(tables.devices[key], firmware, version)
        case DeleteDevice(app, name, expect):
            if (app, name) not in tables.devices:
                raise NotFoundError("no device")
            _check(expect, tables.devices.get((app, name)))
            del tables.devices[app, name]
        case PutFirmware(firmware, create, expected_firmware):
            held_firmware = tables.firmware.get((firmware.app, firmware.version))
            if expected_firmware is not None and held_firmware != expected_firmware:
                raise ConflictError("changed")
            if create and expected_firmware is None and (firmware.app, firmware.version) in tables.firmware:
                raise ConflictError("exists already")
            tables.firmware[firmware.app, firmware.version] = firmware
        case DeleteFirmware(app, version, unused):
            wishes = [d.spec.get("firmware", {}).get("version") for (place, _), d in tables.devices.items() if place == app]
            if unused and version in wishes:
                raise ConflictError("wanted")
            if tables.firmware.pop((app, version), None) is None:
                raise NotFoundError("no firmware")
        case PutDocument(collection, key, value, create, expected):
            held_value = tables.documents.get((collection, key))
            if (create and held_value is not None) or (expected is not None and held_value != expected):
                raise ConflictError("changed")
            tables.documents[collection, key] = value
        case DeleteDocument(collection, key):
            if tables.documents.pop((collection, key), None) is None:
                raise NotFoundError("no document")
        case _:
            raise StoreError(f"not expected here: {change!r}")


def set_firmware(device: Device, firmware: dict[str, Any] | None, version: str) -> Device:
    metadata = msgspec.structs.replace(
        device.metadata, generation=device.metadata.generation + 1, resource_version=version
    )
    return Device(metadata, with_firmware(device.spec, firmware))


def _check(expect: str | None, held: App | Device | None) -> None:
    if expect is None:
        return
    found = held.metadata.resource_version if held is not None else ""
    if expect != found:
        if expect and held is None:
            raise NotFoundError("it is gone")
        raise ConflictError("changed since it was read")
