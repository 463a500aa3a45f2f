"""A package is made once for all processes on one store, and brought to whoever needs it over the place of the images."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from dfud_postgres.directory import DirectoryPlace

from dfud.api import BlobPlace, StoreError
from dfud.controller.packages import Packages
from dfud.controller.sending import Order
from dfud.controller.shared_packages import COLLECTION, SharedPackages
from dfud.model.quickest import Candidate
from tests.controller.test_packages import NEW, OLD, order
from tests.controller.world import Records


class SharedRecords(Records):
    """`away`: the place cannot be reached."""

    def __init__(self, place: BlobPlace) -> None:
        super().__init__()
        self._place = place
        self._leads: dict[str, trio.Lock] = {}

    def place(self) -> BlobPlace:
        return self._place

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        async with self._leads.setdefault(name, trio.Lock()):
            yield


class Counting(Packages):
    """Counts what this process works at itself."""

    worked = 0

    async def _work(self, key: str, order: Order) -> None:
        self.worked += 1
        await super()._work(key, order)


@pytest.fixture
def store(tmp_path: Path) -> SharedRecords:
    found = SharedRecords(DirectoryPlace(tmp_path / "place"))
    for image in (OLD, NEW):
        path = tmp_path / hashlib.sha256(image).hexdigest()
        path.write_bytes(image)
        found.images[path.name] = path
    return found


def packages_of(store: SharedRecords, path: Path) -> Counting:
    return Counting(store, path, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)


async def test_a_package_is_made_once_for_all_and_known_by_either_name(
    store: SharedRecords, tmp_path: Path, nursery: trio.Nursery
) -> None:
    machines = [packages_of(store, tmp_path / f"machine{n}") for n in range(3)]
    for machine in machines:
        await nursery.start(machine.run)
    made = {}

    async def get(number: int) -> None:
        made[number] = await machines[number].get(order(), ("app", f"dev{number}"))

    async with trio.open_nursery() as asking:
        for number in range(3):
            asking.start_soon(get, number)
    assert sum(machine.worked for machine in machines) == 1
    assert len({package.id for package in made.values()}) == 1
    name = made[0].id.hex()
    # One that starts later, and one whose directory was emptied: by what it is made of, and by its name alone.
    fresh = packages_of(store, tmp_path / "fresh")
    await nursery.start(fresh.run)
    found = await fresh.load(name)
    assert found is not None and found.chunks == made[0].chunks
    assert (await fresh.get(order(), ("app", "a"))).id == made[0].id and fresh.worked == 0
    shutil.rmtree(tmp_path / "fresh")
    again = packages_of(store, tmp_path / "fresh")
    await nursery.start(again.run)
    assert (await again.find(order())) is not None and again.worked == 0
    nursery.cancel_scope.cancel()


async def test_what_is_gone_or_spoilt_in_the_place_is_made_again(
    store: SharedRecords, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one, other = packages_of(store, tmp_path / "one"), packages_of(store, tmp_path / "other")
    for machine in (one, other):
        await nursery.start(machine.run)
    made = await one.get(order(), ("app", "a"))
    (file,) = [path for path in (tmp_path / "place").rglob("*") if path.is_file()]
    file.write_bytes(b"spoilt")
    assert await other.load(made.id.hex()) is None
    assert (await other.get(order(), ("app", "a"))).id == made.id and other.worked == 1
    assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name, "and is right for the others"
    nursery.cancel_scope.cancel()


async def test_while_the_place_is_away_what_is_here_goes_on(
    store: SharedRecords, tmp_path: Path, nursery: trio.Nursery
) -> None:
    class Away(DirectoryPlace):
        async def put(self, *arguments: object) -> None:
            raise StoreError("away", retryable=True)

        @asynccontextmanager
        async def get(self, sha256: str) -> AsyncIterator[Path | None]:
            raise StoreError("away", retryable=True)
            yield

    one = packages_of(store, tmp_path / "one")
    await nursery.start(one.run)
    made = await one.get(order(), ("app", "a"))
    assert one.shared is not None
    one.shared._place = Away(tmp_path)
    again = packages_of(store, tmp_path / "one")
    await nursery.start(again.run)
    assert await again.load(made.id.hex()) is not None
    with pytest.raises(StoreError, match="away"):
        await one.get(order(8224), ("app", "a"))
    nursery.cancel_scope.cancel()


async def test_what_was_not_used_for_longest_goes_and_an_image_never(store: SharedRecords, tmp_path: Path) -> None:
    now = [1000.0]
    sizes = 100
    shared = SharedPackages(store, store.place(), 2 * sizes, lambda: now[0])
    names = []
    for number in range(4):
        path = tmp_path / f"{number:032x}.dfup"
        path.write_bytes(bytes([number]) * sizes)
        await shared.publish(f"{number:064x}", [Candidate(f"{number:032x}", 1, sizes)], tmp_path)
        names.append(hashlib.sha256(path.read_bytes()).hexdigest())
        now[0] += 1.0
    store.images[names[1]] = tmp_path / f"{1:032x}.dfup"  # somebody has published it as an image
    now[0] += 10_000.0
    first = await shared.by_name(f"{0:032x}")  # it is used
    assert first is not None
    assert await shared.trim() == 2 and await shared.trim() == 0
    left = {path.name for path in (tmp_path / "place").rglob("*") if path.is_file()}
    assert left == {names[0], names[1], names[3]}
    assert await shared.by_key(f"{2:064x}") is None and await shared.by_name(f"{1:032x}") is None
    assert len(await store.documents(COLLECTION)) == 4
