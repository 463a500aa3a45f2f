"""Changes reach who wants them at least once and in order per device, whatever fails, hangs, ends or is away."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
import trio

from dfud.api import App, ChangeEvent, EventSink, Metadata, NotFoundError, StoreError
from dfud.controller import delivery
from dfud.controller.controller import Controller
from dfud.controller.delivery import Deliveries, Delivery
from dfud.controller.outbox import Outbox, OutboxConfig, dead, waiting
from dfud.wire.messages import Outcome, Result
from tests.controller.fleet import Fleet
from tests.controller.world import World, a_firmware, digest


class Listener(EventSink):
    """Fails, hangs and refuses as a seed says; keeps what it has taken, in order, with what it heard before it failed."""

    changes = True

    def __init__(self, name: str = "web", seed: int = 1) -> None:
        self.name = name
        self.rng = random.Random(seed)
        self.taken: list[ChangeEvent] = []
        self.away = False
        self.odd = 0.0  # the share of attempts that fail in one of several ways, after or before it has taken the event
        self.refuses: set[str] = set()
        self.attempts = 0

    async def run(self, bus: object, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def take(self, telemetry: object) -> None:
        raise AssertionError("no telemetry here")

    async def tell(self, event: ChangeEvent) -> None:
        self.attempts += 1
        if self.away:
            raise StoreError("away", retryable=True)
        if event.subject in self.refuses:
            raise StoreError("answered 422")
        how = self.rng.random() / self.odd if self.odd else 1.0
        if how < 0.3:
            raise StoreError("answered 503", retryable=True)
        if how < 0.5:
            await trio.sleep(60)
        await trio.sleep(self.rng.random())
        self.taken.append(event)
        if how < 0.9:
            raise ZeroDivisionError("after it was taken")


def orders(taken: list[ChangeEvent]) -> dict[tuple[str, str], list[str]]:
    """Return the ids by subject as they came first, and fail where one came first behind a later one."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in taken:
        line = found[event.kind, event.subject]
        if event.id not in line:
            assert not line or event.id > line[-1], f"{event.subject}: {event.id} behind {line[-1]}"
            line.append(event.id)
    return found


class Post:
    """A world whose controller writes an outbox; `kill()` is kill -9."""

    def __init__(self, *sinks: Listener, **config: object) -> None:
        self.world = World()
        self.sinks = sinks
        self.config = OutboxConfig(**{"retry_s": 1.0, "retry_max_s": 20.0, **config})  # type: ignore[arg-type]
        self.scopes: list[trio.CancelScope] = []

    def now(self) -> float:
        return self.world.wall + trio.current_time()

    async def start(self, nursery: trio.Nursery) -> None:
        world = self.world
        outbox = Outbox(world.store, [sink.name for sink in self.sinks], self.config, lambda: int(self.now() * 1e9))
        await outbox.load()
        self.deliveries = Deliveries(world.store, world.bus, outbox, list(self.sinks), self.now)
        made = Controller(
            store=world.store,
            bus=world.bus,
            packages=world.packages,
            config=world.policy,
            now=self.now,
            promote=None,
            outbox=outbox,
        )
        world.controller = made

        async def live(one: Delivery) -> None:
            with trio.CancelScope() as scope:
                self.scopes.append(scope)
                await one.run()

        for one in self.deliveries.all.values():
            nursery.start_soon(live, one)

    def kill(self) -> None:
        for scope in self.scopes:
            scope.cancel()

    def stored(self, collection: str) -> list[str]:
        return [key for (place, key) in self.world.store.documents_ if place == collection]


