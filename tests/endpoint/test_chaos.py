"""Store, sinks and subscribers break at random while devices update.

Nobody else is disturbed: each device may be told to come again, and in the end all run what they should.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from devicefw.sim.firmware import build
from dfud.api import (
    App,
    Bus,
    DeploymentChanged,
    DeviceSeen,
    EventSink,
    Firmware,
    Metadata,
    PutApp,
    PutFirmware,
    StoreError,
    Telemetry,
    faults,
)
from dfud.testing.device import HttpDevice
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Type
from tests.endpoint.world import World, start_world

ROUNDS_MAX = 400
OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n" * 50, "1.1", bytes(range(256)) * 40)


class Chaos:
    """Says when what breaks, from one seed; `calm` ends it."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self.calm = False
        self.raised: Counter[str] = Counter()

    def perhaps(self, where: str) -> None:
        if self.calm or self._random.random() >= self._rate:
            return
        self.raised[where] += 1
        raise self._random.choice(
            (
                StoreError(f"chaos in {where}", retryable=True),
                RuntimeError(f"chaos in {where}"),
                RecursionError(f"chaos in {where}"),
                ExceptionGroup(f"chaos in {where}", [KeyError("chaos")]),
            )
        )


class ChaosStore:
    """A store whose calls break, reads also after they are done; but never for the app `calm`."""

    READS = frozenset({"app", "device", "find_alias", "firmware", "firmware_by_digest", "blob"})

    def __init__(self, store: Any, chaos: Chaos) -> None:
        self._store = store
        self._chaos = chaos

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in self.READS and name != "commit":
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            if "calm" in repr(arguments):
                return await found(*arguments, **options)
            self._chaos.perhaps(f"store.{name}")
            result = await found(*arguments, **options)
            if name != "commit":  # what is stored may not be told as an error
                self._chaos.perhaps(f"store.{name}")
            return result

        return call


class ChaosSink(EventSink):
    def __init__(self, name: str, chaos: Chaos) -> None:
        self.name = name
        self._chaos = chaos
        self.taken: Counter[str] = Counter()

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def take(self, telemetry: Telemetry) -> None:
        if telemetry.app != "calm":
            self._chaos.perhaps(f"sink.{self.name}")
        self.taken[telemetry.app] += 1


async def prepare(world: World, app: str, devices: list[str]) -> None:
    await world.store.commit([PutApp(App(Metadata(app), {"firmware": {"version": "1.1"}, "signing": {"mode": "optional"}}))])
    for version, image in (("1.0", OLD), ("1.1", NEW)):
        async with a_blob(world.store, image) as sha256:
            manifest = unsigned(Manifest(app, version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
            firmware = Firmware(app, version, "esp32c3", 1, len(image), sha256, manifest, "raw")
            await world.store.commit([PutFirmware(firmware)])
    for name in devices:
        await world.put(name, {"authentication": {"credentials": [{"pass": "pw"}]}}, app)


class Fleet:
    """Devices that update over HTTP. One that is told to come again, or hung up on, does so; a calm one must never be."""

    def __init__(self, url: str, chaos: Chaos) -> None:
        self._url = url
        self._chaos = chaos
        self.refused: Counter[str] = Counter()
        self.done: list[str] = []

    async def update(self, name: str, app: str) -> None:
        calm = app == "calm"
        async with httpx.AsyncClient(base_url=self._url, auth=(f"{name}@{app}", "pw"), timeout=60) as client:
            device = HttpDevice(client, OLD, "1.0", payload=4160)
            for _ in range(ROUNDS_MAX):
                try:
                    (await client.post("/v1/temp", content=b"1e999")).raise_for_status()
                    last = await device.update()
                except (httpx.HTTPError, AssertionError) as error:
                    if calm:
                        raise AssertionError(f"{name} was disturbed") from error
                    self.refused[type(error).__name__] += 1
                    continue
                if device.image == NEW and last is not None and last.type is Type.SYNC:
                    self.done.append(name)
                    return
                # Its package is being made, or it has to repeat what dfud could not store.
                await trio.sleep(0.01)
        raise AssertionError(f"{name} still runs {device.version}")


async def run(nursery: trio.Nursery, tmp_path: Path, seed: int, *, devices: int, rate: float) -> tuple[Chaos, Fleet]:
    print(f"seed {seed}")  # shown when it fails
    chaos = Chaos(seed, rate)
    chaos.calm = True
    world = await start_world(
        nursery,
        tmp_path,
        lambda store: ChaosStore(store, chaos),
        failures_per_address=10_000,
        failures_per_device=10_000,
    )
    sinks = [ChaosSink("one", chaos), ChaosSink("two", chaos)]
    world.sinks(*sinks)
    for event in (DeploymentChanged, DeviceSeen, Telemetry):
        world.bus.subscribe(event, lambda e: chaos.perhaps("bus"))
    names = [f"d{n}" for n in range(devices)]
    await prepare(world, "wild", names)
    await prepare(world, "calm", ["c0", "c1"])
    transport = HttpTransport(HttpConfig(port=0))
    (url,) = await nursery.start(transport.run, world.endpoint)
    fleet = Fleet(url, chaos)
    await fleet.update("c0", "calm")  # the calm app's package is there before anything breaks
    chaos.calm = False
    with trio.fail_after(300):
        async with trio.open_nursery() as updating:
            for name in names:
                updating.start_soon(fleet.update, name, "wild")
            updating.start_soon(fleet.update, "c1", "calm")
    assert sorted(fleet.done) == sorted([*names, "c0", "c1"])
    assert all(sink.taken["calm"] >= 2 for sink in sinks)
    return chaos, fleet


async def test_all_devices_are_updated_whatever_breaks_around_them(nursery: trio.Nursery, tmp_path: Path) -> None:
    chaos, fleet = await run(nursery, tmp_path, random.randrange(1 << 32), devices=12, rate=0.03)
    assert chaos.raised and fleet.refused, "something did break, and was noticed"
    nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.15])
@pytest.mark.parametrize("number", range(8))
async def test_all_devices_are_updated_in_long_runs(
    nursery: trio.Nursery, tmp_path: Path, number: int, rate: float
) -> None:
    chaos, _ = await run(nursery, tmp_path, random.randrange(1 << 32), devices=60, rate=rate)
    assert sum(chaos.raised.values()) > 10 and faults()
    nursery.cancel_scope.cancel()
