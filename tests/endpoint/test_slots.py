"""The slots of a fleet: found by what was shown, forgotten with what they rest on, given up by use, whatever changes."""

from __future__ import annotations

import gc
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio.testing

from dfud.api import App, AppChanged, Code, Credentials, DeviceChanged, Metadata, PutApp, Reply, Request, Waiting
from dfud.endpoint.slots import Slots
from tests.endpoint.world import World, a_status, basic, start_world

REPLY = Reply(Code.COMMAND, "dfu", b"wait")


def shown(number: int) -> Credentials:
    return Credentials(b"Basic %d" % number)


def filled(limit: int, devices: int) -> Slots:
    slots = Slots(limit)
    for number in range(devices):
        slot = slots.keep(slots.digest(shown(number)), f"a{number % 2}", f"d{number}", 0.0)
        slots.keep_calm(slot, b"body", REPLY, 100.0, 60)
    return slots


def test_a_slot_is_found_by_all_that_was_shown_and_by_nothing_else() -> None:
    slots = Slots(100)
    for ways in (
        Credentials(b"x"),
        Credentials(b"x", application="a"),
        Credentials(b"x", device="a"),
        Credentials(b"", b"x"),
        Credentials(identity="x"),
        Credentials(b"x", application="a", device="b"),
        Credentials(b"x", application="ab"),
    ):
        assert slots.find(slots.digest(ways)) == -1
        slots.keep(slots.digest(ways), "a", "d", 0.0)
        assert slots.session(slots.find(slots.digest(ways))) == ("a", "d", 0.0)
    assert slots.digest(Credentials(b"x"), "behind") != slots.digest(Credentials(b"x"))
    slots.forget("a", "d")
    assert len(slots) == 0


def test_an_answer_is_given_for_the_same_words_of_the_same_device_in_time_only() -> None:
    slots = filled(10, 2)
    slot = slots.find(slots.digest(shown(0)))
    assert slots.calm(slot, b"body", 99.9) == REPLY
    assert slots.calm(slot, b"other", 99.9) is None
    assert slots.calm(slot, b"body", 100.0) is None
    slots.forget_calm("a0", "d0")
    assert slots.calm(slot, b"body", 99.9) is None and slots.find(slots.digest(shown(0))) == slot
    slots.keep_calm(slot, b"body", REPLY, 100.0, 60)
    slots.forget_app_calm("a0")
    assert slots.calm(slot, b"body", 99.9) is None
    assert slots.calm(slots.find(slots.digest(shown(1))), b"body", 99.9) == REPLY, "of another app"
    slots.forget_app("a0")
    assert slots.find(slots.digest(shown(0))) == -1 and slots.find(slots.digest(shown(1))) >= 0


def test_the_slots_that_were_not_used_are_given_up_first_and_never_all() -> None:
    slots = filled(100, 100)
    slots.keep(slots.digest(shown(1000)), "a0", "new", 0.0)  # every slot was used: the hand has come round once
    for number in range(60, 90):
        slots.find(slots.digest(shown(number)))
    for number in range(2000, 2040):
        slots.keep(slots.digest(shown(number)), "a0", f"n{number}", 0.0)
        assert len(slots) == 100
    assert all(slots.find(slots.digest(shown(number))) >= 0 for number in range(60, 90))


def test_whatever_comes_in_whatever_order_what_is_found_is_true() -> None:
    random = Random(5)
    slots = Slots(20)
    true: dict[int, str] = {}
    for _ in range(5000):
        number = random.randrange(40)
        device = f"d{number % 25}"
        match random.randrange(4):
            case 0 | 1:
                slots.keep(slots.digest(shown(number)), "a", device, 0.0)
                true[number] = device
            case 2:
                slots.forget("a", device)
                true = {n: d for n, d in true.items() if d != device}
            case _ if not random.randrange(50):
                slots.forget_app("a")
                true.clear()
        found = slots.find(slots.digest(shown(number)))
        assert found == -1 or (number in true and slots.session(found)[1] == true[number])
        assert len(slots) <= 20


def test_a_collection_has_nothing_to_look_at_however_many_devices_there_are() -> None:
    gc.collect()
    before = len(gc.get_objects())
    slots = filled(50_000, 50_000)
    gc.collect()
    assert len(gc.get_objects()) - before < 1500
    assert len(slots) == 50_000


