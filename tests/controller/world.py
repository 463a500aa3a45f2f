"""A controller in front of records in memory, with a chance to do something at every await of them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from dfud.api import (
    Actual,
    AddCounts,
    App,
    AppChanged,
    BlobWriter,
    Bus,
    Change,
    ConflictError,
    DeleteCounts,
    DeleteDocument,
    Deployment,
    DeploymentChanged,
    Device,
    DeviceChanged,
    DeviceView,
    ExpectDevice,
    Firmware,
    FirmwareChanged,
    HistoryEntry,
    Metadata,
    NotFoundError,
    Pruned,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    Selector,
    Store,
    StoreError,
    TrimDocuments,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.controller.sending import Order
from dfud.model.firmware import Kind as ImageKind
from dfud.package.file import PackageFile, make
from dfud.wire.manifest import FLAG_APP, Manifest, unsigned
from dfud.wire.messages import Command, Kind, Status

T0 = 1_800_000_000.0
ANY = Selector()


class Records(Store):
    """Keeps records in dictionaries. `pause` is awaited before and after everything; `broken`: commits fail."""

    name = "records"

    def __init__(self) -> None:
        self.apps_: dict[str, App] = {}
        self.devices_: dict[tuple[str, str], Device] = {}
        self.firmwares_: dict[tuple[str, str], Firmware] = {}
        self.actuals: dict[tuple[str, str], Actual] = {}
        self.deployments_: dict[str, Deployment] = {}
        self.sequences: dict[tuple[str, str], int] = {}
        self.of_device: dict[tuple[str, str], dict[str, Deployment]] = {}
        self.counts_: dict[str, dict[str, int]] = {}
        self.entries: list[HistoryEntry] = []
        self.documents_: dict[tuple[str, str], bytes] = {}
        self.images: dict[str, Path] = {}
        self.commits = 0
        self.broken = False
        self.pause: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def commit(self, changes: Sequence[Change]) -> None:
        await self.pause()
        if self.broken:
            raise StoreError("broken", retryable=True)
        self.commits += 1
        for change in changes:
            match change:
                case PutApp(app, _):
                    self.apps_[app.name] = app
                case PutDevice(device, expect):
                    held = self.devices_.get((device.app, device.name))
                    if expect and (held is None or held.metadata.resource_version != expect):
                        raise ConflictError("changed")
                    self.devices_[device.app, device.name] = device
                case PutFirmware(firmware, _):
                    self.firmwares_[firmware.app, firmware.version] = firmware
                case ExpectDevice(app_name, name, sequence):
                    if self.sequences.get((app_name, name), 0) != sequence:
                        raise ConflictError("changed")
                case PutActual(actual):
                    self._raise(actual.app, actual.device)
                    self.actuals[actual.app, actual.device] = actual
                case PutDeployment(deployment, entry):
                    if (deployment.app, deployment.device) not in self.devices_:
                        raise NotFoundError("no device")
                    self._raise(deployment.app, deployment.device)
                    self.deployments_[deployment.id] = deployment
                    self.of_device.setdefault((deployment.app, deployment.device), {})[deployment.id] = deployment
                    self.entries += [entry] if entry is not None else []
                case PutDocument(collection, key, value, create, expect_value):
                    held_value = self.documents_.get((collection, key))
                    if (create and held_value is not None) or (expect_value is not None and held_value != expect_value):
                        raise ConflictError("changed")
                    self.documents_[collection, key] = value
                case DeleteDocument(collection, key):
                    if (collection, key) not in self.documents_:
                        raise NotFoundError(f"no {collection} {key}")
                    del self.documents_[collection, key]
                case TrimDocuments(collection, keep):
                    keys = sorted(key for place, key in self.documents_ if place == collection)
                    for key in keys[: max(0, len(keys) - keep)]:
                        del self.documents_[collection, key]
                case AddCounts(scope, add):
                    counts = self.counts_.setdefault(scope, {})
                    for name, number in add.items():
                        counts[name] = counts.get(name, 0) + number
                case DeleteCounts(scope):
                    self.counts_.pop(scope, None)
                case _:
                    raise AssertionError(change)
        await self.pause()

    def _raise(self, app: str, device: str) -> None:
        self.sequences[app, device] = self.sequences.get((app, device), 0) + 1

    async def _read(self, found: Callable[[], Any]) -> Any:
        await self.pause()
        value = found()
        await self.pause()
        return value

    async def app(self, name: str) -> App | None:
        found: App | None = await self._read(lambda: self.apps_.get(name))
        return found

    async def apps(self, selector: Selector = ANY, *, limit: int = 1000, offset: int = 0) -> list[App]:
        return list(self.apps_.values())[offset : offset + limit]

    def newest(self, app: str, device: str) -> Deployment | None:
        return max(self.of_device.get((app, device), {}).values(), key=lambda d: d.number, default=None)

    async def device(self, app: str, device: str) -> DeviceView | None:
        made: DeviceView | None = await self._read(lambda: self._view(app, device))
        return made

    def _view(self, app: str, device: str) -> DeviceView | None:
        found, key = self.devices_.get((app, device)), (app, device)
        if found is None:
            return None
        return DeviceView(found, self.actuals.get(key), self.newest(app, device), self.sequences.get(key, 0))

    async def devices(
        self, app: str, selector: Selector = ANY, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        names = sorted(
            name
            for (place, name), device in self.devices_.items()
            if place == app and name > after and selector.matches(device.metadata.labels)
        )
        found: list[DeviceView | None] = await self._read(
            lambda: [self._view(app, name) for name in names[offset : offset + limit]]
        )
        return [view for view in found if view is not None]

    async def count(self, app: str, selector: Selector = ANY) -> int:
        every = self.devices_.items()
        return sum(place == app and selector.matches(device.metadata.labels) for (place, _), device in every)

    async def find_alias(self, app: str, alias: str) -> str | None:
        return alias if (app, alias) in self.devices_ else None

    async def firmware(self, app: str, version: str) -> Firmware | None:
        found: Firmware | None = await self._read(lambda: self.firmwares_.get((app, version)))
        return found

    async def firmwares(self, app: str) -> list[Firmware]:
        return [f for (place, _), f in self.firmwares_.items() if place == app]

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        every = self.firmwares_.values()
        found: Firmware | None = await self._read(
            lambda: next((f for f in every if f.app == app and sha256 in f.digests), None)
        )
        return found

    async def deployment(self, deployment_id: str) -> Deployment | None:
        return self.deployments_.get(deployment_id)

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        await self.pause()
        return sorted(self.of_device.get((app, device), {}).values(), key=lambda d: -d.number)[:limit]

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        own = [e for e in self.entries if (e.app, e.device) == (app, device)]
        return [msgspec.structs.replace(e, number=n) for n, e in enumerate(own, 1)][::-1][:limit]

    async def users_of(self, app: str, version: str) -> list[str]:
        return []

    async def document(self, collection: str, key: str) -> bytes | None:
        return self.documents_.get((collection, key))

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        every = sorted(self.documents_.items())
        return [(k, v) for (c, k), v in every if c == collection and k.startswith(prefix) and k > after][:limit]

    async def prune(self, before_s: float, now_s: float, *, after: str = "", limit: int = 500) -> Pruned:
        raise AssertionError

    async def counts(self, scope: str) -> dict[str, int]:
        return {name: number for name, number in self.counts_.get(scope, {}).items() if number}

    async def new_blob(self) -> BlobWriter:
        raise StoreError("only records are kept here")

    @asynccontextmanager
    async def blob(self, sha256: str) -> AsyncIterator[Path | None]:
        await self.pause()
        yield self.images.get(sha256)

    async def delete_blob(self, sha256: str) -> None:
        self.images.pop(sha256, None)

    def backup(self) -> AsyncIterator[bytes]:
        raise StoreError("only records are kept here")


class QuickPackages(Packages):
    """Makes a package of ten chunks as soon as `gate` lets it; counts what is made."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Path("/nonexistent"), disk_bytes=0, memory_bytes=0, workers=1)
        self.gate: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.fault: StoreError | None = None
        self.ordered: list[Order] = []

    def ready(self, order: Order) -> PackageFile | None:
        return None

    async def get(self, order: Order, device: tuple[str, str]) -> PackageFile:
        await self.gate()
        if self.fault is not None:
            raise self.fault
        self.ordered.append(order)
        chunks = [f"{order.target.sha256} {number}".encode() for number in range(10)]
        return make(Kind.FULL, order.target.size_bytes, bytes.fromhex(order.target.sha256), None, chunks)


