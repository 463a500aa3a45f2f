"""A random walk: a store does the same as a few dictionaries, also when it is closed and opened in between. Part of StoreConformance.

The model knows the rules and nothing of the store; a difference is printed with the seed and the steps that led to it.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import trio

from dfud.api import (
    BlobWriter,
    Bus,
    Capability,
    Change,
    DeleteApp,
    DeleteDevice,
    DeleteFirmware,
    DfudError,
    PutApp,
    PutDevice,
    PutFirmware,
    Store,
)
from dfud.testing.store_faults import FaultConformance
from dfud.testing.store_values import a_device, a_firmware, an_app, image_of, with_image

STEPS = 250
APPS = ("app1", "app2")
NAMES = ("n1", "n2", "n3")
IMAGES = (b"img1", b"img2", b"img3")


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


class Model:
    """What a store should hold: devices of apps, and the image of each firmware. names_stay: those of deleted firmware stay taken."""

    def __init__(self, *, names_stay: bool) -> None:
        self.names_stay = names_stay
        self.gone: set[tuple[str, str]] = set()
        self.devices: dict[str, set[str]] = {}
        self.firmware: dict[str, dict[str, frozenset[str]]] = {}
        self.held: list[str] = []
        self.strays: set[str] = set()

    def reopen(self) -> None:
        """What was not closed is let go of with the store. Without any firmware a store may keep its images: see operations.md."""
        known = any(self.firmware.values())
        self.strays = set() if known else self.strays | set(self.held)
        self.held.clear()

    def hold(self, sha256: str) -> None:
        self.held.append(sha256)
        self.strays.discard(sha256)  # needed again, so it goes when it is let go of

    def images(self) -> set[str]:
        return {sha for firmwares in self.firmware.values() for shas in firmwares.values() for sha in shas} | set(
            self.held
        )

    def apply(self, change: Change) -> bool:
        """Take a change over; return whether a store has to take it, too."""
        match change:
            case PutApp(app):
                self.devices.setdefault(app.name, set())
                self.firmware.setdefault(app.name, {})
                return True
            case DeleteApp(app):
                return self.devices.pop(app, None) is not None and self.firmware.pop(app, None) is not None
            case PutDevice(device):
                if device.app in self.devices:
                    self.devices[device.app].add(device.name)
                return device.app in self.devices
            case DeleteDevice(app, device):
                there = device in self.devices.get(app, ())
                if there:
                    self.devices[app].discard(device)
                return there
            case PutFirmware(firmware, create):
                known = self.firmware.get(firmware.app)
                stored = firmware.digests <= self.images() | self.strays
                taken = firmware.version in (known or ()) or (firmware.app, firmware.version) in self.gone
                if known is None or not stored or (create and taken):
                    return False
                self.strays -= firmware.digests
                known[firmware.version] = firmware.digests
                return True
            case DeleteFirmware(app, version):
                there = self.firmware.get(app, {}).pop(version, None) is not None
                if there and self.names_stay:
                    self.gone.add((app, version))
                return there
        raise AssertionError(change)


class WalkConformance(FaultConformance):
    async def test_a_random_walk_ends_where_the_model_does(self, tmp_path: Path) -> None:
        seed = int.from_bytes(os.urandom(4), "big")
        names_stay = Capability.DELETE_FIRMWARE not in self.new_store(tmp_path / "asked").capabilities
        rng, model, steps = random.Random(seed), Model(names_stay=names_stay), [f"seed {seed}"]
        while len(steps) < STEPS:
            async with trio.open_nursery() as nursery:
                store = self.new_store(tmp_path)
                await nursery.start(store.run, Bus())
                model.strays = {s for s in model.strays if await image_of(store, s) is not None}
                await self._compare(store, model, steps)
                writers: list[tuple[BlobWriter, str]] = []
                for _ in range(rng.randrange(STEPS // 4)):
                    await self._step(rng, store, model, writers, steps)
                    await self._compare(store, model, steps)
                if rng.random() < 0.5:
                    for writer, _ in writers:
                        await writer.aclose()
                    model.held.clear()
                model.reopen()
                steps.append("reopen")
                nursery.cancel_scope.cancel()

    async def _step(
        self, rng: random.Random, store: Store, model: Model, writers: list[tuple[BlobWriter, str]], steps: list[str]
    ) -> None:
        app, name, image = rng.choice(APPS), rng.choice(NAMES), rng.choice(IMAGES)
        match rng.randrange(9):
            case 0:
                writer = await store.new_blob()
                await writer.write(image)
                writers.append((writer, await writer.commit()))
                model.hold(digest(image))
                steps.append(f"hold {image!r}")
            case 1 if writers:
                writer, sha256 = writers.pop(rng.randrange(len(writers)))
                await writer.aclose()
                model.held.remove(sha256)
                steps.append(f"let go of {sha256[:8]}")
            case _:
                create = rng.random() < 0.5
                firmware = a_firmware(digest(image), name, app=app)
                if Capability.SEVERAL_IMAGES in store.capabilities and rng.random() < 0.3:
                    firmware = with_image(firmware, digest(rng.choice(IMAGES)))
                one: list[Change] = [
                    PutApp(an_app(app)),
                    PutDevice(a_device(name, app)),
                    DeleteDevice(app, name),
                    PutFirmware(firmware, create=create),
                    PutFirmware(firmware, create=create),
                    DeleteFirmware(app, name),
                    DeleteApp(app),
                ]
                change = rng.choices(one, weights=[3, 4, 2, 4, 4, 3, 1])[0]
                steps.append(repr(change)[:120])
                expected = model.apply(change)
                taken = True
                try:
                    await store.commit([change])
                except DfudError as error:
                    taken = False
                    steps.append(str(error))
                assert taken == expected, steps

    async def _compare(self, store: Store, model: Model, steps: list[str]) -> None:
        assert {a.name for a in await store.apps()} == set(model.devices), steps
        for app in APPS:
            assert {v.device.name for v in await store.devices(app)} == model.devices.get(app, set()), steps
            found = {f.version: f.digests for f in await store.firmwares(app)}
            assert found == model.firmware.get(app, {}), steps
        for image in IMAGES:
            stored = await image_of(store, digest(image))
            if digest(image) in model.images():
                assert stored == image, steps
            elif digest(image) not in model.strays:
                assert stored is None, steps
