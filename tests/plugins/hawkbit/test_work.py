"""The list of what is due."""

from __future__ import annotations

import time

import pytest
import trio
from dfud_hawkbit.shared import steady_clock
from dfud_hawkbit.work import Work


async def test_work_that_changed_under_way_is_not_finished() -> None:
    work = Work()
    work.poke("a", 5.0)
    work.poke("b", 1.0)
    assert work.take(0.0, 9) == []
    assert [key for key, _ in work.take(9.0, 9)] == ["b", "a"]
    ((_, generation),) = work.take(1.0, 9)
    work.hold(["b"])
    assert work.take(9.0, 9) == work.take(9.0, 9) and [k for k, _ in work.take(9.0, 9)] == ["a"]
    work.finish("b", generation)
    work.release({"b": 2.0})
    assert [k for k, _ in work.take(2.0, 9)] == ["b"]
    for _ in range(3):
        work.failed("b", 100.0, 1.0, 3.0)
    assert work.take(102.9, 9) == [(k, g) for k, g in work.take(102.9, 9) if k == "a"]
    assert "b" in [k for k, _ in work.take(103.0, 9)]


async def test_waiting_ends_when_something_is_due(autojump_clock: trio.testing.MockClock) -> None:
    work = Work()
    work.poke("a", 7.0)
    before = trio.current_time()
    await work.wait(0.0)
    assert trio.current_time() - before == 7.0




def test_the_clock_of_what_is_due_only_moves_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set back would leave what is due waiting for as long."""
    now = steady_clock()
    before_s = now()
    assert abs(before_s - time.time()) < 60
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert before_s <= now() < before_s + 600
