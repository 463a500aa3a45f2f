"""Store, sinks and subscribers break at random while devices update.

Nobody else is disturbed: each device may be told to come again, and in the end all run what they should.
"""

from __future__ import annotations

import base64
import random
import secrets
from pathlib import Path

import pytest
import trio
from dfud_coap.config import CoapConfig
from dfud_coap.transport import CoapTransport
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from dfud.api import (
    App,
    DeploymentChanged,
    DeviceSeen,
    Firmware,
    Metadata,
    PutApp,
    PutFirmware,
    Telemetry,
    faults,
)
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from tests.endpoint.chaos import NEW, OLD, Chaos, ChaosSink, ChaosStore, Fleet, coap_breaks
from tests.endpoint.world import World, start_world


async def prepare(world: World, app: str, devices: list[str]) -> None:
    await world.store.commit([PutApp(App(Metadata(app), {"firmware": {"version": "1.1"}, "signing": {"mode": "optional"}}))])
    for version, image in (("1.0", OLD), ("1.1", NEW)):
        async with a_blob(world.store, image) as sha256:
            manifest = unsigned(Manifest(app, version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
            firmware = Firmware(
                app=app,
                version=version,
                hardware="esp32c3",
                sequence=1,
                size_bytes=len(image),
                sha256=sha256,
                manifest=manifest,
                kind="raw",
            )
            await world.store.commit([PutFirmware(firmware)])
    for name in devices:
        await world.put(name, {"authentication": {"credentials": [{"pass": "pw"}]}}, app)


async def run(
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    *,
    devices: int,
    rate: float,
    breaks: int = 1,
) -> tuple[Chaos, Fleet]:
    """The last third of the devices and one of the calm ones speak CoAP, every other of them with OSCORE.

    Where the devices were quick, one goes on talking until something of CoAP's has broken, and `breaks` things in all.
    """

    def enough() -> bool:
        return any(where.startswith("coap.") for where in chaos.raised) and sum(chaos.raised.values()) >= breaks

    print(f"seed {seed}")  # shown when it fails
    chaos = Chaos(seed, rate)
    coap_breaks(chaos, monkeypatch)
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
    await prepare(world, "calm", ["c0", "c1", "c2", "c3"])
    by_coap = [(name, "wild") for name in names[-devices // 3 :]] + [("c2", "calm"), ("c3", "calm")]
    keys = {name: secrets.token_bytes(16) for name, _ in by_coap[::2]}
    for name, app in by_coap:
        if name in keys:
            psk = {"psk": {"key": base64.b64encode(keys[name]).decode()}}
            await world.put(name, {"authentication": {"credentials": [{"pass": "pw"}, psk]}}, app)
    transport = HttpTransport(HttpConfig(port=0))
    (url,) = await nursery.start(transport.run, world.endpoint)
    coap = CoapTransport(CoapConfig(port=0, plain=True))
    (coap_url,) = await nursery.start(coap.run, world.endpoint)
    fleet = Fleet(url, chaos, {}, coap=coap_url, keys=keys)
    await fleet.update("c0", "calm")  # the calm app's package is there before anything breaks
    chaos.calm = False
    with trio.fail_after(300):
        async with trio.open_nursery() as updating:
            for name in names[: -devices // 3]:
                updating.start_soon(fleet.update, name, "wild")
            updating.start_soon(fleet.update, "c1", "calm")
            for name, app in by_coap:
                updating.start_soon(fleet.update_by_coap, name, app)
        async with trio.open_nursery() as talking:
            if not enough():
                talking.start_soon(fleet.talk_by_coap, by_coap[0][0], "wild")
            while not enough():
                await trio.sleep(0.01)
            talking.cancel_scope.cancel()
        while coap._server is not None and (coap._server._work.count or len(coap._server.waiting)):
            await trio.sleep(0.01)
    assert sorted(fleet.done) == sorted([*names, "c0", "c1", "c2", "c3"])
    chaos.calm = True
    assert world.endpoint.parked == 0 and coap._server is not None
    assert len(coap._server.waiting) == coap._server.waiting.held == coap._server._work.count == 0
    assert all(sink.taken["calm"] >= 2 for sink in sinks)
    return chaos, fleet


async def test_all_devices_are_updated_whatever_breaks_around_them(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos, fleet = await run(nursery, tmp_path, monkeypatch, random.randrange(1 << 32), devices=12, rate=0.03)
    assert chaos.raised and fleet.refused, "something did break, and was noticed"
    assert any(where.startswith("coap.") for where in chaos.raised), chaos.raised
    nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.15])
@pytest.mark.parametrize("number", range(8))
async def test_all_devices_are_updated_in_long_runs(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, rate: float
) -> None:
    chaos, _ = await run(nursery, tmp_path, monkeypatch, random.randrange(1 << 32), devices=60, rate=rate, breaks=11)
    assert sum(chaos.raised.values()) > 10 and faults()
    nursery.cancel_scope.cancel()