class Counted:
    """The store, with what is read of it counted."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("app", "device", "views", "find_alias", "devices", "deployments", "firmware", "firmware_by_digest"):
            self.reads += 1
        return getattr(self._store, name)


async def counted_world(nursery: trio.Nursery, tmp_path: Path) -> tuple[World, Counted]:
    stores: list[Counted] = []

    def wrap(store: Any) -> Any:
        stores.append(Counted(store))
        return stores[0]

    return await start_world(nursery, tmp_path, wrap), stores[0]


def poll(world: World) -> object:
    body = a_status()
    return world.endpoint.quick(Request("http", "127.0.0.1", Credentials(basic("dev1@app1:pw")), "dfu", body))


async def test_an_unchanged_poll_asks_the_store_nothing(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await counted_world(nursery, tmp_path)
    await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=a_status())
    store.reads = 0
    assert isinstance(poll(world), Reply) and store.reads == 0
    nursery.cancel_scope.cancel()


async def test_a_change_of_an_app_that_concerns_no_device_costs_one_read(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await counted_world(nursery, tmp_path)
    first = await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=a_status())
    await world.store.commit([PutApp(App(Metadata("app1", labels={"x": "y"})))])
    world.bus.publish(AppChanged("app1"))
    assert poll(world) is None, "nothing is answered before that was looked at"
    await trio.testing.wait_all_tasks_blocked()  # whoever follows changes of apps, and not for a device
    store.reads = 0
    again = await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=a_status())
    assert again == first and store.reads == 2, "the app, once for who it is and once for what it is told"
    assert isinstance(poll(world), Reply)
    nursery.cancel_scope.cancel()


async def test_a_change_of_an_app_that_concerns_its_devices_does_so_at_once(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    world, _ = await counted_world(nursery, tmp_path)
    me = Credentials(basic("dev1@app1:pw"))
    await world.post(me, channel="dfu", body=a_status())
    await world.store.commit([PutApp(App(Metadata("app1"), {"core": {"disabled": True}}))])
    world.bus.publish(AppChanged("app1"))
    assert poll(world) is None
    assert await world.code(me.authorization, channel="dfu", body=a_status()) is Code.DENIED
    await world.store.commit([PutApp(App(Metadata("app1"), {}))])
    world.bus.publish(AppChanged("app1"))
    assert await world.code(me.authorization, channel="dfu", body=a_status()) is Code.COMMAND
    world.bus.publish(DeviceChanged("app1", "dev1"))
    assert poll(world) is None
    nursery.cancel_scope.cancel()


async def test_a_first_poll_asks_the_store_once(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await counted_world(nursery, tmp_path)
    await world.put("dev2", {"authentication": {"credentials": [{"pass": "pw"}]}})
    await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=a_status())
    store.reads = 0
    found = await world.post(Credentials(basic("dev2@app1:pw")), channel="dfu", body=a_status())
    assert isinstance(found, Reply) and found.code is Code.COMMAND
    assert store.reads == 1, "the device, for who it is and for what it is told"
    nursery.cancel_scope.cancel()


async def test_a_wish_for_a_device_leaves_its_log_in_alone(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await counted_world(nursery, tmp_path)
    me = Credentials(basic("dev1@app1:pw"))
    await world.post(me, channel="dfu", body=a_status())
    await world.post(me, channel="dfu", body=a_status(attributes={"now": "its sequence is known"}))
    auth = world.endpoint._auth
    parked = await world.post(me, channel="dfu", body=a_status(), timeout_s=250.0)
    assert isinstance(parked, Waiting)
    world.bus.publish(DeviceChanged("app1", "dev1", access=False))
    assert auth.known(me) is not None, "it has not been forgotten who it is"
    assert poll(world) is None, "what it was answered has"
    store.reads = 0
    assert await world.code(me.authorization, channel="dfu", body=a_status()) is Code.COMMAND
    assert store.reads == 1, "what it is to run"
    world.bus.publish(DeviceChanged("app1", "dev1"))
    assert auth.known(me) is None
    await world.post(me, channel="dfu", body=a_status())
    world.bus.publish(DeviceChanged("app1", "dev1", deleted=True, access=False))
    assert auth.known(me) is None
    nursery.cancel_scope.cancel()
