"""Two processes on one store, both in this one: each with its own bus; what one commits is told to the other unless it is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import trio
from dfud_local.store import LocalStore

from dfud.api import (
    AppChanged,
    Bus,
    Capability,
    Change,
    DeleteApp,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    DeviceChanged,
    DeviceStateChanged,
    DocumentChanged,
    FirmwareChanged,
    Missed,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    SetFirmware,
    Store,
    Told,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.endpoint import DeviceEndpoint
from tests.endpoint.world import KEY


class Half:
    """One process' view of the store that both have. A Store for whoever calls it."""

    def __init__(self, inner: LocalStore, pair: Pair, bus: Bus) -> None:
        self._inner = inner
        self._pair = pair
        self.bus = bus
        self.capabilities = inner.capabilities | {Capability.SHARED}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, changes: Sequence[Change]) -> None:
        events = [event for change in changes for event in await self._events(change)]
        await self._inner.commit(changes)
        self._pair.say(self, events)

    async def tell(self, topic: str, body: bytes) -> None:
        self._pair.say(self, [Told(topic, body)])

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        async with self._pair.leads.setdefault(name, trio.Lock()):
            yield

    async def _events(self, change: Change) -> list[Any]:
        match change:
            case PutApp(app):
                return [AppChanged(app.name)]
            case DeleteApp(app):
                return [AppChanged(app, deleted=True)]
            case PutDevice(device):
                return [DeviceChanged(device.app, device.name)]
            case SetFirmware(app, devices):
                return [DeviceChanged(app, name) for name in devices]
            case DeleteDevice(app, device):
                return [DeviceChanged(app, device, deleted=True)]
            case PutFirmware(firmware):
                return [FirmwareChanged(firmware)]
            case DeleteFirmware(app, version):
                found = await self._inner.firmware(app, version)
                return [FirmwareChanged(found, deleted=True)] if found is not None else []
            case PutActual(actual, tell):
                return [DeviceStateChanged(actual.app, actual.device)] if tell else []
            case PutDeployment(deployment):
                return [DeviceStateChanged(deployment.app, deployment.device)]
            case PutDocument(collection, key, tell=True) | DeleteDocument(collection, key, tell=True):
                return [DocumentChanged(collection, key)]
        return []


class Process:
    """The endpoint and the controller of one process."""

    def __init__(self, half: Half, packages: Packages, clock: list[float], **options: Any) -> None:
        self.half, self.bus = half, half.bus
        store = self.store = cast(Store, half)
        self.packages = packages
        policy = {key: options.pop(key) for key in ("history_per_hour",) if key in options}
        self.controller = Controller(store, self.bus, packages, ControllerConfig(**policy), lambda: clock[0])
        config = EndpointConfig(**options)
        view = self.controller.view
        self.auth = Authenticator(store, self.bus, config, KEY, lambda: clock[0], trio.current_time, view=view)
        self.endpoint = DeviceEndpoint(
            store,
            self.bus,
            self.controller,
            self.auth,
            Commands(store, self.bus, 2, 60.0, trio.current_time, lambda: clock[0]),
            config,
            dialects=(),
            sinks=(),
            seen_s=900,
            now=lambda: clock[0],
            clock=trio.current_time,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.packages.run)
            await nursery.start(self.controller.run)
            await nursery.start(self.endpoint.run)
            nursery.start_soon(self.auth.run)
            task_status.started()

    async def change(self, *changes: Change) -> None:
        """Commit as the registry does: and tell this process, too."""
        events = [event for change in changes for event in await self.half._events(change)]
        await self.store.commit(changes)
        for event in events:
            if not isinstance(event, (DocumentChanged, DeviceStateChanged)):
                self.bus.publish(event)


class Pair:
    """lost: what one commits is not told to the other now. clock: the wall's, of both."""

    def __init__(self, inner: LocalStore, path: Path, **options: Any) -> None:
        self.lost = False
        self.leads: dict[str, trio.Lock] = {}
        self.clock = [1_800_000_000.0]
        self.halves = [Half(inner, self, Bus()) for _ in range(2)]
        self.one, self.other = (
            Process(
                half,
                Packages(cast(Store, half), path, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1),
                self.clock,
                **options,
            )
            for half in self.halves
        )

    def say(self, speaker: Half, events: Sequence[Any]) -> None:
        for half in self.halves:
            if half is not speaker and not self.lost:
                for event in events:
                    half.bus.publish(event)

    def hear_again(self) -> None:
        """What a store publishes when it hears again what the others commit."""
        self.lost = False
        for half in self.halves:
            half.bus.publish(Missed())


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[Pair]:
    async with trio.open_nursery() as nursery:
        inner = LocalStore(directory / "state")
        await nursery.start(inner.run, Bus())
        pair = Pair(inner, directory / "packages", **options)
        for process in (pair.one, pair.other):
            await nursery.start(process.run)
        yield pair
        nursery.cancel_scope.cancel()
