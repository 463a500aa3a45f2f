"""An endpoint with all that is behind it and no sockets, on a local store: for profiles of what a device costs."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from dfud_local.store import LocalStore

from dfud.api import (
    App,
    Bus,
    Credentials,
    Device,
    Firmware,
    Metadata,
    PutApp,
    PutDevice,
    PutFirmware,
    Request,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.model.credentials import protect
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Status, encode_status

KEY = bytes(32)
APP = "a"
OLD, NEW = b"old" * 2000, random.Random(1).randbytes(20_000)
PAGE = 500


class Inside:
    """store, bus, packages, controller, endpoint: as the daemon has them, with its defaults."""

    def __init__(self, store: LocalStore, bus: Bus, packages: Packages) -> None:
        self.store = store
        self.bus = bus
        self.packages = packages
        self.controller = Controller(store, bus, packages, ControllerConfig(), time.time)
        config = EndpointConfig()
        self.authenticator = Authenticator(store, bus, config, KEY, time.time, view=self.controller.view)
        self.endpoint = DeviceEndpoint(
            store,
            bus,
            self.controller,
            self.authenticator,
            Commands(store, bus, 8, 60.0, trio.current_time),
            config,
            dialects=(),
            sinks=(),
            seen_s=900,
            now=time.time,
        )


@asynccontextmanager
async def inside(directory: Path) -> AsyncIterator[Inside]:
    """Run one on a state directory; what it has in memory ends with the block."""
    async with trio.open_nursery() as outer:
        bus = Bus()
        store = LocalStore(directory / "state")
        await outer.start(store.run, bus)
        async with trio.open_nursery() as nursery:
            packages = Packages(store, directory / "packages", disk_bytes=1 << 30, memory_bytes=1 << 26, workers=1)
            await nursery.start(packages.run)
            one = Inside(store, bus, packages)
            await nursery.start(one.controller.run)
            await nursery.start(one.endpoint.run)
            yield one
            nursery.cancel_scope.cancel()
        outer.cancel_scope.cancel()


async def fill(store: LocalStore, count: int) -> None:
    """Store an app with two versions and `count` devices, each with a password of its own."""
    await store.commit([PutApp(App(Metadata(APP), {"signing": {"mode": "optional"}}))])
    for first in range(0, count, PAGE):
        page = range(first, min(count, first + PAGE))
        await store.commit([PutDevice(_device(number)) for number in page])
    for version, image in (("1.0", OLD), ("1.1", NEW)):
        async with a_blob(store, image) as sha256:
            manifest = unsigned(Manifest(APP, version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
            firmware = Firmware(
                app=APP,
                version=version,
                hardware="esp32c3",
                sequence=1,
                size_bytes=len(image),
                sha256=sha256,
                manifest=manifest,
                kind="raw",
            )
            await store.commit([PutFirmware(firmware)])


def _device(number: int) -> Device:
    metadata = Metadata(
        name=f"d{number}",
        application=APP,
        uid=f"00000000-0000-4000-8000-{number:012d}",
        creation_timestamp="2026-01-01T00:00:00Z",
        generation=1,
        resource_version="1",
        labels={"group": f"g{number % 10}"},
    )
    return Device(metadata, protect({"authentication": {"credentials": [{"pass": f"pw{number}"}]}}, KEY))


def body(**changes: object) -> bytes:
    status = Status("1.0", hashlib.sha256(OLD).digest(), "esp32c3", 2, 16384, 1 << 20, **changes)  # type: ignore[arg-type]
    return encode_status(status)


def request(number: int, said: bytes, timeout_s: float = 0.0) -> Request:
    credentials = Credentials(b"Basic " + base64.b64encode(f"d{number}@{APP}:pw{number}".encode()))
    return Request("http", "127.0.0.1", credentials, "dfu", said, timeout_s=timeout_s)
