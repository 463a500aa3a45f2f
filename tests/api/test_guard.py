"""An exception ends at its boundary; cancellation does not."""

from __future__ import annotations

import asyncio
import logging

import pytest
import trio

from dfud.api import Bus, contained, faults, forever
from dfud.api.events import AppChanged


def test_an_exception_is_contained_logged_with_its_trace_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    before = faults().get("test.one", 0)
    with caplog.at_level(logging.ERROR), contained("test.one", device="d1") as guard:
        raise ValueError("odd byte")
    assert isinstance(guard.error, ValueError)
    assert faults()["test.one"] == before + 1
    (record,) = caplog.records
    assert record.exc_info is not None and record.exc_info[1] is guard.error
    assert record.__dict__["device"] == "d1"


def test_one_kind_is_logged_once_a_minute_and_counted_always(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        with contained("test.flood"):
            raise KeyError("again")
    assert faults()["test.flood"] == 100
    assert len(caplog.records) == 1


def test_a_name_that_logging_keeps_for_itself_does_not_break_the_guard() -> None:
    with contained("test.names", message="x", args="y"):
        raise ValueError
    assert faults()["test.names"] == 1


async def test_cancellation_travels_on_and_what_is_beside_it_in_a_group_is_counted() -> None:
    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("while it was cancelled")

    went_on = False
    with trio.move_on_after(0) as scope:
        with contained("test.cancelled"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails)
                await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        went_on = True
    assert scope.cancelled_caught and not went_on
    assert faults()["test.cancelled"] == 1


def test_what_ends_a_process_passes() -> None:
    with pytest.raises(SystemExit), contained("test.exit"):
        raise SystemExit(1)
    with pytest.raises(BaseExceptionGroup) as caught, contained("test.exit-group"):
        raise BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()])
    assert caught.value.subgroup(ValueError) is None
    assert faults()["test.exit-group"] == 1


async def test_a_loop_that_is_not_ours_and_a_panic_of_rust_cost_themselves_only() -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def in_a_thread() -> None:
        await trio.to_thread.run_sync(lambda: asyncio.run(cancelled()))

    for _ in range(2):
        with contained("test.asyncio") as guard:
            await in_a_thread()
        assert isinstance(guard.error, asyncio.CancelledError)
    with contained("test.asyncio"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_a_thread)
    assert faults()["test.asyncio"] == 3
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with contained("test.panic"):
        raise panic("called `Option::unwrap()` on a `None` value")
    with contained("test.panic"):
        raise BaseExceptionGroup("", [panic(), ValueError()])
    assert faults()["test.panic"] == 2
    with pytest.raises(GeneratorExit), contained("test.panic"):
        raise GeneratorExit


async def test_forever_goes_on_after_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 4:
            raise OSError

    began_s = trio.current_time()
    await forever("test.forever", work, pause_s=1.0)
    assert rounds == 4
    assert trio.current_time() - began_s == 1.0 + 2.0 + 4.0


def test_a_subscriber_that_raises_costs_the_others_nothing() -> None:
    bus, told = Bus(), []

    def raises(event: AppChanged) -> None:
        raise RecursionError

    bus.subscribe(AppChanged, raises)
    bus.subscribe(AppChanged, lambda e: told.append(e.app))
    bus.publish(AppChanged("a"))
    assert told == ["a"]
    assert faults()["bus.subscriber"] >= 1
