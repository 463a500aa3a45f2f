"""A command that was taken is handed on once: over a restart, a race, a lost answer; and it ends with its time or its device."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from dfud_local.store import LocalStore
from hypothesis import given

from dfud.api import (
    App,
    AppChanged,
    Bus,
    Change,
    Code,
    ConflictError,
    Credentials,
    DeleteDevice,
    DeleteDocument,
    Device,
    DeviceChanged,
    DeviceView,
    DocumentChanged,
    Metadata,
    Missed,
    NotFoundError,
    PutApp,
    PutDevice,
    PutDocument,
    Reply,
    StoreError,
    Waiting,
)
from dfud.endpoint.commands import Commands
from dfud.endpoint.kept import COLLECTION
from tests.endpoint.scheduled import Gates
from tests.endpoint.test_races import MANY, RANDOMS
from tests.endpoint.world import World, basic, start_world

ME = Credentials(basic("dev1@app1:pw"))


class Troubled(LocalStore):
    """fails: that many commits are refused first."""

    fails = 0

    async def commit(self, changes: Sequence[Change]) -> None:
        if self.fails:
            self.fails -= 1
            raise StoreError("the disk is full", retryable=True)
        await super().commit(changes)


@pytest.fixture
async def store(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Troubled]:
    store = Troubled(tmp_path / "state")
    await nursery.start(store.run, Bus())
    await store.commit([PutApp(App(Metadata("a"))), PutDevice(Device(Metadata("d", "a", uid="u1")))])
    yield store


class Side:
    """One process: its commands, its clocks."""

    def __init__(self, store: Any, **limits: int) -> None:
        self.monotonic, self.wall = [1000.0], [1.8e9]
        self.bus = Bus()
        most = {"most": 100, "most_bytes": 1000, **limits}
        self.commands = Commands(store, self.bus, 2, 60.0, lambda: self.monotonic[0], lambda: self.wall[0], **most)
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.commands.run(task_status=task_status)

    async def send(self, name: str, *, uid: str = "u1", payload: bytes = b"x", **more: Any) -> bool:
        return await self.commands.send("a", "d", uid, name, payload, **more)

    async def take(self) -> str:
        found = await self.commands.take("a", "d")
        return found.command if found is not None else ""


async def stored(store: Any) -> list[str]:
    return [key for key, _ in await store.documents(COLLECTION)]


async def test_a_command_outlives_a_restart_and_is_handed_on_once(nursery: trio.Nursery, store: Troubled) -> None:
    first = Side(store)
    await nursery.start(first.run)
    assert await first.send("one") and await first.send("two", expires_s=3600)
    assert not await first.send("three"), "no more than two for one device"
    first.scope.cancel()
    second = Side(store)
    await nursery.start(second.run)
    assert [await second.take() for _ in range(3)] == ["one", "two", ""]
    assert await stored(store) == []
    third = Side(store)
    await nursery.start(third.run)
    assert await third.take() == ""


async def test_it_ends_with_its_time_also_over_a_restart(
    nursery: trio.Nursery, store: Troubled, autojump_clock: trio.testing.MockClock
) -> None:
    first = Side(store)
    await nursery.start(first.run)
    assert await first.send("old") and await first.send("young", expires_s=3600)
    first.scope.cancel()
    second = Side(store)
    second.wall[0] += 61
    await nursery.start(second.run)
    assert [await second.take() for _ in range(2)] == ["young", ""]
    assert await second.send("unseen")
    second.monotonic[0] += 61
    await trio.sleep(120)
    await second.commands.kept.settled()
    assert await stored(store) == [], "nobody has to ask for it to be forgotten"
    assert await second.send("kept")
    second.scope.cancel()
    third = Side(store)
    third.wall[0] -= 300 * 86400
    await nursery.start(third.run)
    third.monotonic[0] += 61
    assert await third.take() == "", "a clock that is set back does not make it wait for longer"


async def test_what_cannot_be_stored_is_not_taken(nursery: trio.Nursery, store: Troubled) -> None:
    side = Side(store)
    await nursery.start(side.run)
    entry = PutDocument("audit", "1", b"", create=True)
    store.fails = 1
    with pytest.raises(StoreError):
        await side.send("lost", also=[entry])
    assert await side.take() == "" and await store.document("audit", "1") is None
    assert not await side.send("now or never", expires_s=0, also=[entry])
    assert await store.document("audit", "1") is None, "what was refused is not on record as done"
    assert await side.send("kept", also=[entry])
    assert await store.document("audit", "1") is not None


async def test_a_hand_over_that_cannot_be_stored_is_none(nursery: trio.Nursery, store: Troubled) -> None:
    side = Side(store)
    await nursery.start(side.run)
    assert await side.send("one")
    store.fails = 1
    assert await side.take() == ""
    assert await side.take() == "one"


async def test_limits_of_all_devices_hold_and_are_given_back(nursery: trio.Nursery, store: Troubled) -> None:
    for limits, payload in (({"most": 1}, b"x"), ({"most_bytes": 10}, bytes(10))):
        side = Side(store, **limits)
        await nursery.start(side.run)
        for _ in range(3):
            assert await side.send("one", payload=payload)
            assert not await side.send("two", payload=payload)
            store.fails = 1
            assert await side.take() == ""
            assert await side.take() == "one"
            store.fails = 1
            with pytest.raises(StoreError):
                await side.send("fails", payload=payload)
        side.scope.cancel()


@pytest.mark.parametrize("told", [True, False])
async def test_a_device_of_the_same_name_does_not_get_it(nursery: trio.Nursery, store: Troubled, told: bool) -> None:
    side = Side(store)
    await nursery.start(side.run)
    assert await side.send("one") and await side.send("two")
    await store.commit([DeleteDevice("a", "d"), PutDevice(Device(Metadata("d", "a", uid="u2")))])
    if told:
        side.bus.publish(DeviceChanged("a", "d", deleted=True))
        assert not side.commands.kept.has("a", "d")
    assert await side.take() == ""
    await side.commands.kept.settled()
    assert await stored(store) == []
    assert await side.send("three", uid="u2")
    side.bus.publish(AppChanged("a", deleted=True))
    assert await side.take() == ""


async def test_one_that_comes_back_is_stored_and_keeps_its_time_and_its_device(
    nursery: trio.Nursery, store: Troubled
) -> None:
    """It was offered to a gateway, whose connection turned out to be gone."""
    side = Side(store)
    await nursery.start(side.run)
    gateway = side.commands.wait("a", "gate", 60.0)
    assert await side.send("one", gateways=["gate"])
    assert await stored(store) == []
    side.monotonic[0] += 50
    side.wall[0] += 50
    gateway.cancel()
    await side.commands.kept.settled()
    second = Side(store)
    await nursery.start(second.run)
    assert not second.commands.kept.has("a", "gate")
    second.monotonic[0] += 9
    assert await second.take() == "one"
    assert await side.send("two", gateways=["gate"])
    waiting = side.commands.wait("a", "d", 60.0)
    assert await side.send("three")
    waiting.cancel()
    side.monotonic[0] += 61
    await side.commands.kept.settled()
    assert await side.take() == ""


async def test_a_device_for_which_nothing_waits_costs_no_look_at_the_store() -> None:
    side = Side(None)  # any would fail
    assert await side.take() == ""


async def test_an_event_is_answered_with_what_waited_over_a_restart(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with trio.open_nursery() as first:
        world: World = await start_world(first, tmp_path)
        assert await world.endpoint.commands.send("app1", "dev1", "", "blink", b"1")
        first.cancel_scope.cancel()
    world = await start_world(nursery, tmp_path)
    found = await world.post(ME, timeout_s=60.0)
    assert isinstance(found, Reply) and (found.code, found.command, found.body) == (Code.COMMAND, "blink", b"1")
    assert isinstance(await world.post(ME, timeout_s=60.0), Waiting)


# Over a race


class GatedDocuments:
    """What commands ask of a store, with a gate before and after it is done; a commit may fail."""

    def __init__(self, gates: Gates, random: Random) -> None:
        self.gates, self.random = gates, random
        self.documents_: dict[str, bytes] = {}

    async def documents(self, collection: str, *, after: str = "", limit: int = 1000) -> list[tuple[str, bytes]]:
        await self.gates.pass_()
        return sorted(item for item in self.documents_.items() if item[0] > after)[:limit]

    async def document(self, collection: str, key: str) -> bytes | None:
        await self.gates.pass_()
        return self.documents_.get(key)

    async def device(self, app: str, device: str) -> DeviceView | None:
        await self.gates.pass_()
        return DeviceView(Device(Metadata(device, app, uid="u1")))

    async def commit(self, changes: Sequence[Change]) -> None:
        await self.gates.pass_()
        if self.random.random() < 0.1:
            raise StoreError("the disk is full", retryable=True)
        for change in changes:
            match change:
                case PutDocument(_, key, value):
                    if key in self.documents_:
                        raise ConflictError(key)
                    self.documents_[key] = value
                case DeleteDocument(_, key):
                    if self.documents_.pop(key, None) is None:
                        raise NotFoundError(key)
        with trio.CancelScope(shield=True):
            await self.gates.pass_()


@MANY
@given(random=RANDOMS)
def test_whoever_comes_in_between_no_command_is_lost_or_handed_on_twice(random: Random) -> None:
    """Sends, polls, waits, peers that go, failing commits and clean restarts, with the choice of who goes on at each step."""

    async def run() -> None:
        gates = Gates(random)
        store = GatedDocuments(gates, random)
        taken: set[str] = set()
        got: list[str] = []

        async def send(side: Side, name: str) -> None:
            try:
                if await side.send(name, expires_s=3600, gateways=["gate"]):
                    taken.add(name)
            except StoreError:
                return

        async def poll(side: Side) -> None:
            if name := await side.take():
                got.append(name)

        def wait(side: Side) -> None:
            waiting = side.commands.wait("a", random.choice(("d", "gate")), 60.0)
            heard: list[Reply] = []
            waiters.append((waiting, heard))
            if random.random() < 0.8:
                waiting.listen(heard.append)

        def leave() -> None:
            waiting, _ = waiters.pop(random.randrange(len(waiters)))
            if random.random() < 0.5:
                waiting.cancel()  # what it heard did not get out
                return
            reply = waiting.expire()
            got.extend([reply.command] if reply.code is Code.COMMAND else [])

        number = 0
        for _ in range(2):
            waiters: list[tuple[Waiting, list[Reply]]] = []
            async with trio.open_nursery() as process:
                side = Side(store)
                process.start_soon(side.run)
                await gates.settle()
                async with trio.open_nursery() as nursery:
                    for _ in range(40):
                        match random.randrange(8):
                            case 0 | 1:
                                number += 1
                                nursery.start_soon(send, side, f"c{number}")
                            case 2:
                                nursery.start_soon(poll, side)
                            case 3 if len(waiters) < 3:
                                wait(side)
                            case 4 if waiters:
                                leave()
                            case _:
                                await gates.step()
                    await gates.settle()
                while waiters:
                    leave()
                for _ in range(50):
                    await gates.settle()
                    await trio.sleep(2)
                side.scope.cancel()
            # What was handed on when the store failed to hear of it is found here if it is handed on again.
        last = Side(store)
        async with trio.open_nursery() as process:
            process.start_soon(last.run)
            for _ in range(100):
                process.start_soon(poll, last)
                await gates.settle()
            last.scope.cancel()
        assert sorted(got) == sorted(set(got)), "twice"
        assert taken <= set(got), f"lost: {taken - set(got)}"
        assert not store.documents_ and not len(last.commands.kept)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


# Several processes on one store


async def test_a_command_that_another_process_took_reaches_the_device_here_once(
    nursery: trio.Nursery, store: Troubled
) -> None:
    """As a shared store tells it: DocumentChanged for each document that is put or deleted with `tell`."""
    here, there = Side(store), Side(store)
    for side in (here, there):
        await nursery.start(side.run)
    waiting = here.commands.wait("a", "d", 60.0)
    heard: list[Reply] = []
    waiting.listen(heard.append)
    assert await there.send("one")
    (key,) = await stored(store)
    here.bus.publish(DocumentChanged(COLLECTION, key))
    here.bus.publish(DocumentChanged("other", key))
    await until(lambda: bool(heard))
    assert [r.command for r in heard] == ["one"] and await stored(store) == []
    assert there.commands.kept.has("a", "d")
    there.bus.publish(DocumentChanged(COLLECTION, key))
    await until(lambda: not there.commands.kept.has("a", "d"))
    assert len(there.commands.kept) == 0


async def test_what_was_missed_of_other_processes_is_looked_up(nursery: trio.Nursery, store: Troubled) -> None:
    here, there = Side(store), Side(store)
    for side in (here, there):
        await nursery.start(side.run)
    assert await here.send("mine") and await there.send("theirs")
    here.bus.publish(Missed())
    await until(lambda: len(here.commands.kept) == 2)
    assert [await here.take() for _ in range(3)] == ["mine", "theirs", ""]
    assert await there.take() == "", "each is handed on by one"
    assert await here.send("again") and await there.take() == ""
    there.bus.publish(Missed())
    await until(lambda: len(there.commands.kept) == 1)
    assert await there.take() == "again"
    here.bus.publish(Missed())
    await until(lambda: len(here.commands.kept) == 0)


async def until(so: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not so():
            await trio.sleep(0.001)
