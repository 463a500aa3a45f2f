"""Rollouts that bring app firmware, alone and beside system firmware: a device is done when both run, and goes back with both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dfud.api import DeviceChanged, PeerError, Recall
from dfud.model.rollout_states import State
from tests.controller.led import QUICK, Led, led
from tests.controller.world import a_firmware

BOTH = {"firmware": "1.1", "app": "3.1"}
ALL = [{"percent": 100, "soakS": 60, "silentS": 7200}]


@asynccontextmanager
async def two_kinds(count: int = 24, *, app: str = "3.0", **more: Any) -> AsyncIterator[Led]:
    """A fleet that runs 1.0 with app 3.0, as the app's spec says; 1.1, 1.2 and 3.1, 3.2 are published."""
    async with led(count, **more) as at:
        for number, version in enumerate(("1.0", "1.1", "1.2"), 1):
            at.world.publish(a_firmware(version, sequence=number))
        for number, version in enumerate(("3.0", "3.1", "3.2"), 30):
            at.world.publish(a_firmware(version, kind="app", sequence=number))
        at.fleet.equip(app, 30)
        held = at.world.store.apps_["app"]
        at.world.store.apps_["app"] = msgspec.structs.replace(
            held,
            metadata=msgspec.structs.replace(held.metadata, resource_version="two"),
            spec={**held.spec, "firmware": {"version": "1.0", "app": "3.0"}},
        )
        for board in at.fleet.boards.values():
            await at.fleet.say(board)
        yield at


async def counts(at: Led, name: str) -> dict[str, int]:
    found = await at.rollouts.counts(at.rollouts.get("app", name).metadata.uid)
    total: dict[str, int] = {}
    for wave, one in found.items():
        for field in one.__struct_fields__:
            key = f"back/{field}" if wave < 0 else field
            total[key] = total.get(key, 0) + getattr(one, field)
    return {key: number for key, number in total.items() if number}


async def settled(at: Led, name: str) -> None:
    await trio.sleep(3600)
    at.check(name)
    assert not [b.name for b in at.fleet.boards.values() if b.out_of_range]


async def test_a_device_is_done_when_both_kinds_run(autojump_clock: MockClock) -> None:
    async with two_kinds() as at:
        await at.create("both", {**BOTH, "waves": QUICK, "transfers": 4})
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 24}
        assert await counts(at, "both") == {"done": 24}
        assert all([v for _, v in b.told_at] == ["1.1", "3.1"] for b in at.fleet.boards.values())


async def test_who_runs_one_of_both_is_brought_the_other(autojump_clock: MockClock) -> None:
    async with two_kinds(12, app="3.1") as at:
        at.world.store.apps_["app"].spec["firmware"]["app"] = "3.1"
        await at.create("both", {**BOTH, "waves": ALL})
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 12} and await counts(at, "both") == {"done": 12}
        assert all([v for _, v in b.told_at] == ["1.1"] for b in at.fleet.boards.values())


@pytest.mark.parametrize("bad", ["3.1", "1.1"])
@pytest.mark.parametrize("first", ["system", "app"])
async def test_where_one_kind_fails_the_other_goes_back(bad: str, first: str, autojump_clock: MockClock) -> None:
    async with two_kinds(20, bad={bad: 1.0}) as at:
        if first == "app":
            at.world.publish(a_firmware("1.1", sequence=2, beside=(31, 99)))
        await at.create("both", {**BOTH, "waves": [{"percent": 60, "silentS": 7200}, {"percent": 100}]})
        rollout = await at.until("both", State.PAUSED)
        assert rollout.status.code == "error-threshold"
        await settled(at, "both")
        assert at.fleet.both() == {("1.0", "3.0"): 20}, "nobody keeps a half"
        found = await counts(at, "both")
        assert found.keys() == {"left"} and found["left"] >= 3, "a device that went back with both counts once"
        failures = await at.rollouts.failed(rollout.metadata.uid)
        assert failures and all(f["title"] and f["state"] == "rolled-back" for f in failures)
        told = [b for b in at.fleet.boards.values() if b.told_at]
        order = ["1.1", "3.1"] if first == "system" else ["3.1", "1.1"]
        for board in told:
            back = [] if bad == order[0] else [{"1.1": "1.0", "3.1": "3.0"}[order[0]]]
            assert [v for _, v in board.told_at] == [*order[: order.index(bad) + 1], *back]


async def test_a_user_has_both_tried_again(autojump_clock: MockClock) -> None:
    async with two_kinds(20, bad={"3.1": 1.0}) as at:
        await at.create("both", {**BOTH, "waves": [{"percent": 60, "silentS": 7200}, {"percent": 100}]})
        await at.until("both", State.PAUSED)
        await settled(at, "both")
        at.fleet.bad.clear()
        at.retries = 1
        await at.rollouts.act("app", "both", "retry", "eva")
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 20} and await counts(at, "both") == {"done": 20}


