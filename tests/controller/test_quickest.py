"""Each device gets the package that is the quickest for it, or on a metered link the smallest; and is told why by explain."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from dfud.api import Device, Metadata
from dfud.controller.keeping import Asked
from dfud.controller.paces import KINDS_MAX
from dfud.controller.packages import Packages
from dfud.controller.sending import Order
from dfud.model.quickest import Candidate, Measured
from dfud.package.file import make, write_package
from dfud.package.made import write_made
from dfud.registry.status import deployment_json
from dfud.wire.messages import Command, Kind, Phase, Progress, Took, Type
from tests.controller.world import Records, World, a_status

MAPPED, FULL = (Kind.MAPPED, 46_500, 205_000), (Kind.FULL, 94_600, 26_000)


class Large(Packages):
    """Of every change two packages are made: a mapped delta that takes long, and a full package."""

    def __init__(self, store: Records, path: Path) -> None:
        super().__init__(store, path, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)
        self.keys: list[str] = []
        self.works = (MAPPED[2], FULL[2])

    async def _work(self, key: str, order: Order) -> None:
        self.keys.append(key)
        self._path.mkdir(exist_ok=True)
        made = []
        for (kind, size, _), work in zip((MAPPED, FULL), self.works, strict=True):
            data = random.Random(f"{key} {kind}").randbytes(size)
            chunks = [data[at : at + 6144] for at in range(0, size, 6144)]
            package = make(kind, order.target.size_bytes, bytes.fromhex(order.target.sha256), None, chunks)
            (self._path / f"{package.id.hex()}.dfup").write_bytes(write_package(package))
            made.append(Candidate(package.id.hex(), int(kind), size, work))
        (self._path / f"{key}.key").write_bytes(write_made(made))


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    found = World()
    found.packages = packages = Large(found.store, tmp_path / "packages")  # type: ignore[assignment]
    await nursery.start(packages.run)
    found.restarted()
    found.want("1.1")
    yield found
    nursery.cancel_scope.cancel()


async def fetched(world: World, command: Command, took: Took | None, version: str = "1.0") -> Command:
    """Say that a package is written, then that it runs and stays."""
    written = Progress(command.package, command.chunks, Phase.WRITTEN, took)
    again = await world.poll(version, kinds=14, progress=written)
    await world.poll(command.version, kinds=14)
    return again


async def explained(world: World) -> str:
    found = await world.controller.insight.explain("app", "dev")
    return " ".join(found.sentences)


async def test_what_transfers_show_decides_about_the_next_one(world: World) -> None:
    command = await world.poll(kinds=14)
    assert command.kind == Kind.FULL, "at an assumed rate: 31 s, and 207"
    assert "It is sent a full package: 31 s (94600 bytes), estimated" in await explained(world)
    assert "with a link of 20000 bytes a second, assumed" in await explained(world)
    assert "mapped delta 207 s (46500 bytes)" in await explained(world)
    shown = deployment_json(world.deployment)["package"]
    assert (shown["kind"], shown["why"], shown["seconds"]) == ("full package", "quickest", 31)
    # The link is slow, and it decodes in no time.
    await fetched(world, command, Took(94_600, 500_000, 520))
    assert world.store.actuals["app", "dev"].measured == Measured(180, 20)
    world.restarted()
    world.want("1.2")
    command = await world.poll("1.1", kinds=14)
    assert command.kind == Kind.MAPPED
    assert "a link of 180 bytes a second, as its transfers have shown" in await explained(world)


async def test_what_is_told_of_a_link_goes_before_what_it_shows(world: World) -> None:
    world.put_app({"signing": {"mode": "optional"}, "link": {"metered": True}})
    assert (await world.poll(kinds=14)).kind == Kind.MAPPED
    assert "the smallest, for its link is metered" in await explained(world)
    world.put_device({"firmware": {"version": "1.2"}, "link": {"bytesPerSecond": 1_000_000}})
    assert (await world.poll(kinds=14)).kind == Kind.FULL
    assert "1000000 bytes a second, as spec.link says" in await explained(world)


async def test_a_transfer_costs_no_commit_more_for_what_it_shows(world: World) -> None:
    async def commits(took: Took | None, version: str, start: str) -> int:
        world.want(version)
        command = await world.poll(start, kinds=14)
        before = world.store.commits
        for number in range(5):
            progress = Progress(command.package, 0, Phase.FETCHING, took and Took(number * 100, number, number))
            await world.poll(start, kinds=14, progress=progress)
        for _ in range(3):  # it repeats it until it is told to switch
            await fetched(world, command, took, start)
        return world.store.commits - before

    # Pairs, so that a device of which something is known is compared with one of which nothing is.
    first = await commits(None, "1.1", "1.0")
    second = await commits(Took(94_600, 900, 1000), "1.2", "1.1")
    assert second <= first


async def test_one_that_fetches_goes_on_with_its_package_whatever_is_learned(world: World) -> None:
    command = await world.poll(kinds=14)
    world.put_device({"firmware": {"version": "1.1"}, "link": {"metered": True}})
    again = await world.poll(kinds=14, progress=Progress(command.package, 0))
    assert again.package == command.package and again.kind == Kind.FULL
    assert "estimated with a link of 20000" in await explained(world)


async def test_whatever_a_device_says_of_itself_it_causes_no_more_packages(world: World) -> None:
    rng = random.Random(5)
    most = (1 << 32) - 1
    for number in range(60):
        start, version = ("1.0", "1.1") if number % 2 == 0 else ("1.1", "1.0")
        world.want(version)
        command = await world.poll(start, kinds=14, hardware="esp32c3")
        if command.type is not Type.UPDATE:
            world.wall += 200.0
            continue
        took = Took(*(rng.choice((0, 1, 8192, 94_600, most)) for _ in range(3)))
        await fetched(world, command, took, start)
    packages = world.packages
    assert isinstance(packages, Large) and len(packages.keys) == len(set(packages.keys)) == 2
    assert len(world.controller.paces) <= KINDS_MAX


async def test_what_one_of_a_kind_has_shown_is_usual_for_the_next(world: World) -> None:
    await fetched(world, await world.poll(kinds=14), Took(94_600, 500_000, 520))
    actual = world.store.actuals["app", "dev"]
    pace = world.controller.paces.of(msgspec.structs.replace(actual, device="two", measured=None), {}, {})
    assert (pace.rate, pace.of_rate, pace.slowness) == (180, "others", 20)


async def test_a_package_that_is_gone_from_disk_is_made_again(world: World, tmp_path: Path) -> None:
    command = await world.poll(kinds=14)
    for path in (tmp_path / "packages").glob("*.dfup"):
        path.unlink()
    packages = Large(world.store, tmp_path / "packages")
    packages.works = (MAPPED[2], FULL[2])
    world.packages = packages  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        await nursery.start(packages.run)
        world.restarted()
        assert (await world.poll(kinds=14)).package == command.package
        assert len(packages.keys) == 1
        nursery.cancel_scope.cancel()


async def test_keys_from_before_work_was_counted_still_name_their_package(world: World, tmp_path: Path) -> None:
    await world.poll(kinds=14)
    key = next((tmp_path / "packages").glob("*.key"))
    smallest = key.read_text().split()[0]
    key.write_text(smallest)
    packages = Large(world.store, tmp_path / "packages")
    world.packages = packages  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        await nursery.start(packages.run)
        world.restarted()
        command = await world.poll(kinds=14)
        assert command.package.hex() == smallest and not packages.keys
        nursery.cancel_scope.cancel()


async def test_devices_that_come_together_get_each_the_package_that_is_its_own(world: World) -> None:
    await fetched(world, await world.poll(kinds=14), Took(94_600, 500_000, 520))
    records, shown = world.store, world.store.actuals["app", "dev"]
    specs: dict[str, dict[str, object]] = {"quick": {}, "slow": {}, "metered": {"link": {"metered": True}}, "alike": {}}
    for name, spec in specs.items():
        records.devices_["app", name] = Device(Metadata(name, "app"), {"firmware": {"version": "1.2"}, **spec})
        measured = Measured(180, 20) if name == "slow" else Measured(100_000, 1000)
        records.actuals["app", name] = msgspec.structs.replace(shown, device=name, measured=measured)
        records.sequences["app", name] = 1
    world.restarted()
    asked = [Asked("app", name, a_status("1.1", kinds=14), "http") for name in specs]
    for _ in range(2):  # packages that were not made yet first
        taken = await world.controller.take(asked)
        await taken.store()
        for order in taken.answers:
            if isinstance(order, Order):
                await world.packages.get(order, ("app", "quick"))
    kinds = {name: one.kind for name, one in zip(specs, taken.answers, strict=True) if isinstance(one, Command)}
    assert kinds == {"quick": Kind.FULL, "slow": Kind.MAPPED, "metered": Kind.MAPPED, "alike": Kind.FULL}