@pytest.mark.parametrize("seed", range(4))
async def test_every_step_is_told_in_order_per_device_over_failures_and_kills(
    seed: int, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    listener, other = Listener(seed=seed), Listener("other")
    post = Post(listener, other, attempts=1000, timeout_s=5.0)
    world = post.world
    await post.start(nursery)
    fleet = Fleet(world, 12, seed, bad={"1.2": 0.4}, zones=["UTC"])
    listener.odd = 0.6
    rng = random.Random(seed)
    for version in ("1.1", "1.2", "1.3", "1.1"):
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": version}})
        for board in fleet.boards.values():
            world.store.broken = rng.random() < 0.2
            try:
                await fleet.poll(board)
            except StoreError:
                board.version = board.version
            world.store.broken = False
        await trio.sleep(rng.uniform(0, 20))
        post.kill()
        await trio.sleep(0.1)
        listener.away = rng.random() < 0.5
        await post.start(nursery)
    listener.away, listener.odd = False, 0.0
    await trio.sleep(600)
    steps: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for entry in world.store.entries:
        steps[entry.device].append((entry.event, str(entry.state)))
    for sink in (listener, other):
        found = orders(sink.taken)
        first = {event.id: event for event in reversed(sink.taken)}
        told = {
            device: [(first[i].data["event"], first[i].data["state"]) for i in ids]
            for (kind, device), ids in found.items()
            if kind == "deployment"
        }
        assert told == dict(steps), f"seed {seed}, {sink.name}"
    assert not post.stored(waiting("web")) and not post.stored(dead("web"))
    assert len(listener.taken) > len({event.id for event in listener.taken}), "nothing was told twice: the storm was none"
    assert len(other.taken) == len(world.store.entries), "a sink that takes everything is told once"
    post.kill()


async def test_a_sink_that_is_away_costs_only_itself_and_hears_all_of_it_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web, other = Listener(), Listener("other")
    web.away = True
    post = Post(web, other)
    await post.start(nursery)
    fleet = Fleet(post.world, 30, 1, bad={}, zones=["UTC"])
    post.world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    for board in fleet.boards.values():
        await fleet.poll(board)
    number = len(post.world.store.entries)
    await trio.sleep(10)
    assert len(other.taken) == number and not web.taken
    (status, _) = post.deliveries.status()
    assert (status["waiting"], status["problem"], status["delivered"]) == (number, "away", 0)
    attempts = web.attempts
    await trio.sleep(600)
    assert web.attempts - attempts < 30 * 600 / 15, "it is not asked again without a pause"
    web.away = False
    await trio.sleep(25)
    assert len({event.id for event in web.taken}) == number
    orders(web.taken)
    assert post.deliveries.status()[0]["waiting"] == 0
    post.kill()


async def test_what_is_refused_is_a_dead_letter_that_can_be_told_again_or_dropped(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Listener()
    post = Post(web, attempts=3, dead_max=4)
    await post.start(nursery)
    fleet = Fleet(post.world, 3, 1, bad={}, zones=["UTC"])
    post.world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    boards = list(fleet.boards.values())
    web.refuses = {boards[0].name}
    for board in boards:
        await fleet.poll(board)
    await trio.sleep(120)
    assert {event.subject for event in web.taken} == {board.name for board in boards[1:]}
    letters = await post.deliveries.letters("web")
    assert [(letter.problem, letter.attempts) for _, letter in letters if letter is not None] == [("answered 422", 3)] * 4
    assert post.deliveries.status()[0]["dead"] == 4
    with pytest.raises(NotFoundError, match="no dead letter nothing"):
        await post.deliveries.retry("web", ["nothing"])
    with pytest.raises(NotFoundError, match="there are: web"):
        await post.deliveries.letters("log")
    web.refuses = set()
    before = len(web.taken)
    assert await post.deliveries.drop("web", [letters[0][0]]) == 1
    assert await post.deliveries.retry("web") == 3
    await trio.sleep(10)
    assert [event.id for event in web.taken[before:]] == [letter.event.id for _, letter in letters[1:] if letter is not None]
    assert await post.deliveries.letters("web") == [] and post.deliveries.status()[0]["dead"] == 0
    post.kill()


async def test_letters_that_cannot_be_read_hide_no_others_and_can_be_dropped(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PAGE", 2)
    web = Listener()
    post = Post(web, attempts=1)
    documents = post.world.store.documents_
    for number in range(5):  # more than a page, in front of all others
        documents[dead("web"), f"{number:020d}-x"] = b"{"
    documents[waiting("web"), "\u00b2" * 20] = b"{"  # no key, and no change either
    await post.start(nursery)
    fleet = Fleet(post.world, 2, 1, bad={}, zones=["UTC"])
    post.world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    boards = list(fleet.boards.values())
    web.refuses = {boards[0].name}
    for board in boards:
        await fleet.poll(board)
    await trio.sleep(120)
    assert {event.subject for event in web.taken} == {boards[1].name}
    letters = await post.deliveries.letters("web")
    assert [key for key, letter in letters if letter is None] == [f"{n:020d}-x" for n in range(5)]
    good = [key for key, letter in letters if letter is not None]
    assert good and post.deliveries.status()[0]["dead"] == len(letters)
    web.refuses = set()
    assert await post.deliveries.retry("web") == len(good), "those that can be read"
    assert await post.deliveries.drop("web", ["0" * 20 + "-x"]) == 1
    assert await post.deliveries.drop("web") == 4
    await trio.sleep(10)
    assert await post.deliveries.letters("web") == [] and post.deliveries.status()[0]["dead"] == 0
    assert not [key for collection, key in documents if collection == waiting("web")]
    post.kill()


async def test_what_waits_is_bounded_by_number_and_by_age(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Listener()
    web.away = True
    post = Post(web, waiting_max=10, keep_s=3600.0, dead_max=100)
    await post.start(nursery)
    fleet = Fleet(post.world, 20, 1, bad={}, zones=["UTC"])
    post.world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    for board in fleet.boards.values():
        await fleet.poll(board)
    await trio.sleep(60)
    assert len(post.stored(waiting("web"))) == 10
    letters = await post.deliveries.letters("web")
    number = len(post.world.store.entries)
    assert len(letters) == number - 10 and number > 60
    assert [key for key, _ in letters] == sorted(key for key, _ in letters)
    await trio.sleep(3700)
    assert not post.stored(waiting("web")) and len(await post.deliveries.letters("web")) == min(100, number)
    web.away = False
    assert await post.deliveries.retry("web") == 10, "no more than may wait"
    while post.deliveries.status()[0]["dead"]:
        await trio.sleep(60)
        await post.deliveries.retry("web")
    await trio.sleep(60)
    assert len({event.id for event in web.taken}) == min(100, number)
    post.kill()


async def test_rollouts_are_told_and_a_clock_that_was_set_back_changes_no_order(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Listener()
    post = Post(web)
    world = post.world
    world.store.apps_["app"] = App(Metadata("app", uid="u"), {"signing": {"mode": "optional"}})
    world.want(None)
    await post.start(nursery)
    with trio.CancelScope() as running:
        await nursery.start(world.controller.run)
        await world.poll("1.0")
        spec: dict[str, object] = {"firmware": "1.1", "waves": [{"percent": 100}]}
        await world.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=True)
        world.wall -= 7200
        await world.controller.rollouts.act("app", "r", "start", "eva")
        await trio.sleep(5)
        await world.poll("1.0", result=Result(Outcome.ROLLED_BACK, bytes.fromhex(digest("1.1")), 1, "boom", 3))
        world.publish(a_firmware("1.1"))
        post.kill()
        await trio.sleep(1)
        await post.start(nursery)
        await world.controller.rollouts._load()
        await world.controller.rollouts.act("app", "r", "abort", "eva", "enough")
        await world.controller.rollouts.delete("app", "r")
        await trio.sleep(30)
        running.cancel()
    told = [(event.data["event"], event.data["state"]) for event in web.taken if event.kind == "rollout"]
    assert told[0] == ("created", "draft") and told[-2:] == [("abort", "aborted"), ("deleted", "aborted")]
    assert ("schedule", "scheduled") in told
    abort = next(event for event in web.taken if event.data["event"] == "abort")
    assert (abort.data["by"], abort.data["reason"], abort.data["firmware"]) == ("eva", "enough", "1.1")
    orders(web.taken)
    post.kill()
    nursery.cancel_scope.cancel()


async def test_without_a_sink_nothing_is_stored(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.want("1.1")
    await world.poll("1.0")
    assert not world.store.documents_


async def test_a_backlog_of_thousands_is_told_whole_and_read_only_a_few_times(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Listener()
    web.away = True
    post = Post(web)
    await post.start(nursery)
    outbox = post.deliveries._outbox
    reads = 0
    read = post.world.store.documents

    async def counting(collection: str, **given: Any) -> list[tuple[str, bytes]]:
        nonlocal reads
        found = await read(collection, **given)
        reads += len(found)
        return found

    post.world.store.documents = counting  # type: ignore[method-assign]
    for number in range(3000):
        data = {"event": "sent", "state": "notified"}
        event = ChangeEvent("deployment", "app", f"d{number % 700}", post.now(), data, outbox.key())
        await post.world.store.commit(outbox.put([event]))
        post.deliveries.all["web"].wake()
        await trio.sleep(0.02)
    await trio.sleep(60)
    web.away = False
    with trio.fail_after(7200):
        while post.stored(waiting("web")):
            await trio.sleep(1)
    assert len(orders(web.taken)) == 700 and len({event.id for event in web.taken}) == 3000
    assert reads < 3000 * 12, f"{reads} documents were read for 3000"
    post.kill()