@pytest.mark.parametrize("beside", [None, (31, 99)], ids=["any order", "the system needs the new app"])
async def test_a_revert_takes_both_back(beside: tuple[int, int] | None, autojump_clock: MockClock) -> None:
    async with two_kinds() as at:
        at.world.publish(a_firmware("1.1", sequence=2, beside=beside))
        await at.create("both", {**BOTH, "waves": ALL})
        await at.until("both", State.FINISHED)
        await at.rollouts.act("app", "both", "revert", "eva")
        await at.until("both", State.ABORTED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.0", "3.0"): 24}
        assert await counts(at, "both") == {"back/done": 24}


async def test_a_revert_in_the_middle_takes_halves_back_too(autojump_clock: MockClock) -> None:
    async with two_kinds(30) as at:
        await at.create("both", {**BOTH, "waves": ALL, "transfers": 6})
        with trio.fail_after(86400):
            while not any(pair == ("1.1", "3.0") for pair in at.fleet.both()) or at.fleet.both()["1.1", "3.1"] < 3:
                await trio.sleep(1)
        await at.rollouts.act("app", "both", "pause", "eva")
        await at.rollouts.act("app", "both", "revert", "eva")
        await at.until("both", State.ABORTED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.0", "3.0"): 30}


async def test_paused_lets_a_half_come_to_its_end(autojump_clock: MockClock) -> None:
    async with two_kinds(30) as at:
        await at.create("both", {**BOTH, "waves": ALL, "transfers": 6})
        with trio.fail_after(86400):
            while not any(pair == ("1.1", "3.0") for pair in at.fleet.both()):
                await trio.sleep(1)
        await at.rollouts.act("app", "both", "pause", "eva")
        await settled(at, "both")
        assert at.fleet.both().keys() <= {("1.0", "3.0"), ("1.1", "3.1")} and at.fleet.both()["1.1", "3.1"]


async def test_two_rollouts_each_for_its_kind_run_at_once(autojump_clock: MockClock) -> None:
    async with two_kinds(20) as at:
        await at.create("system", {"firmware": "1.1", "waves": ALL})
        await at.create("app", {"app": "3.1", "waves": ALL})
        for name in ("system", "app"):
            await at.until(name, State.FINISHED)
            await settled(at, name)
            assert await counts(at, name) == {"done": 20}
        assert at.fleet.both() == {("1.1", "3.1"): 20}
        # What follows one of them leaves what the other one brought.
        await at.create("next", {"app": "3.2", "waves": ALL})
        await at.until("next", State.FINISHED)
        await settled(at, "system")
        assert at.fleet.both() == {("1.1", "3.2"): 20}


async def test_boards_without_banks_take_no_half_of_a_pair(autojump_clock: MockClock) -> None:
    async with two_kinds(20) as at:
        boards = list(at.fleet.boards.values())
        for board in boards[:4]:
            board.banks = False
        few = {"error": {"percent": 50, "atLeast": 10}, "success": {"percent": 50}}
        await at.create("both", {**BOTH, "waves": [{**ALL[0], **few}]})
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert {b.version for b in boards[:4]} == {"1.0"} and {b.version for b in boards[4:]} == {"1.1"}
        assert await counts(at, "both") == {"done": 16, "failed": 4}


async def test_nobody_waits_for_a_half_that_somebody_else_speaks_for(autojump_clock: MockClock) -> None:
    async with two_kinds(10) as at:
        await at.create("both", {**BOTH, "waves": ALL, "transfers": 2})
        with trio.fail_after(86400):
            while ("1.1", "3.0") not in at.fleet.both():
                await trio.sleep(1)
        half = next(b for b in at.fleet.boards.values() if (b.version, b.app) == ("1.1", "3.0"))
        held = at.world.store.devices_["app", half.name]
        own = msgspec.structs.replace(held, spec={"firmware": {"version": "1.1"}})
        at.world.store.devices_["app", half.name] = own
        at.world.bus.publish(DeviceChanged("app", half.name))
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 9, ("1.1", "3.0"): 1}
        assert await counts(at, "both") == {"done": 9, "cancelled": 1}
        # Who follows it again gets the rest, and counts.
        at.world.store.devices_["app", half.name] = held
        at.world.bus.publish(DeviceChanged("app", half.name))
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 10} and await counts(at, "both") == {"done": 10}


