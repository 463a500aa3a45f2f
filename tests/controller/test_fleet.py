"""The counters of a fleet are at any time equal to a recount, whatever fails, ends or is deleted in between."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
import trio

from dfud.api import App, AppChanged, DeviceChanged, DeviceDenied, Metadata, NotFoundError, RefusedError, StoreError
from dfud.controller.attention import Need
from dfud.controller.explain import REFUSED
from dfud.model.firmware import Recall
from dfud.model.tally import fleet_scope
from dfud.wire.messages import Code, Defer, Outcome, Progress, Result, Starts
from tests.controller.fleet import Fleet
from tests.controller.world import World, digest

TRACE = 'Traceback (most recent call last):\n  File "lamp.py", line {line}, in loop\nZeroDivisionError: divide by zero\n'


def recount(world: World) -> dict[str, int]:
    """Count what the records say, without a look at their tallies."""
    found: Counter[str] = Counter()
    for (app, name), actual in world.store.actuals.items():
        if (app, name) not in world.store.devices_:
            continue
        newest = world.store.newest(app, name)
        found[f"version/{actual.version}"] += 1
        found[f"state/{newest.state if newest else 'none'}"] += 1
        found[f"hour/{int(actual.seen_s // 3600)}"] += 1
        if newest is not None and newest.state in ("failed", "rolled-back"):
            found[f"code/{Code(newest.code).name.lower()}"] += 1
    return dict(found)


def counted(world: World) -> dict[str, int]:
    counts = world.store.counts_.get(fleet_scope("app"), {})
    return {n: v for n, v in counts.items() if v and n.partition("/")[0] in ("version", "state", "hour", "code")}


def delete(world: World, name: str) -> None:
    del world.store.devices_["app", name]
    world.store.actuals.pop(("app", name), None)
    world.store.of_device.pop(("app", name), None)
    world.bus.publish(DeviceChanged("app", name, deleted=True))


@pytest.mark.parametrize("seed", range(3))
async def test_counters_are_equal_to_a_recount_after_every_storm(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    world = World()
    fleet = Fleet(world, 40, seed, bad={"1.2": 0.3}, zones=["UTC"], online=0.9)
    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    rng = random.Random(seed)
    for step in range(12):
        world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": rng.choice(("1.1", "1.2", "1.3"))}})
        for board in rng.sample(sorted(fleet.boards), 25):
            if ("app", board) not in world.store.devices_:
                continue
            world.store.broken = rng.random() < 0.1
            try:
                await fleet.poll(fleet.boards[board])
                if rng.random() < 0.1:
                    await world.controller.cancel("app", board, "eva")
            except (StoreError, RefusedError):
                pass  # what was not stored is not counted
            world.store.broken = False
        if rng.random() < 0.5:
            name = rng.choice([n for _, n in world.store.devices_])
            async with world.controller.leaving("app", name) as also:
                await world.store.commit(also)
                delete(world, name)
        if rng.random() < 0.3:
            world.restarted()
        await trio.sleep(rng.choice((1, 3600, 86400)))
        assert counted(world) == recount(world), f"seed {seed}, step {step}"


async def test_the_numbers_of_a_fleet(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    fleet = Fleet(world, 10, 1, bad={}, zones=["UTC"])
    for board in list(fleet.boards.values())[:8]:
        await fleet.say(board)
    await trio.sleep(2 * 86400)
    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    for board in list(fleet.boards.values())[:3]:
        await fleet.poll(board)
    found = await world.controller.fleet.numbers("app", hours=72, points=72)
    assert (found["devices"], found["neverReported"]) == (10, 2)
    assert found["versions"] == {"1.0": 5, "1.1": 3} and found["states"] == {"none": 5, "done": 3}
    assert found["seen"] == {"hour": 3, "day": 3, "week": 8}
    assert found["adoption"][-1]["versions"] == {"1.0": 5, "1.1": 3}
    assert {"1.0": 8} in [point["versions"] for point in found["adoption"]]
    assert found["atRisk"] == []
    for version in ("1.0", "1.2"):
        bad = world.store.firmwares_["app", version]
        world.publish(msgspec.structs.replace(bad, recalled=Recall("it burns", "eva", "2026-01-01T00:00:00Z")))
    found = await world.controller.fleet.numbers("app")
    assert found["atRisk"] == [{"version": "1.0", "devices": 5, "reason": "it burns"}], "nobody runs 1.2"
    with pytest.raises(NotFoundError):
        await world.controller.fleet.numbers("nobody")


async def test_crashes_are_counted_by_what_they_are(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    fleet = Fleet(world, 6, 1, bad={}, zones=["UTC"])
    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    boards = list(fleet.boards.values())
    for number, board in enumerate(boards[:4]):
        await fleet.say(board)
        text = TRACE.format(line=number) if number < 3 else "another"
        left = Result(
            outcome=Outcome.ROLLED_BACK,
            digest=bytes.fromhex(digest("1.1")),
            code=1,
            text=text,
            attempts=3,
            reset=12,
            record=b"\1\2",
        )
        await fleet.say(board, result=left)
    await fleet.say(boards[4], starts=Starts(1, 0, 1, ""))
    await fleet.say(boards[4], starts=Starts(3, 1, 7, TRACE.format(line=99)))
    found = await world.controller.fleet.numbers("app")
    first, second = found["crashes"]
    assert (first["devices"], first["title"]) == (4, "ZeroDivisionError in lamp:loop")
    assert first["sinceVersion"] == "1.1" and first["versions"] == ["1.1", "1.0"]
    assert first["among"] == [board.name for board in (*boards[:3], boards[4])]
    assert second["devices"] == 1
    assert found["codes"] == {"crashed": 4}
    world.restarted()
    whole = await world.controller.fleet.crash("app", first["fingerprint"])
    assert whole["text"] == TRACE.format(line=0) and whole["record"] == "0102"
    with pytest.raises(NotFoundError):
        await world.controller.fleet.crash("app", "000000000000")
    # A device that runs another image shows it no longer.
    await world.controller.retry("app", boards[0].name, "eva")
    await fleet.poll(boards[0])
    await fleet.say(boards[0])
    assert (await world.controller.fleet.numbers("app"))["crashes"][0]["devices"] == 3


async def test_versions_that_nobody_published_are_counted_one_by_one_only_so_far(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World()
    await nursery.start(world.controller.run)
    for number in range(200):
        await world.poll(f"odd-{number}")
        await trio.sleep(10)
    await world.poll("1.1")
    found = await world.controller.fleet.numbers("app")
    assert found["versions"] == {"1.1": 1}
    names = {name for name, n in world.store.counts_[fleet_scope("app")].items() if n and not name.startswith("at/")}
    assert len(names) == 3, names
    nursery.cancel_scope.cancel()


async def test_what_an_app_left_behind_is_forgotten_with_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World()
    await world.store.commit([])
    world.store.documents_["crash", "gone/abc"] = b"{}"
    world.store.documents_["crash", "app/abc"] = b"{}"
    await nursery.start(world.controller.run)
    await trio.sleep(10)
    assert set(world.store.documents_) == {("crash", "app/abc")}
    del world.store.apps_["app"]
    world.bus.publish(AppChanged("app", deleted=True))
    await trio.sleep(10)
    assert not world.store.documents_
    nursery.cancel_scope.cancel()


async def test_a_deployment_that_stands_still_needs_attention_by_why(autojump_clock: trio.testing.MockClock) -> None:
    world = World(attention_s=3600.0)
    fleet = Fleet(world, 8, 1, bad={}, zones=["UTC"])
    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}})
    boards = list(fleet.boards.values())
    package = {}
    for board in boards[:7]:
        package[board.name] = (await fleet.say(board)).package
    silent, stuck, waits, trial, moves, failing, held = boards[:7]
    await fleet.say(stuck, progress=Progress(package[stuck.name], 3))
    spec = {"firmware": {"version": "1.1", "hold": True}}
    device = world.store.devices_["app", held.name]
    world.store.devices_["app", held.name] = msgspec.structs.replace(device, spec=spec)
    world.bus.publish(DeviceChanged("app", held.name))
    assert not (await world.controller.insight.attention("app")).causes
    for number in range(40):
        await trio.sleep(200)
        # Somebody fetches the same chunk again and again: it is heard of, and does not move.
        world.controller.fetched("app", stuck.name, package[stuck.name].hex(), 3)
        await fleet.say(stuck, progress=Progress(package[stuck.name], 3))
        await fleet.say(waits, defer=Defer("the lamp is on", 900))
        trial.version, trial.image = "1.1", bytes.fromhex(digest("1.1"))
        await fleet.say(trial, trial=True)
        await fleet.say(held)
        await fleet.say(failing, result=Result(Outcome.FAILED, bytes.fromhex(digest("1.1")), 8, "torn", number=7))
        if number % 10 == 0:
            await fleet.say(moves, progress=Progress(package[moves.name], 1 + number // 10))
        else:
            await fleet.say(moves, progress=Progress(package[moves.name], 1 + number // 10))
    found = await world.controller.insight.attention("app")
    assert {cause: [one.device for one in group.devices] for cause, group in found.causes.items()} == {
        Need.SILENT: [silent.name],
        Need.STUCK: [stuck.name],
        Need.USER: [waits.name],
        Need.TRIAL: [trial.name],
        Need.FAILING: [failing.name],
    }
    assert found.causes[Need.STUCK].devices[0].at == "chunk 3 of 10"
    assert found.open == 7 and world.controller.insight.needs()["app"]["stuck"] == 1
    # A device that is done needs nobody.
    await fleet.say(trial)
    assert Need.TRIAL not in (await world.controller.insight.attention("app")).causes


async def test_credentials_that_were_refused_are_part_of_the_explanation() -> None:
    world = World()
    world.want("1.1")
    for _ in range(14):
        world.bus.publish(DeviceDenied("password", "app", "dev", "127.0.0.1"))
    found = await world.controller.insight.explain("app", "dev")
    assert found.code == REFUSED and "refused 14 times since" in found.sentences[0] and "secret" in found.todo
    assert found.values["refused"]["times"] == 14
    await world.poll("1.0")
    found = await world.controller.insight.explain("app", "dev")
    assert found.code == "sent" and "refused" not in found.values
    world.wall += 7200
    world.bus.publish(DeviceDenied("password", "app", "dev", "127.0.0.1"))
    found = await world.controller.insight.explain("app", "dev")
    assert found.code == REFUSED and "refused once since" in found.sentences[0]


async def test_a_device_is_told_which_wave_it_waits_for(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World()
    world.store.apps_["app"] = App(Metadata("app", uid="u"), {"signing": {"mode": "optional"}, "rollouts": {"approval": True}})
    fleet = Fleet(world, 6, 1, bad={"1.2": 1.0}, zones=["UTC"])
    await nursery.start(world.controller.run)
    boards = list(fleet.boards.values())
    for board in boards:
        await fleet.say(board)
    waves = [
        {"count": 1, "soakS": 600, "approval": True, "error": {"count": 1}},
        {"count": 3, "error": {"count": 1}},
        {"percent": 100},
    ]
    rollouts = world.controller.rollouts
    await rollouts.create("app", Metadata("r"), {"firmware": "1.1", "waves": waves}, "eva", draft=False)
    found = await world.controller.insight.explain("app", boards[0].name)
    assert any("waits for an approval by somebody else than eva" in s for s in found.sentences)
    assert "dfuctl rollout approve r" in found.todo or found.code == "nothing-wanted"
    await rollouts.act("app", "r", "approve", "adam")
    await trio.sleep(1)

    async def turns() -> dict[str, set[str]]:
        out: dict[str, set[str]] = {}
        for board in boards:
            told = await world.controller.insight.explain("app", board.name)
            for turn in told.values.get("turns", []):
                out.setdefault(turn["code"], set()).add(board.name)
        return out

    assert {code: len(names) for code, names in (await turns()).items()} == {"wave": 5}
    for board in boards:
        await fleet.poll(board)
    await trio.sleep(1)
    assert {code: len(names) for code, names in (await turns()).items()} == {"soaking": 5}
    waiting = next(b for b in boards if b.version == "1.0")
    found = await world.controller.insight.explain("app", waiting.name)
    assert any("wave 1 is good and soaks till" in s for s in found.sentences)
    await trio.sleep(700)
    assert {code: len(names) for code, names in (await turns()).items()} == {"approval": 5}
    nursery.cancel_scope.cancel()


async def test_a_paused_rollout_names_the_failure_that_blocks_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World()
    world.store.apps_["app"] = App(Metadata("app", uid="u"), {"signing": {"mode": "optional"}})
    fleet = Fleet(world, 6, 1, bad={"1.2": 1.0}, zones=["UTC"])
    await nursery.start(world.controller.run)
    for board in fleet.boards.values():
        await fleet.say(board)
    waves = [{"count": 1, "error": {"count": 1}}, {"percent": 100}]
    rollouts = world.controller.rollouts
    made = await rollouts.create("app", Metadata("r"), {"firmware": "1.2", "waves": waves}, "eva", draft=False)
    await trio.sleep(1)
    for board in fleet.boards.values():
        await fleet.poll(board)
    await trio.sleep(1)
    assert rollouts.get("app", "r").status.state == "paused"
    (failure,) = await rollouts.failures.of(made.metadata.uid)
    assert (failure.title, failure.code, failure.text) == ("boom", "crashed", "boom")
    other = next(name for name in fleet.boards if name != failure.device)
    found = await world.controller.insight.explain("app", other)
    assert any(f"It is blocked by a failure on {failure.device} (boom)." in s for s in found.sentences)
    assert found.values["turns"][0]["blockedBy"] == [failure.device]
    world.restarted()
    assert [f.device for f in await world.controller.rollouts.failures.of(made.metadata.uid)] == [failure.device]
    await rollouts.act("app", "r", "abort", "eva")
    await rollouts.delete("app", "r")
    assert ("rollout.failed", made.metadata.uid) not in world.store.documents_
    nursery.cancel_scope.cancel()
