"""A device that goes on saying that all is well is not decided anew; whatever might change that is looked at all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from dfud.api import Device, DeviceChanged, Metadata
from dfud.controller.keeping import Asked
from dfud.wire.messages import Command, Defer, Starts, Status, Type
from tests.amounts import sampled
from tests.controller.test_alike import VERSIONS, a_world, change, counting, everything, some_status
from tests.controller.world import World, a_firmware, a_status


async def said(world: World, status: Status, device: str = "d0", transport: str = "http") -> object:
    taken = await world.controller.take([Asked("app", device, status, transport)])
    await taken.store()
    return taken.answers[0]


def settled(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of devices that were not looked at anew, from now on."""
    found: list[str] = []
    settling = world.controller._settling
    look = settling.look

    def follow(hold: Any, *more: Any) -> Any:
        look_ = look(hold, *more)
        if look_ is not None:
            found.append(hold.key[1])
        return look_

    monkeypatch.setattr(settling, "look", follow)
    monkeypatch.setattr(world.controller.together, "_settled", follow)
    return found


@pytest.mark.parametrize("seed", [1, 2, *sampled(3, *range(4, 200))])
async def test_they_come_to_what_those_do_who_are_looked_at_anew(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    one, other = a_world(), a_world()
    found = settled(one, monkeypatch)
    last: dict[str, Status] = {}
    for number in range(120):
        dice = rng.randrange(1 << 30)
        for world in (one, other):
            if dice % 25 == 0:
                change(random.Random(dice), world)
            world.wall += dice % 200
        await trio.sleep(dice % 7 * 20)  # so that some are stored though they say nothing new
        name = f"d{rng.randrange(4)}"
        status = last.get(name)
        if status is None or rng.random() < 0.08:
            status = some_status(rng, one, name)
        elif rng.random() < 0.5:
            attributes = {"at": str(rng.random()), **({"board": rng.choice("ab")} if rng.random() < 0.3 else {})}
            status = msgspec.structs.replace(status, attributes=attributes)
        last[name] = status
        answers = [await said(one, status, name), await other.controller.status("app", name, status, "http")]
        if isinstance(answers[0], Command):
            assert answers[0] == answers[1], f"seed {seed}, round {number}"
        else:
            await one.controller.status("app", name, status, "http")  # as the endpoint goes on
        assert everything(one) == everything(other), f"seed {seed}, round {number}"
    assert found or seed > 3, "nobody was settled"


def app(spec: dict[str, Any]) -> Callable[[World], None]:
    return lambda world: world.put_app({"signing": {"mode": "optional"}, **spec})


def device(spec: dict[str, Any]) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.store.devices_["app", "d0"] = Device(Metadata("d0", "app", labels={"n": "0"}), spec)
        world.bus.publish(DeviceChanged("app", "d0"))

    return change


def later(world: World) -> None:
    world.wall += 3600


CHANGES: dict[str, Callable[[World], None]] = {
    "app": app({"firmware": {"version": "1.1"}}),
    "rules": app({"rules": [{"selector": "n=0", "firmware": {"version": "1.1"}}], "firmware": {"version": "1.0"}}),
    "device": device({"firmware": {"version": "1.1"}}),
    "firmware": lambda world: world.publish(msgspec.structs.replace(a_firmware("1.0"), attributes={"a": "0"})),
    "hour": later,
}


@pytest.mark.parametrize("what", CHANGES)
async def test_what_changes_is_looked_at(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    world = a_world()
    app({"firmware": {"version": "1.0"}})(world)
    for number in range(3):
        await said(world, a_status("1.0", attributes={"a": str(number)}))
    decided, found = counting(monkeypatch), settled(world, monkeypatch)
    answer = await said(world, a_status("1.0", attributes={"a": "3"}))
    assert isinstance(answer, Command) and answer.type is Type.SYNC
    assert (decided, found) == ([], ["d0"])
    assert world.store.actuals["app", "d0"].attributes == {"a": "3"}, "it is stored all the same"
    CHANGES[what](world)
    await said(world, a_status("1.0", attributes={"a": "4"}))
    assert decided == ["d0"] and found == ["d0"]


@pytest.mark.parametrize(
    "more",
    [
        {"version": "1.1"},
        {"starts": Starts(2, 0)},
        {"defer": Defer("busy", 60)},
        {"trial": True},
        {"capacity": 10},
        {"digest": bytes(32)},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_a_status_that_differs_in_more_than_attributes_is_looked_at(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    world = a_world()
    for number in range(3):
        await said(world, a_status(VERSIONS[0], attributes={"a": str(number)}))
    decided = counting(monkeypatch)
    await said(world, msgspec.structs.replace(a_status(VERSIONS[0], attributes={"a": "4"}), **more))
    assert decided == ["d0"]


async def test_who_was_like_another_one_of_the_batch_is_settled_with_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = a_world()
    names = [name for _, name in world.store.devices_]
    status = a_status()
    for _ in range(3):
        taken = await world.controller.take([Asked("app", name, status, "http") for name in names])
        await taken.store()
    decided, found = counting(monkeypatch), settled(world, monkeypatch)
    news = [a_status(attributes={"a": name}) for name in names]
    taken = await world.controller.take([Asked("app", n, s, "http") for n, s in zip(names, news, strict=True)])
    await taken.store()
    assert (decided, found) == ([], names)
    assert [world.store.actuals["app", name].attributes for name in names] == [{"a": name} for name in names]


async def test_who_says_nothing_new_is_stored_as_seldom_as_ever(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = a_world()
    status = a_status("1.0", attributes={"a": "1"})
    for _ in range(3):
        await said(world, status)
    found = settled(world, monkeypatch)
    before = world.store.sequences["app", "d0"]
    await said(world, status)
    assert world.store.sequences["app", "d0"] == before
    await said(world, status, transport="coap")
    assert world.store.sequences["app", "d0"] == before + 1
    assert found == ["d0", "d0"]


@pytest.mark.parametrize("names", [["d0"], ["d1", "d0"]])
async def test_the_hour_is_counted_of_who_was_not_stored_at_its_first_look(
    autojump_clock: trio.testing.MockClock, names: list[str]
) -> None:
    """What says when it was heard of and the counters are stored together, or devices are missing in the count of the hour."""
    world = a_world()
    app({"firmware": {"version": "1.0"}})(world)
    world.wall -= world.wall % 3600
    status = a_status("1.0", attributes={"a": "0"})

    async def all_say() -> None:
        taken = await world.controller.take([Asked("app", name, status, "http") for name in names])
        await taken.store()

    world.wall += 3590
    await all_say()
    await all_say()
    world.wall += 20
    await all_say()  # too soon to be stored, in another hour
    for _ in range(2):
        await trio.sleep(world.controller._settling._seen_s)
        await all_say()
    for name in names:
        actual = world.store.actuals["app", name]
        assert f"hour/{int(actual.seen_s // 3600)}" in actual.tally, (name, actual.seen_s, actual.tally)
