"""Statuses that come at one time: read at once, stored in one commit, and each as if it had come alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dfud.api import (
    Change,
    Code,
    Credentials,
    Device,
    Metadata,
    PutActual,
    PutDevice,
    Reply,
    Request,
    StoreError,
    Waiting,
)
from dfud.endpoint import arrivals
from dfud.endpoint.arrivals import STORING
from dfud.model.credentials import protect
from dfud.wire.messages import Type, decode_command_untrusted
from tests.endpoint.world import KEY, World, a_status, basic, start_world

DEVICES = 50


class Watched:
    """The store, with its reads and commits noted; `fails` of the commits raise."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads: list[str] = []
        self.commits: list[Sequence[Change]] = []
        self.fails = 0
        self.slow: trio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        if name in ("app", "device", "views", "find_alias", "devices", "deployments", "firmware"):
            self.reads.append(name)
        return getattr(self._store, name)

    async def commit(self, changes: Sequence[Change]) -> None:
        self.commits.append(changes)
        if self.slow is not None:
            await self.slow.wait()
        if self.fails:
            self.fails -= 1
            raise StoreError("the disk is full", retryable=True)
        await self._store.commit(changes)


async def watched_world(nursery: trio.Nursery, path: Path, **config: Any) -> tuple[World, Watched]:
    """Return a world with DEVICES devices that nobody has heard of yet, of an app that was asked for before."""
    stores: list[Watched] = []

    def wrap(store: Any) -> Any:
        stores.append(Watched(store))
        return stores[0]

    world = await start_world(nursery, path, wrap, **config)
    spec = protect({"authentication": {"credentials": [{"pass": "pw"}]}}, KEY)
    await world.store.commit([PutDevice(Device(Metadata(f"p{n}", "app1"), spec)) for n in range(DEVICES)])
    await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=a_status())
    stores[0].reads.clear()
    stores[0].commits.clear()
    return world, stores[0]


async def all_post(world: World, bodies: Sequence[bytes], **options: Any) -> list[Reply | Waiting]:
    found: dict[int, Reply | Waiting] = {}

    async def one(number: int, body: bytes) -> None:
        found[number] = await world.post(Credentials(basic(f"p{number}@app1:pw")), channel="dfu", body=body, **options)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number, body in enumerate(bodies):
                nursery.start_soon(one, number, body)
    return [found[number] for number in range(len(bodies))]


def said(store: Watched) -> list[int]:
    """Return how many devices' words each commit holds."""
    return [n for commit in store.commits if (n := sum(isinstance(change, PutActual) for change in commit))]


