"""The endpoint on a real store, under clocks that the test moves."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import trio
from dfud_local.store import LocalStore

from dfud.api import (
    App,
    Bus,
    Code,
    Credentials,
    Device,
    DeviceChanged,
    DeviceDenied,
    EventSink,
    Metadata,
    PutApp,
    PutDevice,
    Reply,
    Request,
    Store,
    Telemetry,
    Waiting,
    forever,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.endpoint.sinking import Sinks
from dfud.model.credentials import protect
from dfud.wire.messages import Status, encode_status

KEY = b"k" * 32


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


class World:
    """clock: the wall's, in a list; monotonic: the other one. `denied` and `telemetry` are what the bus told."""

    def __init__(
        self,
        endpoint: DeviceEndpoint,
        store: LocalStore,
        bus: Bus,
        packages: Packages,
        clocks: tuple[list[float], list[float]],
    ) -> None:
        self.endpoint = endpoint
        self.store = store
        self.bus = bus
        self.packages = packages
        self.clock, self.monotonic = clocks
        self.denied: list[DeviceDenied] = []
        bus.subscribe(DeviceDenied, self.denied.append)
        self.telemetry: list[Telemetry] = []
        bus.subscribe(Telemetry, self.telemetry.append)

    def let_pass(self, seconds: float) -> None:
        self.clock[0] += seconds
        self.monotonic[0] += seconds

    def sinks(self, *sinks: EventSink, timeout_s: float = 60.0) -> None:
        self.endpoint.sinks = Sinks(sinks, timeout_s)

    async def put(self, name: str, spec: dict[str, Any], app: str = "app1") -> None:
        await self.store.commit([PutDevice(Device(Metadata(name, app), protect(spec, KEY)))])
        self.bus.publish(DeviceChanged(app, name))

    async def post(self, credentials: Credentials, *, channel: str = "temp", **more: Any) -> Reply | Waiting:
        peer = more.pop("peer", "127.0.0.1")
        body = more.pop("body", b"x")
        return await self.endpoint.post(Request("http", peer, credentials, channel, body, **more))

    async def code(self, authorization: bytes, **more: Any) -> Code:
        names = {key: more.pop(key) for key in ("application", "device") if key in more}
        found = await self.post(Credentials(authorization, **names), **more)
        assert isinstance(found, Reply)
        return found.code


async def start_world(nursery: trio.Nursery, tmp_path: Path, wrap: Any = None, **options: Any) -> World:
    """Return a running endpoint with the app app1 and its device dev1, whose password is pw.

    wrap: makes what the endpoint and the controller see of the store; options: of [endpoint].
    """
    bus = Bus()
    local = LocalStore(tmp_path / "state")
    await nursery.start(local.run, bus)
    store: Store = wrap(local) if wrap is not None else local
    packages = Packages(store, tmp_path / "packages", disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)
    await nursery.start(packages.run)
    clock, monotonic = [1_800_000_000.0], [1000.0]
    controller = Controller(store, bus, packages, ControllerConfig(), lambda: clock[0])
    nursery.start_soon(forever, "controller", controller.run)
    config = EndpointConfig(**{"failures_per_address": 20, "failures_per_device": 5, **options})
    endpoint = DeviceEndpoint(
        store,
        bus,
        controller,
        Authenticator(store, bus, config, KEY, lambda: clock[0], lambda: monotonic[0], view=controller.view),
        Commands(store, bus, 2, 60.0, lambda: monotonic[0], lambda: clock[0]),
        config,
        dialects=(),
        sinks=(),
        seen_s=900,
        now=lambda: clock[0],
        clock=lambda: monotonic[0],
    )
    await nursery.start(endpoint.run)
    await local.commit([PutApp(App(Metadata("app1")))])
    found = World(endpoint, local, bus, packages, (clock, monotonic))
    await found.put("dev1", {"authentication": {"credentials": [{"pass": "pw"}]}, "alias": ["nick", "CN=dev1,O=x"]})
    return found


def a_status(**changes: Any) -> bytes:
    return encode_status(Status("1.0", bytes(32), "esp32c3", 2, 4160, 1 << 20, **changes))
