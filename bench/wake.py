"""Where the time goes when a change concerns many parked devices: `python -m bench.wake` profiles the endpoint without sockets."""

from __future__ import annotations

import base64
import cProfile
import hashlib
import pstats
import random
import tempfile
import time
from pathlib import Path

import click
import trio
from dfud_local.store import LocalStore

from dfud.api import (
    App,
    AppChanged,
    Bus,
    Credentials,
    Device,
    Firmware,
    Metadata,
    PutApp,
    PutDevice,
    PutFirmware,
    Reply,
    Request,
    Waiting,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.controller.sending import Order
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.model.credentials import protect
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Status, encode_status

KEY = bytes(32)
OLD, NEW = b"old" * 2000, random.Random(1).randbytes(20_000)


async def main(count: int, profiled: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            bus = Bus()
            store = LocalStore(Path(directory) / "state")
            await nursery.start(store.run, bus)
            packages = Packages(store, Path(directory) / "packages", disk_bytes=1 << 30, memory_bytes=1 << 26, workers=1)
            await nursery.start(packages.run)
            controller = Controller(store, bus, packages, ControllerConfig(), time.time)
            await nursery.start(controller.run)
            config = EndpointConfig()
            endpoint = DeviceEndpoint(
                store,
                bus,
                controller,
                Authenticator(store, bus, config, KEY, time.time),
                Commands(store, bus, 8, 60.0, trio.current_time),
                config,
                dialects=(),
                sinks=(),
                seen_s=900,
                now=time.time,
            )
            await nursery.start(endpoint.run)
            await store.commit([PutApp(App(Metadata("a"), {"signing": {"mode": "optional"}}))])
            spec = protect({"authentication": {"credentials": [{"pass": "pw"}]}}, KEY)
            for first in range(0, count, 500):
                await store.commit([PutDevice(Device(Metadata(f"d{n}", "a"), spec)) for n in range(first, min(count, first + 500))])
            for version, image in (("1.0", OLD), ("1.1", NEW)):
                async with a_blob(store, image) as sha256:
                    manifest = unsigned(Manifest("a", version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
                    await store.commit(
                        [
                            PutFirmware(
                                Firmware(
                                    app="a",
                                    version=version,
                                    hardware="esp32c3",
                                    sequence=1,
                                    size_bytes=len(image),
                                    sha256=sha256,
                                    manifest=manifest,
                                    kind="raw",
                                )
                            )
                        ]
                    )
            body = encode_status(Status("1.0", hashlib.sha256(OLD).digest(), "esp32c3", 2, 16384, 1 << 20))
            woken: list[Reply] = []
            for n in range(count):
                credentials = Credentials(b"Basic " + base64.b64encode(f"d{n}@a:pw".encode()))
                found = await endpoint.post(Request("http", "127.0.0.1", credentials, "dfu", body, "", 250.0))
                assert isinstance(found, Waiting)
                found.listen(woken.append)
            target = await store.firmware("a", "1.1")
            assert target is not None
            await packages.get(Order(target, None, 2, 16384), ("a", "d0"))
            await store.commit([PutApp(App(Metadata("a"), {"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}}))])
            profile = cProfile.Profile()
            start, cpu, all_s = time.perf_counter(), time.thread_time(), time.process_time()
            if profiled:
                profile.enable()
            bus.publish(AppChanged("a"))
            while len(woken) < count:
                await trio.sleep(0.001)
            profile.disable()
            took, cpu, all_s = time.perf_counter() - start, time.thread_time() - cpu, time.process_time() - all_s
            nursery.cancel_scope.cancel()
    each, here = all_s / count * 1e6, cpu / count * 1e6
    print(f"{count} woken, decided and stored in {took:.2f} s; CPU each: {each:.0f} us, of this thread {here:.0f}")
    if profiled:
        pstats.Stats(profile).sort_stats("cumulative").print_stats("dfud|trio|sqlite|msgspec|hashlib", 28)


@click.command()
@click.option("--devices", default=9000, show_default=True)
@click.option("--profile/--no-profile", default=True, show_default=True)
def command(devices: int, profile: bool) -> None:
    """Profile the waking of parked devices."""
    trio.run(main, devices, profile)


if __name__ == "__main__":
    command()
