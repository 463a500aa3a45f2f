"""Devices that are looked at together come to what each comes to by itself, and are decided once where they are alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio

from dfud.api import Device, HistoryEntry, Metadata, Recall, State
from dfud.controller import decide as decide_module
from dfud.controller import deciding
from dfud.controller.keeping import Asked, Keeper
from dfud.controller.memory import Hold
from dfud.controller.sending import Order
from dfud.package.file import PackageFile, make
from dfud.wire.messages import Code, Command, Defer, Kind, Outcome, Phase, Progress, Result, Starts, Status, Type
from tests.amounts import sampled
from tests.controller.led import led
from tests.controller.world import QuickPackages, World, a_firmware, a_status

DEVICES = 9
VERSIONS = ("1.0", "1.1", "1.2", "1.3")


class MadePackages(QuickPackages):
    """Has every package made already."""

    def ready(self, order: Order) -> PackageFile | None:
        chunks = [f"{order.target.sha256} {number}".encode() for number in range(10)]
        return make(Kind.FULL, order.target.size_bytes, bytes.fromhex(order.target.sha256), None, chunks)


def a_world() -> World:
    world = World(history_per_hour=100_000)
    world.packages = MadePackages(world.store)
    world.restarted()
    del world.store.devices_["app", "dev"]
    for number in range(DEVICES):
        device = Device(Metadata(f"d{number}", "app", labels={"n": str(number)}))
        world.store.devices_["app", device.name] = device
    return world


def everything(world: World) -> dict[str, Any]:
    """What is stored, with the deployments of a device under the numbers that they have there."""
    store = world.store
    number = {d.id: d.number for d in store.deployments_.values()}

    def named(entry: HistoryEntry) -> HistoryEntry:
        return msgspec.structs.replace(entry, deployment=str(number[entry.deployment]))

    return {
        "actuals": store.actuals,
        "deployments": {(d.device, d.number): msgspec.structs.replace(d, id="") for d in store.deployments_.values()},
        "entries": {name: [named(e) for e in store.entries if e.device == name] for _, name in store.devices_},
        "counts": {scope: {k: v for k, v in counts.items() if v} for scope, counts in store.counts_.items()},
        "sequences": {name for name, number in store.sequences.items() if number},
    }


def some_status(rng: random.Random, world: World, device: str) -> Status:
    """What a device may say now: often what others say, sometimes of its own update, sometimes anything."""
    actual = world.store.actuals.get(("app", device))
    newest = world.store.newest("app", device)
    version = actual.version if actual is not None and rng.random() < 0.7 else rng.choice(VERSIONS)
    if newest is not None and rng.random() < 0.5:
        version = newest.version
    changes: dict[str, Any] = {}
    if newest is not None and newest.package and rng.random() < 0.2:
        phase = rng.choice(list(Phase))
        changes["progress"] = Progress(bytes.fromhex(newest.package), rng.randint(0, 10), phase)
    if newest is not None and rng.random() < 0.2:
        code = rng.choice([Code.CHUNK, Code.CRASHED, Code.REFUSED])
        outcome = rng.choice([Outcome.FAILED, Outcome.ROLLED_BACK])
        changes["result"] = Result(outcome, bytes.fromhex(newest.sha256), code, "why", number=rng.randint(0, 2))
    for field, value in (
        ("trial", True),
        ("hardware", "esp32s3"),
        ("capacity", 10),
        ("starts", Starts(rng.randint(1, 4), 0)),
        ("defer", Defer("busy", 60)),
    ):
        if rng.random() < 0.06:
            changes[field] = value
    if rng.random() < 0.5:
        changes["attributes"] = {"at": str(rng.random()), **({"board": rng.choice("ab")} if rng.random() < 0.5 else {})}
    return a_status(version, **changes)


def change(rng: random.Random, world: World) -> None:
    """What a user does between the polls."""
    drawn = rng.random()
    version = rng.choice(VERSIONS)
    if drawn < 0.4:
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": version}})
    elif drawn < 0.55:
        rules = [{"selector": f"n={rng.randrange(DEVICES)}", "firmware": {"version": version}}]
        world.put_app({"signing": {"mode": "optional"}, "rules": rules, "firmware": {"version": "1.0"}})
    elif drawn < 0.65:
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": version, "hold": True}})
    elif drawn < 0.75:
        world.publish(
            msgspec.structs.replace(a_firmware(version), recalled=Recall("bad", "eva", "2026-01-01T00:00:00Z"))
        )
    elif drawn < 0.85:
        world.publish(msgspec.structs.replace(a_firmware(version), attributes={"board": rng.choice("ab")}))
    elif drawn < 0.95:
        world.publish(a_firmware(version))


async def statuses(world: World, asked: Sequence[Asked]) -> Sequence[object]:
    """Have statuses taken together and stored; return what each is answered."""
    taken = await world.controller.take(asked)
    await taken.store()
    return taken.answers


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of devices for which decide() was called, from now on."""
    decided: list[str] = []

    def decide(**more: Any) -> Any:
        decided.append(more["device"])
        return decide_module.decide(**more)

    monkeypatch.setattr(deciding, "decide", decide)
    return decided


def same(commands: Sequence[object]) -> list[object]:
    return [c if isinstance(c, Command) else type(c) for c in commands]


