"""The daemon's tasks: what one raises after its start ends that one only, and it is started again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from dfud.api import ConfigError, faults
from dfud.daemon.tasks import keep

IGNORED = trio.TASK_STATUS_IGNORED


async def test_what_it_raises_before_it_has_started_is_the_starters(nursery: trio.Nursery) -> None:
    async def work(*, task_status: trio.TaskStatus[None] = IGNORED) -> None:
        raise ConfigError("no such port")

    with pytest.raises(ConfigError, match="no such port"):
        await keep(nursery, "test.start", work)
    assert "test.start" not in faults()


@pytest.mark.parametrize("error", [ValueError("odd"), ExceptionGroup("two", [KeyError(1), OSError(2)]), MemoryError()])
async def test_what_it_raises_later_starts_it_again_and_harms_nobody(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    begun_s: list[float] = []
    told: list[Any] = []

    async def work(argument: int, *, task_status: trio.TaskStatus[Any] = IGNORED) -> None:
        begun_s.append(trio.current_time())
        task_status.started(argument + len(begun_s))
        await trio.sleep(0.1)
        raise error

    before = faults().get("test.later", 0)
    beside = trio.Event()
    nursery.start_soon(beside.wait)
    await keep(nursery, "test.later", work, 10, told=told.append)
    assert told == [11]
    await trio.sleep(8)
    # It waits longer each time, so that what fails at once does not fill the log and the machine.
    assert [round(b - a, 1) for a, b in itertools.pairwise(begun_s)] == [1.1, 2.1, 4.1]
    assert told == [11, 12, 13, 14]
    assert faults()["test.later"] - before == 4
    assert not nursery.cancel_scope.cancel_called
    beside.set()


async def test_one_that_fails_before_it_is_started_again_is_tried_further(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The port that it had may be taken for a moment."""
    tries: list[Callable[..., Any]] = []

    async def work(*, task_status: trio.TaskStatus[None] = IGNORED) -> None:
        tries.append(work)
        if len(tries) in (2, 3):
            raise OSError("address in use")
        task_status.started()
        if len(tries) == 1:
            raise ValueError("odd")
        await trio.sleep_forever()

    await keep(nursery, "test.again", work)
    await trio.sleep(60)
    assert len(tries) == 4


async def test_one_that_returns_is_not_started_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    count = 0

    async def work(*, task_status: trio.TaskStatus[None] = IGNORED) -> None:
        nonlocal count
        count += 1
        task_status.started()

    await keep(nursery, "test.returns", work)
    await trio.sleep(60)
    assert count == 1


async def test_cancellation_passes() -> None:
    async def work(*, task_status: trio.TaskStatus[None] = IGNORED) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("on the way out")

    async with trio.open_nursery() as nursery:
        await keep(nursery, "test.cancel", work)
        nursery.cancel_scope.cancel()
