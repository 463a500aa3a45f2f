"""Turns are bounded, fair between keys, and never lost."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dfud.api import Turns


async def test_one_key_with_many_waiting_delays_another_by_one_turn() -> None:
    turns, order = Turns(1), []

    async def have(key: str) -> None:
        async with turns.turn(key):
            order.append(key)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        async with turns.turn("first"):
            for key in "aaaaaaaab":
                nursery.start_soon(have, key)
                await trio.testing.wait_all_tasks_blocked()
            assert (turns.taken, turns.waiting) == (1, 9)
    assert order[:2] == ["a", "b"]
    assert (turns.taken, turns.waiting) == (0, 0)


async def test_one_key_leaves_turns_to_others() -> None:
    turns = Turns(4, 2)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(_hold, turns, "a")
        await trio.testing.wait_all_tasks_blocked()
        assert turns.taken == 2
        with trio.fail_after(60):
            async with turns.turn("b"):
                assert turns.taken == 3
        nursery.cancel_scope.cancel()
    assert (turns.taken, turns.waiting, turns._held, dict(turns._queues)) == (0, 0, {}, {})


async def _hold(turns: Turns, key: str) -> None:
    async with turns.turn(key):
        await trio.sleep_forever()


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_is_cancelled_when_all_get_their_turn_and_limits_hold(seed: int) -> None:
    random, turns, had = Random(seed), Turns(3, 2), []

    async def have(key: int, patience: int) -> None:
        with trio.CancelScope() as scope:
            if patience == 0:
                scope.cancel()
            async with turns.turn(key):
                assert turns.taken <= 3 and turns._held[key] <= 2
                for _ in range(random.randrange(4)):
                    await trio.lowlevel.checkpoint()
                had.append(key)

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(have, random.randrange(4), random.randrange(3))
            await trio.lowlevel.checkpoint()
    assert (turns.taken, turns.waiting) == (0, 0) and had


async def test_a_turn_that_lasts_too_long_goes_to_who_waits_and_its_holder_goes_on(autojump_clock: MockClock) -> None:
    turns, ended = Turns(4, 2, lasts_s=1.0), []

    async def stall(key: str) -> None:
        async with turns.turn(key):
            await trio.sleep(10)
        ended.append(key)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(stall, f"k{number % 3}")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        async with turns.turn("honest"):
            assert trio.current_time() - began <= 2.0 and not ended
    assert len(ended) == 40 and (turns.taken, turns.waiting, turns._held, dict(turns._queues)) == (0, 0, {}, {})
