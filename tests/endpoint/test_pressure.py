"""Too much at a time: what can be done is done, oldest first, and the others hear it before they have waited. Virtual time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dfud.api import Code, Credentials, Reply, Request
from dfud.endpoint.pressure import AT_FIRST, BUSY, LAG_S, Pressure, Waiter
from dfud.endpoint.returning import QUIET_S, WAITS_S, Returned, Returning
from tests.endpoint.world import a_status, basic, start_world

TURN_S = 0.25  # how long a transport takes requests before others have their turn
WORK_S = 0.0005  # what one request keeps everybody waiting for
TURN_AWAY_S = 0.000025
LATE_S = 1.0


class Offered:
    """Requests that come at a rate, whatever becomes of them; working on one stands everything still for WORK_S."""

    def __init__(self, pressure: Pressure, clock: trio.testing.MockClock) -> None:
        self.pressure = pressure
        self.clock = clock
        self.begun = 0
        self.done: list[int] = []  # in which order, of those that were begun
        self.waited_s: list[float] = []
        self.away_after_s: list[float] = []
        self.most_waiting = 0

    async def one(self, number: int, came_s: float) -> None:
        if not await self.pressure.turn():
            self.pressure.away()
            self.away_after_s.append(trio.current_time() - came_s)
            return
        try:
            await trio.lowlevel.checkpoint()
            self.clock.jump(WORK_S)
            await trio.lowlevel.checkpoint()
        finally:
            self.pressure.end()
        self.done.append(number)
        self.waited_s.append(trio.current_time() - came_s)

    async def run(self, rate: float, lasts_s: float) -> None:
        """As a transport does it: whatever has come is looked at in one turn, and refused without a task where it would be late."""
        begin_s = trio.current_time()
        number = 0
        async with trio.open_nursery() as nursery:
            while trio.current_time() < begin_s + lasts_s:
                until_s = trio.current_time() + TURN_S
                while (came_s := begin_s + number / rate) <= trio.current_time() < until_s:
                    if self.pressure.full:
                        self.pressure.away()
                        self.clock.jump(TURN_AWAY_S)
                        self.away_after_s.append(trio.current_time() - came_s)
                    else:
                        nursery.start_soon(self.one, self.begun, came_s)
                        self.begun += 1
                    number += 1
                self.most_waiting = max(self.most_waiting, self.pressure.waiting)
                if self.pressure.waiting or self.pressure.under_way:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.sleep_until(begin_s + number / rate)


async def offered(rate: float, lasts_s: float, clock: trio.testing.MockClock) -> Offered:
    pressure = Pressure(2000, LATE_S, 30)
    load = Offered(pressure, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pressure.watch)
        await load.run(rate, lasts_s)
        nursery.cancel_scope.cancel()
    return load


@pytest.mark.parametrize("times", [3, 6])
async def test_as_much_is_done_as_can_be_and_nobody_waits_for_long(times: int, autojump_clock: trio.testing.MockClock) -> None:
    lasts_s = 10.0
    load = await offered(times / WORK_S, lasts_s, autojump_clock)
    lost = TURN_AWAY_S / WORK_S * (times - 1)  # turning away costs, too
    assert len(load.done) > (0.9 - lost) * lasts_s / WORK_S
    assert max(load.waited_s) < 4 * LATE_S and max(load.away_after_s) < 4 * LATE_S
    assert statistics.median(load.waited_s) < 1.5 * LATE_S
    assert statistics.median(load.away_after_s) < LATE_S / 4, "most hear it at once"
    assert load.most_waiting < 2 * LATE_S / WORK_S


async def test_the_oldest_is_served_first(autojump_clock: trio.testing.MockClock) -> None:
    load = await offered(3 / WORK_S, 5.0, autojump_clock)
    # Of those that begin in one turn of the loop trio chooses the order; that many wait at most (see above). Were the latest served
    # first, it would be all that were begun.
    chance = int(2 * LATE_S / WORK_S)
    overtaken, latest = [], 0
    for number in load.done:
        latest = max(latest, number)
        overtaken += [number] if number < latest - chance else []
    assert len(load.done) > 2500 and load.begun > 2 * chance and not overtaken


async def test_below_what_can_be_done_nobody_is_turned_away(autojump_clock: trio.testing.MockClock) -> None:
    load = await offered(0.8 / WORK_S, 5.0, autojump_clock)
    assert not load.pressure.turned_away and len(load.done) > 3900


async def test_who_waits_for_something_else_keeps_nobody_from_their_turn(autojump_clock: trio.testing.MockClock) -> None:
    pressure = Pressure(2000, LATE_S, 30)

    async def slow() -> None:
        assert await pressure.turn()
        await trio.sleep(600)
        pressure.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pressure.watch)
        for _ in range(2 * AT_FIRST):
            nursery.start_soon(slow)
        await trio.sleep(LATE_S / 2)
        assert pressure.under_way == 2 * AT_FIRST, "the loop is not late, so more may be under way"
        assert await pressure.turn()
        pressure.end()
        assert not pressure.turned_away
        nursery.cancel_scope.cancel()


async def test_a_loop_that_is_late_for_another_reason_lowers_nothing(autojump_clock: trio.testing.MockClock) -> None:
    pressure = Pressure(2000, LATE_S, 30)
    pressure.measured(10 * LAG_S, 10 * LAG_S)
    assert pressure.limit == AT_FIRST
    pressure.limit = 2000
    pressure.measured(10 * LAG_S, 10 * LAG_S)
    assert pressure.limit > 1000
    for _ in range(BUSY):
        assert await pressure.turn()
    pressure.measured(10 * LAG_S, 10 * LAG_S)
    assert pressure.limit < 1000


async def test_one_that_goes_while_it_waits_leaves_its_place_to_the_next(autojump_clock: trio.testing.MockClock) -> None:
    pressure = Pressure(16, LATE_S, 30)
    for _ in range(16):
        assert await pressure.turn()
    had: list[str] = []

    async def wait(name: str) -> None:
        if await pressure.turn():
            had.append(name)

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.1):
            await wait("gone")
        nursery.start_soon(wait, "next")
        await trio.testing.wait_all_tasks_blocked()
        assert pressure.waiting == 1
        pressure.end()
    assert had == ["next"] and not pressure.waiting and pressure.under_way == 16


async def test_retry_after_is_as_long_as_it_takes_and_differs(autojump_clock: trio.testing.MockClock) -> None:
    pressure = Pressure(2000, LATE_S, 30)
    few = [pressure.away().retry_after_s for _ in range(20)]
    assert max(few) <= 2
    many = [pressure.away().retry_after_s for _ in range(80_000)]
    assert set(many[-1000:]) == set(range(1, 31)), "never beyond away_s"
    await trio.sleep(31)
    assert pressure.away().retry_after_s <= 2, "that is over"
    assert pressure.turned_away == 80_021


async def test_retry_after_grows_while_too_many_come_back_and_shrinks_when_nobody_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pressure = Pressure(0, 1000.0, 1000)
    waiter = Waiter()
    pressure.queue(waiter)
    longest = []
    for _ in range(8):
        pressure.measured(0.0, 1.0)
        longest.append(max(pressure.away().retry_after_s for _ in range(1000)))
        await trio.sleep(1.1)
    assert longest[-1] > 4 * longest[0]
    pressure.leave(waiter)
    for _ in range(12):
        pressure.measured(0.0, 1.0)
        pressure.away()
        await trio.sleep(1.1)
    assert pressure._times == 1.0


async def test_what_is_in_memory_is_answered_however_much_comes(nursery: trio.Nursery, tmp_path: Path) -> None:
    world = await start_world(nursery, tmp_path)
    for name in ("known", "new"):
        await world.put(name, {"authentication": {"credentials": [{"pass": "pw"}]}})

    def request(name: str) -> Request:
        return Request("http", "127.0.0.1", Credentials(basic(f"{name}@app1:pw")), "dfu", a_status())

    assert isinstance(await world.endpoint.post(request("known")), Reply)
    pressure = world.endpoint.pressure
    pressure.limit, pressure._late_s = 0, 0.0
    found = {name: world.endpoint.quick(request(name)) for name in ("known", "new")}
    assert isinstance(found["known"], Reply) and found["known"].code is Code.COMMAND
    refused = found["new"]
    assert isinstance(refused, Reply) and refused.code is Code.AWAY and refused.retry_after_s >= 1
    assert pressure.turned_away == 1
    nursery.cancel_scope.cancel()


# How a fleet comes back


def test_a_fleet_is_back_when_nobody_is_new_or_turned_away_any_longer() -> None:
    returning = Returning(100.0)
    seen = [(0, 0), (4000, 100), (8000, 2500), (9990, 2500), (10_000, 2500)]
    told = [returning.look(*what, 101.0 + second) for second, what in enumerate(seen)]
    for second in range(4, 30):
        told.append(returning.look(10_000 + second, 2500, 101.0 + second))
    assert [t for t in told if t is not None] == [Returned(10_000 + 13, 2500, 4.0)]
    assert returning.over


async def test_the_log_says_how_long_it_took(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dfud.endpoint.returning.FEW", 1)
    monkeypatch.setattr("dfud.endpoint.endpoint.LOOK_S", 0.001)
    caplog.set_level("INFO", "dfud.endpoint")
    now_s = [1000.0]
    world = await start_world(nursery, tmp_path)
    monkeypatch.setattr(world.endpoint, "_clock", lambda: now_s[0])
    for number in range(3):
        world.endpoint._slots.keep(bytes([number]) * 16, "app1", f"d{number}", 0.0)
    world.endpoint.pressure.turned_away = 7

    def told() -> list[Any]:
        return [record for record in caplog.records if record.getMessage() == "the fleet is back"]

    with trio.fail_after(60):
        while not told():
            now_s[0] += 1.0
            await trio.sleep(0.002)
    for _ in range(20):
        now_s[0] += QUIET_S
        await trio.sleep(0.002)
    assert [(record.devices, record.turned_away) for record in told()] == [(3, 7)]
    nursery.cancel_scope.cancel()


def test_of_a_few_devices_and_of_nobody_nothing_is_told() -> None:
    for devices in (0, 5):
        returning = Returning(0.0)
        assert all(returning.look(devices, 0, float(s)) is None for s in range(int(WAITS_S + QUIET_S) + 2))
        assert returning.over