async def test_first_polls_that_come_together_are_one_read_and_one_commit(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await watched_world(nursery, tmp_path)
    replies = await all_post(world, [a_status()] * DEVICES)
    assert all(isinstance(reply, Reply) and reply.code is Code.COMMAND for reply in replies)
    assert store.reads == ["views"] and said(store) == [DEVICES]
    for number in range(DEVICES):
        view = await world.store.device("app1", f"p{number}")
        assert view is not None and view.actual is not None and view.actual.version == "1.0"
    nursery.cancel_scope.cancel()


async def test_reports_that_come_together_are_one_commit_and_no_read(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await watched_world(nursery, tmp_path)
    await all_post(world, [a_status()] * DEVICES)
    await all_post(world, [a_status(attributes={"n": "before"})] * DEVICES)
    store.reads.clear()
    store.commits.clear()
    await all_post(world, [a_status(attributes={"n": str(n)}) for n in range(DEVICES)])
    assert store.reads == [] and said(store) == [DEVICES]
    for number in range(DEVICES):
        view = await world.store.device("app1", f"p{number}")
        assert view is not None and view.actual is not None and view.actual.attributes == {"n": str(number)}
    nursery.cancel_scope.cancel()


async def test_who_has_said_it_before_waits_for_no_commit_of_others(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await watched_world(nursery, tmp_path)
    await all_post(world, [a_status()] * DEVICES)
    world.endpoint._slots.forget_app_calm("app1")  # what a change of policy does: all are looked at again
    store.commits.clear()
    replies = await all_post(world, [a_status(attributes={"n": "1"}), *[a_status()] * (DEVICES - 1)])
    assert all(isinstance(reply, Reply) for reply in replies) and said(store) == [1]
    nursery.cancel_scope.cancel()


async def test_when_the_common_commit_fails_each_is_stored_by_itself(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await watched_world(nursery, tmp_path)
    store.fails = 1
    replies = await all_post(world, [a_status()] * DEVICES)
    assert [isinstance(reply, Reply) and reply.code for reply in replies] == [Code.COMMAND] * DEVICES
    assert said(store) == [DEVICES, *[1] * DEVICES]
    nursery.cancel_scope.cancel()


async def test_those_that_wait_are_parked_and_woken(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, _ = await watched_world(nursery, tmp_path)
    found = await all_post(world, [a_status()] * DEVICES, timeout_s=250.0)
    assert all(isinstance(one, Waiting) for one in found) and world.endpoint.parked == DEVICES
    nursery.cancel_scope.cancel()


async def test_one_that_hangs_up_keeps_no_other_from_its_answer(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, _ = await watched_world(nursery, tmp_path)
    async with trio.open_nursery() as those:
        with trio.CancelScope() as scope:
            scope.cancel()
            await world.post(Credentials(basic("p7@app1:pw")), channel="dfu", body=a_status())
        those.start_soon(all_post, world, [a_status()] * DEVICES)
    view = await world.store.device("app1", "p7")
    assert view is not None and view.actual is not None
    nursery.cancel_scope.cancel()


async def test_wrong_passwords_that_come_together_are_counted_one_by_one(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, _ = await watched_world(nursery, tmp_path, failures_per_device=5)
    codes: list[Code] = []

    async def guess(password: str) -> None:
        found = await world.post(Credentials(basic(f"p1@app1:{password}")), channel="dfu", body=a_status())
        assert isinstance(found, Reply)
        codes.append(found.code)

    async with trio.open_nursery() as those:
        for number in range(30):
            those.start_soon(guess, f"wrong{number}")
    assert sorted(codes) == [Code.DENIED] * 5 + [Code.TOO_MANY] * 25
    right = await world.post(Credentials(basic("p1@app1:pw")), channel="dfu", body=a_status())
    assert isinstance(right, Reply) and right.code is Code.TOO_MANY, "its guesses are used up, right or wrong"
    other = await world.post(Credentials(basic("p2@app1:pw")), channel="dfu", body=a_status())
    assert isinstance(other, Reply) and decode_command_untrusted(other.body).type in (Type.SYNC, Type.WAIT)
    nursery.cancel_scope.cancel()


async def test_an_alias_and_a_stranger_among_them_are_judged_by_themselves(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, _ = await watched_world(nursery, tmp_path)
    spec = protect({"authentication": {"credentials": [{"pass": "pw"}]}, "alias": ["other"]}, KEY)
    await world.store.commit([PutDevice(Device(Metadata("named", "app1"), spec))])
    found: dict[str, Reply | Waiting] = {}

    async def one(name: str, text: str) -> None:
        request = Request("http", "127.0.0.1", Credentials(basic(text)), "dfu", a_status())
        found[name] = await world.endpoint.post(request)

    async with trio.open_nursery() as those:
        for name, text in {
            "alias": "other@app1:pw",
            "stranger": "nobody@app1:pw",
            "device": "p3@app1:pw",
            "no app": "p3@none:pw",
        }.items():
            those.start_soon(one, name, text)
    codes = {name: reply.code for name, reply in found.items() if isinstance(reply, Reply)}
    assert codes == {"alias": Code.COMMAND, "stranger": Code.DENIED, "device": Code.COMMAND, "no app": Code.DENIED}
    nursery.cancel_scope.cancel()


def soon(world: World, text: str, body: bytes) -> tuple[Waiting | None, list[Reply]]:
    replies: list[Reply] = []
    found = world.endpoint.soon(Request("http", "127.0.0.1", Credentials(basic(text)), "dfu", body))
    if found is not None:
        found.listen(replies.append)
    return found, replies


async def test_what_is_taken_soon_needs_no_task_and_is_answered_once(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await watched_world(nursery, tmp_path)
    before = trio.lowlevel.current_statistics().tasks_living
    found = [soon(world, f"p{number}@app1:pw", a_status())[1] for number in range(DEVICES)]
    texts = {"wrong": "p1@app1:no", "alias": "nick@app1:pw", "stranger": "x@app1:pw", "nothing": "app1"}
    odd = {name: soon(world, text, a_status())[1] for name, text in texts.items()}
    dialect = soon(world, "p2@app1:pw", b"\xff")[1]
    assert trio.lowlevel.current_statistics().tasks_living == before, "a task for each"
    assert world.endpoint.pressure.under_way == DEVICES + 5
    with trio.fail_after(60):
        while world.endpoint.pressure.under_way:
            await trio.testing.wait_all_tasks_blocked()
    assert [[reply.code for reply in replies] for replies in found] == [[Code.COMMAND]] * DEVICES
    codes = {name: [reply.code for reply in replies] for name, replies in odd.items()}
    denied = [Code.DENIED]
    assert codes == {"wrong": denied, "alias": [Code.COMMAND], "stranger": denied, "nothing": denied}
    assert [reply.code for reply in dialect] == [Code.MALFORMED]
    assert said(store)[0] == DEVICES
    nursery.cancel_scope.cancel()


async def test_who_hangs_up_or_waits_too_long_gives_its_turn_back(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, _ = await watched_world(nursery, tmp_path)
    (first, heard), (second, _) = (soon(world, f"p{number}@app1:pw", a_status()) for number in (1, 2))
    third, by_itself = soon(world, "nick@app1:pw", a_status())
    assert first is not None and second is not None and third is not None
    first.cancel()
    assert second.expire().code is Code.AWAY
    assert world.endpoint.pressure.under_way == 1
    await trio.testing.wait_all_tasks_blocked()
    third.cancel()
    assert world.endpoint.pressure.under_way == 0 and heard == []
    assert [reply.code for reply in by_itself] == [Code.COMMAND]
    nursery.cancel_scope.cancel()


async def test_what_waits_for_a_command_is_not_taken_soon(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, _ = await watched_world(nursery, tmp_path)
    me = Credentials(basic("p1@app1:pw"))
    assert world.endpoint.soon(Request("http", "127.0.0.1", me, "dfu", a_status(), timeout_s=60.0)) is None
    assert world.endpoint.soon(Request("http", "127.0.0.1", me, "temp", b"x")) is None
    assert world.endpoint.soon(Request("http", "127.0.0.1", me, "dfu", a_status(), as_device="p2")) is None
    nursery.cancel_scope.cancel()


def note_of(order: list[int], number: int, reply: Reply) -> None:
    order.append(number)


async def commits(store: Watched, count: int) -> None:
    await until(lambda: len(said(store)) == count)


async def test_who_waits_for_a_turn_needs_no_task_and_is_answered_in_order(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    world, store = await watched_world(nursery, tmp_path)
    pressure = world.endpoint.pressure
    pressure.limit = 1
    before = trio.lowlevel.current_statistics().tasks_living
    order: list[int] = []
    found = []
    for number in range(4):
        waiting, _ = soon(world, f"p{number}@app1:pw", a_status())
        assert waiting is not None
        waiting.listen(partial(note_of, order, number))
        found.append(waiting)
    assert trio.lowlevel.current_statistics().tasks_living == before, "a task for each"
    assert (pressure.under_way, pressure.waiting) == (1, 3)
    found[2].cancel()
    assert pressure.waiting == 2, "who is gone waits no longer"
    with trio.fail_after(60):
        while pressure.under_way:
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 3] and sum(said(store)) == 3 and not pressure.waiting
    nursery.cancel_scope.cancel()


async def until(true: Callable[[], object]) -> None:
    """Wait for what is done in threads, too."""
    with trio.fail_after(60):
        while not true():
            await trio.sleep(0.002)


async def test_who_comes_while_others_are_stored_shares_a_commit(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "GATHER_S", 3600.0)
    world, store = await watched_world(nursery, tmp_path)
    store.slow = trio.Event()
    replies = []
    for number in range(DEVICES):
        replies.append(soon(world, f"p{number}@app1:pw", a_status())[1])
        if number < STORING:
            await commits(store, number + 1)
        await trio.testing.wait_all_tasks_blocked()  # each comes by itself
    assert said(store) == [1] * STORING, "the others wait for one of these"
    store.slow.set()
    await until(lambda: not world.endpoint.pressure.under_way)
    assert said(store) == [1] * STORING + [DEVICES - STORING]
    assert [[reply.code for reply in each] for each in replies] == [[Code.COMMAND]] * DEVICES
    nursery.cancel_scope.cancel()


async def test_a_disk_that_hangs_keeps_nobody_waiting_of_whom_nothing_is_stored(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    world, store = await watched_world(nursery, tmp_path)
    await all_post(world, [a_status()] * DEVICES)
    world.endpoint._slots.forget_all_calm()
    before = len(said(store))
    store.slow = trio.Event()
    for number in range(STORING):
        soon(world, f"p{number}@app1:pw", a_status(attributes={"n": "new"}))
        await commits(store, before + number + 1)
    replies = soon(world, f"p{STORING}@app1:pw", a_status())[1]
    await until(lambda: replies)
    assert [reply.code for reply in replies] == [Code.COMMAND]
    nursery.cancel_scope.cancel()


async def test_whose_turn_would_be_late_is_told_and_nothing_is_stored(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    world, store = await watched_world(nursery, tmp_path)
    pressure = world.endpoint.pressure
    pressure.limit = pressure._at_once = 0
    _, replies = soon(world, "p1@app1:pw", a_status())
    assert pressure.waiting == 1 and not replies
    with trio.fail_after(60):
        while not replies:
            await trio.sleep(0.1)
    assert replies[0].code is Code.AWAY and replies[0].retry_after_s >= 1
    assert pressure.turned_away == 1 and (pressure.under_way, pressure.waiting) == (0, 0) and not said(store)
    nursery.cancel_scope.cancel()


async def test_who_waits_for_a_turn_at_a_stop_is_told_however_many_they_are(nursery: trio.Nursery, tmp_path: Path) -> None:
    world, store = await watched_world(nursery, tmp_path)
    store.slow = trio.Event()  # a disk that hangs: that is when many wait at a stop
    replies: list[list[Reply]] = []
    while not world.endpoint.pressure.full:
        replies.append(soon(world, f"p{len(replies) % DEVICES}@app1:pw", a_status())[1])
    assert world.endpoint.pressure.waiting > 500
    await commits(store, 1)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: all(replies))
    assert {reply.code for each in replies for reply in each} == {Code.AWAY} and max(map(len, replies)) == 1
    assert (world.endpoint.pressure.under_way, world.endpoint.pressure.waiting) == (0, 0)


async def test_one_that_cannot_go_on_keeps_nobody_else_waiting(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, store = await watched_world(nursery, tmp_path)
    store.fails = 1  # so that each is left to itself
    leave_alone = world.endpoint._arrivals.leave_alone

    def leave(one: arrivals.Soon) -> bool:
        if one.request.credentials.authorization == basic("p7@app1:pw"):
            raise RuntimeError("nobody foresaw this")
        return leave_alone(one)

    monkeypatch.setattr(world.endpoint._arrivals, "leave_alone", leave)
    replies = [soon(world, f"p{number}@app1:pw", a_status())[1] for number in range(DEVICES)]
    await until(lambda: all(replies))
    assert [n for n, each in enumerate(replies) if each[0].code is not Code.COMMAND] == [7]
    assert replies[7][0].code is Code.AWAY and not world.endpoint.pressure.under_way
    nursery.cancel_scope.cancel()
