"""Making packages: whole images only, turn about, bounded; and what is kept of them."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dfud.api import Deployment, Device, Metadata, State, StoreError
from dfud.controller.ahead import Ahead
from dfud.controller.fair import FairLimiter
from dfud.controller.images import Images
from dfud.controller.packages import Busy, Packages
from dfud.controller.sending import PAYLOADS, Order, order_of
from dfud.package.file import write_package
from dfud.wire.messages import Kind
from tests.controller.world import Records, World, a_firmware, a_status

FULL = 1 << Kind.FULL
OLD, NEW = b"old" * 2000, random.Random(1).randbytes(60_000)


class Made(Packages):
    """Counts what is asked to be made, and makes it when `gate` opens."""

    def __init__(self, store: Records, path: Path, **more: int) -> None:
        super().__init__(store, path, **{"disk_bytes": 1 << 30, "memory_bytes": 1 << 20, "workers": 1, **more})
        self.asked: list[Order] = []
        self.gate = trio.Event()

    async def _make(self, key: str, order: Order) -> None:
        self.asked.append(order)
        async with self._workers.turn(order.target.app):
            await self.gate.wait()
        raise StoreError("not today")


@pytest.fixture
def store(tmp_path: Path) -> Records:
    found = Records()
    for image in (OLD, NEW):
        path = tmp_path / hashlib.sha256(image).hexdigest()
        path.write_bytes(image)
        found.images[path.name] = path
    return found


def digest_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def order(payload: int = 4112, version: str = "2", sha256: str = "", base: bytes | None = None, kinds: int = FULL) -> Order:
    target = msgspec.structs.replace(a_firmware(version, size=len(NEW)), sha256=sha256 or hashlib.sha256(NEW).hexdigest())
    old = None
    if base is not None:
        old = msgspec.structs.replace(a_firmware("1"), sha256=hashlib.sha256(base).hexdigest())
    return Order(target, old, kinds, payload)


async def test_one_device_has_one_package_in_the_making_and_the_rest_waits_in_a_bounded_line(
    store: Records, tmp_path: Path, nursery: trio.Nursery
) -> None:
    packages = Made(store, tmp_path / "p", waiting_max=3)
    await nursery.start(packages.run)

    async def ask(what: Order, device: str) -> None:
        with pytest.raises(StoreError):
            await packages.get(what, ("app", device))

    nursery.start_soon(ask, order(512), "a")
    await wait_all_tasks_blocked(0.05)
    with pytest.raises(Busy, match="for this device"):
        await packages.get(order(768), ("app", "a"))
    nursery.start_soon(ask, order(512), "b")
    nursery.start_soon(ask, order(1024), "c")
    nursery.start_soon(ask, order(2048), "d")
    await wait_all_tasks_blocked(0.05)
    with pytest.raises(Busy, match="3 packages"):
        await packages.get(order(3072), ("app", "e"))
    assert len(packages.asked) == 3
    packages.gate.set()
    await wait_all_tasks_blocked(0.05)
    nursery.cancel_scope.cancel()


async def test_one_device_has_so_many_packages_made_in_an_hour(
    store: Records, tmp_path: Path, nursery: trio.Nursery
) -> None:
    packages = Made(store, tmp_path / "p", per_hour=4)
    packages.gate.set()
    await nursery.start(packages.run)
    for payload in PAYLOADS:
        with pytest.raises(StoreError):
            await packages.get(order(payload), ("app", "greedy"))
    assert len(packages.asked) == 4
    with pytest.raises(StoreError, match="packages_per_hour"):
        await packages.get(order(), ("app", "greedy"))
    with pytest.raises(StoreError, match="not today"):
        await packages.get(order(), ("app", "honest"))
    nursery.cancel_scope.cancel()


async def test_a_hundred_bases_in_the_field_do_not_delay_the_answer_to_the_next_one(
    store: Records, tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    packages = Made(store, tmp_path / "p")
    await nursery.start(packages.run)

    async def ask(number: int) -> None:
        with pytest.raises(StoreError, match="not today"):
            await packages.get(order(base=b"%d" % number, kinds=6), ("app", f"d{number}"))

    for number in range(100):
        nursery.start_soon(ask, number)
    await wait_all_tasks_blocked(0.05)
    before = trio.current_time()
    with pytest.raises(Busy, match="99 packages are made first"):
        await packages.soon(order(base=b"last", kinds=6), ("app", "last"))
    assert trio.current_time() == before, "it is told at once"
    await wait_all_tasks_blocked()
    assert len(packages.asked) == 101, "its package is made in its turn"
    packages.gate.set()
    await wait_all_tasks_blocked(0.05)
    with pytest.raises(StoreError, match="not today"):
        await packages.soon(order(base=b"alone", kinds=6), ("app", "alone"))  # nobody is before it: it waits for its own
    nursery.cancel_scope.cancel()


async def test_a_device_goes_before_all_packages_that_are_made_ahead(
    store: Records, tmp_path: Path, nursery: trio.Nursery
) -> None:
    class OneByOne(Made):
        """Has a worker until the test ends its work."""

        async def _make(self, key: str, order: Order) -> None:
            async with self._workers.turn(order.target.app):
                self.asked.append(order)
                self.gate = trio.Event()
                await self.gate.wait()
            raise StoreError("not today")

        async def begun(self, number: int) -> None:
            with trio.fail_after(60):
                while len(self.asked) < number:
                    await wait_all_tasks_blocked(0.005)

    packages = OneByOne(store, tmp_path / "p")
    await nursery.start(packages.run)
    ahead = Ahead(packages)
    nursery.start_soon(ahead.run)
    ahead.add(order(base=b"%d" % number, kinds=6) for number in range(100))
    await packages.begun(1)
    mine = [order(base=b"mine %d" % number, kinds=6) for number in range(4)]

    async def ask(number: int) -> None:
        with pytest.raises(StoreError, match="not today"):
            await packages.get(mine[number], ("app", f"d{number}"))

    async with trio.open_nursery() as devices:
        for number in range(4):
            devices.start_soon(ask, number)
        with trio.fail_after(60):
            while packages._workers.waiting < 4:
                await wait_all_tasks_blocked(0.005)
        for number in range(1, 5):
            packages.gate.set()
            await packages.begun(number + 1)
        packages.gate.set()
    keys = list(map(packages.key, packages.asked))
    assert set(keys[1:5]) == set(map(packages.key, mine)), "none that is made ahead came in between"
    await packages.begun(6)  # then they go on
    nursery.cancel_scope.cancel()


async def test_packages_are_made_for_what_runs_when_a_version_is_published_or_wanted(autojump_clock: MockClock) -> None:
    world = World()
    for number, version in enumerate(("1.0", "1.0", "1.1", "1.2")):
        world.store.devices_["app", f"d{number}"] = Device(Metadata(f"d{number}", "app"))
        await world.controller.status("app", f"d{number}", a_status(version, kinds=6), "http")
    async with trio.open_nursery() as nursery:
        await nursery.start(world.controller.run)
        world.publish(a_firmware("2.0"))
        await trio.sleep(10)
        bases = sorted(o.base.version for o in world.packages.ordered if o.target.version == "2.0" and o.base is not None)
        assert bases == ["1.0", "1.1", "1.2"], "one for each base, whatever the number of devices"
        world.packages.ordered.clear()
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.3"}})
        await trio.sleep(10)
        assert sorted(o.base.version for o in world.packages.ordered if o.base is not None) == ["1.0", "1.1", "1.2"]
        assert {o.target.version for o in world.packages.ordered} == {"1.3"}
        world.packages.ordered.clear()
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.3"}, "note": "n"})
        world.withdraw("2.0")
        await trio.sleep(20)
        assert world.packages.ordered == [], "nothing new is wanted"
        nursery.cancel_scope.cancel()


async def test_apps_take_turns(autojump_clock: MockClock) -> None:
    limiter, served = FairLimiter(1), []

    async def work(group: str) -> None:
        async with limiter.turn(group):
            await trio.sleep(1)
            served.append(group)

    async with trio.open_nursery() as nursery:
        for group in ["greedy"] * 20 + ["small"]:
            nursery.start_soon(work, group)
            await wait_all_tasks_blocked()
    assert served.index("small") <= 2
    assert len(served) == 21
    with trio.move_on_after(0):
        async with limiter.turn("cancelled"):
            await trio.sleep(1)
    async with limiter.turn("after"):
        assert limiter.waiting == 0


async def test_a_waiter_that_is_cancelled_keeps_no_place(autojump_clock: MockClock) -> None:
    limiter = FairLimiter(1)

    async def wait() -> None:
        async with limiter.turn("x"):
            await trio.sleep_forever()

    async with limiter.turn("first"):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            assert limiter.waiting == 3
            nursery.cancel_scope.cancel()
    with trio.fail_after(1):
        async with limiter.turn("next"):
            assert limiter.waiting == 0


def test_payloads_are_few() -> None:
    deployment = None
    seen = set()
    for payload in range(512, 65537):
        deployment = deployment or Deployment(
            id="id",
            app="app",
            device="dev",
            version="2",
            sha256="00" * 32,
            state=State.PENDING,
            created_s=0.0,
            updated_s=0.0,
        )
        made = order_of(a_status(payload=payload, kinds=0xFFFF_FFFF), deployment, a_firmware("2"), None)
        assert made.payload <= payload
        seen.add((made.payload, made.kinds))
    assert seen == {(payload, FULL) for payload in PAYLOADS}


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
async def test_a_damaged_image_is_never_packed(store: Records, tmp_path: Path, nursery: trio.Nursery, damage: str) -> None:
    packages = Packages(store, tmp_path / "p", disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)
    await nursery.start(packages.run)
    path = store.images[hashlib.sha256(NEW).hexdigest()]
    path.write_bytes(NEW[:-1] if damage == "truncated" else NEW[:-1] + b"\0")
    with pytest.raises(StoreError, match="damaged") as caught:
        await packages.get(order(), ("app", "a"))
    assert not caught.value.retryable
    assert list((tmp_path / "p").glob("*.dfup")) == []
    path.write_bytes(NEW)
    base = store.images[hashlib.sha256(OLD).hexdigest()]
    base.write_bytes(b"other")
    made = await packages.get(order(base=OLD, kinds=FULL | 1 << Kind.DELTA), ("app", "a"))
    assert made.kind == Kind.FULL, "a damaged base is done without"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("damage", ["another image's", "another kind's", "no numbers", "empty", "no text", "huge numbers"])
async def test_a_damaged_key_has_its_package_made_anew(
    store: Records, tmp_path: Path, nursery: trio.Nursery, damage: str
) -> None:
    directory = tmp_path / "p"
    packages = Packages(store, directory, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)
    await nursery.start(packages.run)
    back = msgspec.structs.replace(order(), target=msgspec.structs.replace(a_firmware("1"), sha256=digest_of(OLD)))
    base = NEW[:30_000] + b"x" + NEW[30_001:]
    store.images[digest_of(base)] = tmp_path / digest_of(base)
    store.images[digest_of(base)].write_bytes(base)
    delta = order(base=base, kinds=FULL | 1 << Kind.DELTA)
    made = [await packages.get(one, ("app", "a")) for one in (order(), back, delta)]
    other = made[1] if damage != "another kind's" else made[2]
    assert made[2].kind == Kind.DELTA
    content = {
        "another image's": f"{other.id.hex()} 1 1 1\n".encode(),
        "another kind's": f"{other.id.hex()} 1 1 1\n".encode(),
        "no numbers": f"{made[0].id.hex()} x -1 nan\n".encode(),
        "huge numbers": f"{made[0].id.hex()} 1 {1 << 63} 1\n".encode(),
        "empty": b"",
        "no text": b"\xff" * 32,
    }[damage]
    key = directory / f"{packages.key(order())}.key"
    before = key.read_bytes()
    key.write_bytes(content)
    fresh = Packages(store, directory, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)
    await nursery.start(fresh.run)
    assert (await fresh.get(order(), ("app", "a"))).id == made[0].id
    assert key.read_bytes() == before, "it is mended, too"
    nursery.cancel_scope.cancel()


async def test_a_namesake_in_memory_does_not_stand_for_what_is_on_disk(
    store: Records, tmp_path: Path, nursery: trio.Nursery
) -> None:
    directory = tmp_path / "p"
    packages = Packages(store, directory, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1, per_hour=4)
    await nursery.start(packages.run)
    bases = [NEW[:30_000] + byte + NEW[30_001:] for byte in (b"x", b"y")]
    for base in bases:
        store.images[digest_of(base)] = tmp_path / digest_of(base)
        store.images[digest_of(base)].write_bytes(base)
    first, second = (order(base=base, kinds=FULL | 1 << Kind.DELTA) for base in bases)
    made = await packages.get(first, ("app", "a"))
    # Its file was trimmed, and then another package with the same chunks was made.
    others = msgspec.structs.replace(made, base_sha256=bytes.fromhex(digest_of(bases[1])))
    (directory / f"{made.id.hex()}.dfup").write_bytes(write_package(others))
    (directory / f"{packages.key(second)}.key").write_bytes((directory / f"{packages.key(first)}.key").read_bytes())
    on_its_way = msgspec.structs.replace(second, held=made.id.hex())
    assert packages.ready(first) == made and packages.ready(second) is None and packages.ready(on_its_way) is None
    for _ in range(10):
        assert await packages.get(on_its_way, ("app", "b")) == others, "none is made"
    assert packages.ready(second) == packages.ready(on_its_way) == others and packages.ready(first) is None
    again = [await packages.get(first, ("app", "a")) for _ in range(10)]
    assert {one.kind for one in again} == {Kind.FULL}, "its name is taken"
    assert packages._used == made.total_bytes + again[0].total_bytes
    nursery.cancel_scope.cancel()


async def test_what_is_used_stays_and_names_go_with_what_they_name(
    store: Records, tmp_path: Path, nursery: trio.Nursery
) -> None:
    directory = tmp_path / "p"
    packages = Packages(store, directory, disk_bytes=1 << 30, memory_bytes=1 << 20, workers=1)
    await nursery.start(packages.run)
    used = await packages.get(order(4112), ("app", "a"))
    unused = await packages.get(order(16384), ("app", "a"))
    for number, name in enumerate((used, unused)):
        os.utime(directory / f"{name.id.hex()}.dfup", (1000 + number, 1000 + number))
    fresh = Packages(store, directory, disk_bytes=used.total_bytes + 200, memory_bytes=1 << 20, workers=1)
    assert (await fresh.get(order(4112), ("app", "a"))).id == used.id
    (directory / ".new-torn").write_bytes(b"x")
    os.utime(directory / ".new-torn", (1000, 1000))
    (directory / ".new-others").write_bytes(b"x")  # another dfud on the same directory makes it now
    await nursery.start(fresh.run)
    assert [p.stem for p in directory.glob("*.dfup")] == [used.id.hex()], "the older one, and used last"
    assert len(list(directory.glob("*.key"))) == 1
    assert not (directory / ".new-torn").exists() and (directory / ".new-others").exists()
    nursery.cancel_scope.cancel()


async def test_nothing_is_read_out_of_a_damaged_image(store: Records) -> None:
    images = Images(store, 100)
    firmware = msgspec.structs.replace(a_firmware("2"), sha256=hashlib.sha256(NEW).hexdigest())
    assert await images.read(firmware, 10, 5) == NEW[10:15]
    store.images[firmware.sha256].write_bytes(NEW[:100])
    with pytest.raises(StoreError, match="damaged"):
        await images.read(firmware, 10, 5)
    assert "damaged" in await images.problem(firmware)


async def test_one_device_that_states_many_sizes_makes_few_packages(autojump_clock: MockClock) -> None:
    world = World()
    world.want("1.1")
    for payload in range(512, 65536, 61):
        await world.poll(payload=payload)
    assert len({o.payload for o in world.packages.ordered}) <= len(PAYLOADS)