@pytest.mark.parametrize("seed", [1, 2, *sampled(3, *range(4, 200))])
async def test_together_they_come_to_what_each_comes_to_alone(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    rng = random.Random(seed)
    one, other = a_world(), a_world()
    for number in range(25):
        dice = rng.randrange(1 << 30)
        for world in (one, other):
            change(random.Random(dice), world)
            world.wall += dice % 50
        pool = [a_status(version) for version in VERSIONS]
        asked = []
        for name in sorted(rng.sample([name for _, name in one.store.devices_], rng.randint(1, DEVICES))):
            said = some_status(rng, one, name)
            said = next((status for status in pool if status == said), said)  # as bodies that are read once
            asked.append(Asked("app", name, said, "http"))
        together = await statuses(one, asked)
        alone = [(await statuses(other, [a]))[0] for a in asked]
        assert same(together) == same(alone), f"seed {seed}, round {number}"
        assert everything(one) == everything(other), f"seed {seed}, round {number}"
    assert len(one.store.deployments_) > DEVICES
    ids = [d.id for d in one.store.deployments_.values()]
    assert len(set(ids)) == len(ids)


async def test_a_fleet_that_is_told_is_decided_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = a_world()
    status = a_status()
    asked = [Asked("app", name, status, "http") for _, name in world.store.devices_]
    decided = counting(monkeypatch)
    await statuses(world, asked)  # calm, and for the first time
    assert len(decided) == 1
    for number, version in enumerate(VERSIONS[1:], 1):
        decided.clear()
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": version}})
        answers = await statuses(world, asked)
        assert {(a.type, a.version) for a in answers if isinstance(a, Command)} == {(Type.UPDATE, version)}
        assert len(decided) == 1
        newest = [world.store.newest("app", name) for _, name in world.store.devices_]
        assert [(d.number, d.state) for d in newest if d is not None] == [(number, State.NOTIFIED)] * DEVICES
        arrived = [msgspec.structs.replace(a, status=a_status(version)) for a in asked]
        await statuses(world, arrived)  # each of an update of its own
        status = a_status(version)
        asked = [msgspec.structs.replace(a, status=status) for a in asked]


async def test_who_is_like_another_one_is_not_even_looked_at_by_itself(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = a_world()
    looked: list[str] = []
    keeper_of = Keeper.of

    async def of(self: Keeper, hold: Hold, *rest: Any, **more: Any) -> Any:
        looked.append(hold.key[1])
        return await keeper_of(self, hold, *rest, **more)

    monkeypatch.setattr(Keeper, "of", of)
    said = [a_status(starts=Starts(n + 1, 0)) for n in range(DEVICES)]
    asked = [Asked("app", f"d{n}", said[n], "http") for n in range(DEVICES)]
    await statuses(world, asked)
    assert len(looked) == DEVICES  # nothing is known of them yet
    for number, version in enumerate(VERSIONS[1:], 1):
        looked.clear()
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": version}})
        answers = await statuses(world, asked)
        assert {(a.type, a.version) for a in answers if isinstance(a, Command)} == {(Type.UPDATE, version)}
        assert len(looked) == 2  # the first one reads the app
        entries = [[e.event for e in world.store.entries if e.device == f"d{n}"] for n in range(DEVICES)]
        assert all(events.count("sent") == number and events.count("created") == number for events in entries)
        asked = [msgspec.structs.replace(a, status=a_status(version, starts=Starts(number * 100, 0))) for a in asked]
        await statuses(world, asked)
        looked.clear()
        await statuses(world, asked)
        assert len(looked) == 1
    looked.clear()
    crashed = a_status(VERSIONS[-1], starts=Starts(1000, 1))
    await statuses(world, [msgspec.structs.replace(a, status=crashed) for a in asked])
    assert len(looked) == DEVICES  # each is named with its crash


async def test_attributes_that_no_image_asks_for_and_starts_are_decided_once_too(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asks, expected in ((False, 1), (True, DEVICES)):
        world = a_world()
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
        if asks:
            world.publish(msgspec.structs.replace(a_firmware("1.1"), attributes={"n": "3"}))
        decided = counting(monkeypatch)
        said = [a_status(attributes={"n": str(n)}, starts=Starts(n + 1, 0)) for n in range(DEVICES)]
        answers = await statuses(world, [Asked("app", f"d{n}", said[n], "http") for n in range(DEVICES)])
        assert len(decided) == expected
        told = [n for n, a in enumerate(answers) if isinstance(a, Command) and a.type is Type.UPDATE]
        assert told == ([3] if asks else list(range(DEVICES)))


async def test_what_changes_among_those_who_are_looked_at_together_is_not_given_to_the_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = a_world()
    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    status = a_status()
    asked = [Asked("app", name, status, "http") for _, name in world.store.devices_]
    pauses = 0

    async def pause() -> None:
        nonlocal pauses
        pauses += 1
        await trio.lowlevel.checkpoint()

    world.store.pause = pause
    await statuses(world, asked)
    everyone = pauses
    for at in range(1, everyone + 1):
        world, pauses = a_world(), 0
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})

        async def recall(world: World = world, at: int = at) -> None:
            nonlocal pauses
            pauses += 1
            if pauses == at:
                world.publish(
                    msgspec.structs.replace(a_firmware("1.1"), recalled=Recall("bad", "eva", "2026-01-01T00:00:00Z"))
                )
            await trio.lowlevel.checkpoint()

        world.store.pause = recall
        answers = await statuses(world, asked)
        assert not any(isinstance(a, Command) and a.type is Type.UPDATE for a in answers), f"recalled at pause {at}"


async def test_devices_that_are_told_together_each_take_a_place_in_their_rollout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with led(20, poll_s=1e6, ask=False) as at:
        at.world.packages.ready = MadePackages(at.world.store).ready  # type: ignore[method-assign]
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}], "transfers": 7})
        await trio.sleep(90)
        status = a_status()
        asked = [Asked("app", name, status, "http") for name in at.fleet.boards]
        answers = await statuses(at.world, asked)
        told = [a for a in answers if isinstance(a, Command) and a.type is Type.UPDATE]
        assert len(told) == 7
        at.check("r")
