"""What a device may spend, and what remembering that costs."""

from __future__ import annotations

import gc

import pytest
import trio

from dfud.api import StoreError
from dfud.controller.budget import Budget

DEVICES = 5000


async def test_a_budget_fills_up_again_with_time(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(60, 10)
    for _ in range(60):
        budget.spend("a", "d", 1)
    with pytest.raises(StoreError, match="changes too often"):
        budget.spend("a", "d", 1)
    budget.spend("a", "other", 60, trio.current_time())
    await trio.sleep(61)
    budget.spend("a", "d", 1)


async def test_a_collection_of_garbage_looks_at_no_device_that_has_spent(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(60, DEVICES)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(DEVICES):
        budget.spend("a", f"d{number}", 2)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