async def test_who_left_the_one_before_is_not_given_the_other(autojump_clock: MockClock) -> None:
    """Both orders: the half that would be first is the one that was left, and the one that would be second."""
    async with two_kinds(6) as at:
        named, left = list(at.fleet.boards.values())[:2], {"d00000": {"app": "3.1"}, "d00001": {"version": "1.1"}}
        at.fleet.bad = {"3.1": 1.0, "1.1": 1.0}
        for name, wanted in left.items():
            held = at.world.store.devices_["app", name]
            at.world.store.devices_["app", name] = msgspec.structs.replace(held, spec={"firmware": wanted})
            at.world.bus.publish(DeviceChanged("app", name))
        await trio.sleep(1200)
        assert [board.tried for board in named] == [{"3.1": 1}, {"1.1": 1}]
        at.fleet.bad = {}
        for name in left:
            held = at.world.store.devices_["app", name]
            at.world.store.devices_["app", name] = msgspec.structs.replace(held, spec={})
            at.world.bus.publish(DeviceChanged("app", name))
        await at.create("both", {**BOTH, "waves": ALL})
        await settled(at, "both")
        assert at.fleet.both() == {("1.0", "3.0"): 2, ("1.1", "3.1"): 4}
        for board in named:
            assert (await at.world.controller.insight.explain("app", board.name)).code == "left"
            await at.world.controller.retry("app", board.name, "eva")
        at.retries = 1
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 6}


async def test_the_end_promotes_both_and_leaves_the_kind_that_was_not_brought(autojump_clock: MockClock) -> None:
    async with two_kinds(8) as at:
        await at.create("app", {"app": "3.1", "waves": ALL, "promote": True})
        await at.until("app", State.FINISHED)
        assert at.world.store.apps_["app"].spec["firmware"] == {"version": "1.0", "app": "3.1"}
        await at.create("both", {"firmware": "1.1", "app": "3.2", "waves": ALL, "promote": True})
        await at.until("both", State.FINISHED)
        assert at.world.store.apps_["app"].spec["firmware"] == {"version": "1.1", "app": "3.2"}
        await at.rollouts.act("app", "both", "revert", "eva")
        assert at.world.store.apps_["app"].spec["firmware"] == {"version": "1.0", "app": "3.1"}
        await at.until("both", State.ABORTED)
        assert at.fleet.both() == {("1.0", "3.1"): 8}


async def test_a_recall_of_either_kind_pauses_it(autojump_clock: MockClock) -> None:
    async with two_kinds(20) as at:
        await at.create("both", {**BOTH, "waves": QUICK})
        await trio.sleep(30)
        at.world.publish(msgspec.structs.replace(at.world.store.firmwares_["app", "3.1"], recalled=Recall("it burns")))
        rollout = await at.until("both", State.PAUSED)
        assert (rollout.status.code, rollout.status.reason) == ("recalled", "firmware 3.1 is recalled: it burns")


async def test_downloads_first_and_switches_when_told(autojump_clock: MockClock) -> None:
    async with two_kinds(10) as at:
        await at.create("both", {**BOTH, "waves": ALL, "mode": "download-only"})
        await at.until("both", State.STORED)
        assert at.fleet.both() == {("1.0", "3.0"): 10}
        await at.rollouts.act("app", "both", "activate", "eva")
        await at.until("both", State.FINISHED)
        await settled(at, "both")
        assert at.fleet.both() == {("1.1", "3.1"): 10} and await counts(at, "both") == {"done": 10}


async def test_a_killed_controller_forgets_no_half(autojump_clock: MockClock) -> None:
    async with two_kinds(16, bad={"3.1": 0.3}, online=0.9) as at:
        few = {"error": {"percent": 90}, "success": {"percent": 1}}
        await at.create("both", {**BOTH, "waves": [{**ALL[0], **few}], "transfers": 3})
        with trio.fail_after(5 * 86400):
            while at.state("both") is not State.FINISHED:
                await trio.sleep(7)
                at.check("both")
                await at.kill()
        await settled(at, "both")
        pairs = at.fleet.both()
        assert pairs.keys() == {("1.1", "3.1"), ("1.0", "3.0")}
        assert await counts(at, "both") == {"done": pairs["1.1", "3.1"], "left": pairs["1.0", "3.0"]}


async def test_what_cannot_be_is_refused_when_it_is_made(autojump_clock: MockClock) -> None:
    async with two_kinds(4) as at:
        at.world.publish(a_firmware("1.2", sequence=3, beside=(30, 30)))
        for spec, words in (
            ({"app": "1.1"}, "spec.app: 1.1 is system firmware, expected app firmware"),
            ({"firmware": "3.1"}, "spec.firmware: 3.1 is app firmware, expected system firmware"),
            ({"app": "9"}, "spec.app: 9 is not published"),
            ({"firmware": "1.2", "app": "3.1"}, "spec.app: 1.2 and 3.1 do not run together"),
            ({"firmware": "1.1", "app": "1.1"}, "spec.app: 1.1, as spec.firmware"),
            ({}, "spec.firmware: missing"),
        ):
            with pytest.raises(PeerError, match=words):
                await at.create("made", {**spec, "waves": ALL})