def digest(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()


def a_firmware(
    version: str,
    *,
    hardware: str = "esp32c3",
    size: int = 1000,
    manifest: bytes = b"",
    kind: ImageKind = "esp-image",
    sequence: int = 1,
    beside: tuple[int, int] | None = None,
) -> Firmware:
    sha256 = digest(version)
    flags = FLAG_APP if kind == "app" else 0
    made = unsigned(
        Manifest(
            app="app",
            version=version,
            hardware=hardware,
            sequence=sequence,
            size=size,
            sha256=bytes.fromhex(sha256),
            flags=flags,
            beside=beside,
        )
    )
    return Firmware(
        app="app",
        version=version,
        hardware=hardware,
        sequence=sequence,
        size_bytes=size,
        sha256=sha256,
        manifest=manifest or made,
        kind=kind,
    )


def a_status(version: str = "1.0", **changes: Any) -> Status:
    said = Status(version, bytes.fromhex(digest(version)), "esp32c3", 2, 4160, 100_000)
    return msgspec.structs.replace(said, **changes)


class World:
    """One app that takes unsigned firmware, device `dev`, versions 1.0 to 1.3; `wall` is the clock that people set."""

    def __init__(self, **policy: Any) -> None:
        self.store = Records()
        self.bus = Bus()
        self.packages = QuickPackages(self.store)
        self.policy = ControllerConfig(**{"retry_s": 10, "retry_max_s": 100, **policy})
        self.wall = T0
        self.told: list[DeploymentChanged] = []
        self.bus.subscribe(DeploymentChanged, self.told.append)
        self._heard: list[tuple[type[Any], Any]] = []
        self.controller = self.restarted()
        self.store.apps_["app"] = App(Metadata("app"), {"signing": {"mode": "optional"}})
        self.store.devices_["app", "dev"] = Device(Metadata("dev", "app", resource_version="1"))
        for version in ("1.0", "1.1", "1.2", "1.3"):
            self.store.firmwares_["app", version] = a_firmware(version)

    def restarted(self) -> Controller:
        """As after a restart: nothing is remembered but what is stored, and who has ended hears nothing."""
        for kind, callback in self._heard:
            self.bus._callbacks[kind].remove(callback)
        others = {kind: list(callbacks) for kind, callbacks in self.bus._callbacks.items()}
        self.controller = Controller(
            self.store, self.bus, self.packages, self.policy, lambda: self.wall + trio.current_time()
        )
        self._heard = [(k, c) for k, callbacks in self.bus._callbacks.items() for c in callbacks if c not in others.get(k, ())]
        return self.controller

    def want(self, version: str | None, **more: Any) -> None:
        spec = {"firmware": {"version": version, **more}} if version is not None else {}
        self.put_device(spec)

    def put_device(self, spec: dict[str, Any]) -> None:
        held = self.store.devices_["app", "dev"]
        self.store.devices_["app", "dev"] = msgspec.structs.replace(held, spec=spec)
        self.bus.publish(DeviceChanged("app", "dev"))

    def put_app(self, spec: dict[str, Any]) -> None:
        self.store.apps_["app"] = App(Metadata("app"), spec)
        self.bus.publish(AppChanged("app"))

    def publish(self, firmware: Firmware) -> None:
        self.store.firmwares_["app", firmware.version] = firmware
        self.bus.publish(FirmwareChanged(firmware))

    def withdraw(self, version: str) -> None:
        gone = self.store.firmwares_.pop(("app", version), None)
        if gone is not None:
            self.bus.publish(FirmwareChanged(gone, deleted=True))

    @property
    def deployment(self) -> Deployment:
        found = self.store.newest("app", "dev")
        assert found is not None
        return found

    async def poll(self, version: str = "1.0", *, patience_s: float = 1.0, **said: Any) -> Command:
        return await self.controller.status("app", "dev", a_status(version, **said), "http", patience_s=patience_s)
