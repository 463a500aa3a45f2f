"""Power cuts at every flash operation, any number of them, on the shipped ELF; and that bugs would be found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bootloader.sim.explore import Found, Scenario, explore
from bootloader.sim.images import SECTOR, STATE_AT
from bootloader.sim.same import key_of
from bootloader.sim.scenarios import (
    ALL,
    LEFT,
    WEARING,
    WORN,
    changed,
    confirmed,
    crashing,
    full,
    install,
    revert,
    unconfirmed,
    worn,
)
from bootloader.sim.variants import VARIANTS, build
from bootloader.sim.worn import ERASE_IGNORED, ERASE_REFUSED, KINDS, PROGRAM_IGNORED, STUCK, UNREADABLE, WEAK
from tests.amounts import sampled
from tests.real_parts import require

NAMES = ["install", "delta", "mapped", "confirmed", "crashing", "unconfirmed", "revert", "changeover", "rotation"]
LARGE = ("crashing", "changeover")
SMALL = [n for n in NAMES if n not in LARGE]
BY_NAME = dict(zip(NAMES, ALL, strict=True))
SEED = 17


def explored(scenario: Scenario, elf: Path | None = None, **options: Any) -> Found:
    require("unicorn")
    require("riscv-gcc")
    found = explore(scenario, elf, **options)
    print(found.line(scenario.name), options)
    assert found.bad == []
    return found


@pytest.mark.parametrize("name", SMALL)
def test_every_state_ends_with_an_image_that_verifies(name: str) -> None:
    scenario = BY_NAME[name]()
    found = explored(scenario)
    assert found.closed
    assert set(found.ends) <= set(scenario.good_ends)


@pytest.mark.parametrize("name", LARGE)
def test_states_drawn_from_everywhere_end_with_an_image_that_verifies(name: str) -> None:
    """These have thousands of states; the whole of them is test_every_state, a slow one."""
    assert explored(BY_NAME[name](), limit=400, sample=SEED).boots == 400


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", LARGE)
def test_every_state(name: str) -> None:
    assert explored(BY_NAME[name]()).closed


def test_a_trial_with_few_power_cuts_is_confirmed() -> None:
    """Two power cuts anywhere, in the bootloader's count or in the agent's confirmation, do not end a trial of ten starts."""
    assert set(explored(confirmed(), cuts=2).ends) == {"new confirmed"}


@pytest.mark.parametrize("limit", sampled(5, 12))
def test_worn_flash_loses_no_record_and_boots_a_whole_image(limit: int) -> None:
    """Some states of every scenario on every kind of bad sector."""
    assert sum(explored(make(), limit=limit, sample=SEED).boots for make in WORN) > limit * len(WORN) * 2 // 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_of_a_trial_whose_log_wears_out_at_any_start(kind: str) -> None:
    """Erase and program that are refused or ignored, weak and stuck bits, reads that fail: in the sector that is entered next."""
    found = explored(worn(unconfirmed, kind, STATE_AT + SECTOR, later=True))
    assert found.closed
    assert found.ends[LEFT]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", range(len(WEARING)))
def test_every_state_on_flash_that_wears_out(number: int) -> None:
    assert explored(WEARING[number]()).closed


REDUCED = [
    (confirmed, ()),
    (revert, (WEAK, STATE_AT)),
    (crashing, (ERASE_IGNORED, STATE_AT)),
    *((unconfirmed, (kind, STATE_AT + SECTOR)) for kind in (ERASE_REFUSED, WEAK, STUCK)),
]


@pytest.mark.parametrize("limit", sampled(100, 250))
@pytest.mark.parametrize(("make", "wear"), REDUCED)
def test_states_that_are_taken_for_one_are_one(make: Callable[..., Scenario], wear: tuple[Any, ...], limit: int) -> None:
    """Explored one by one, without taking any for the same, they come to nothing that the reduced exploration has not come to."""
    scenario = worn(make, *wear) if wear else make()
    every = explored(scenario, limit=limit, sample=SEED)
    one_by_one = explored(scenario, limit=limit, whole=True)
    reduced = explored(scenario)
    assert reduced.closed
    for whole in (every, one_by_one):
        assert len(whole.reached) == whole.boots > 5
        assert {key_of(node.flash, node.faults, scenario.logs) for node in whole.reached} <= {key[2:] for key in reduced.seen}


# The quickest to explore first.
SEEDED: tuple[Callable[[], Scenario], ...] = (
    partial(worn, full, ERASE_IGNORED, STATE_AT),
    partial(worn, changed, UNREADABLE, STATE_AT + SECTOR),
    partial(worn, unconfirmed, PROGRAM_IGNORED, STATE_AT),
    unconfirmed,
    install,
    crashing,
)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seeded_bug_is_found(name: str, tmp_path: Path) -> None:
    require("unicorn")
    require("riscv-gcc")
    elf = build(name, tmp_path)
    lines = []
    for cuts, limit in ((0, 100), (None, 400)):
        for make in SEEDED:
            scenario = make()
            found = explore(scenario, elf, limit=limit, cuts=cuts, first_bad=True)
            lines.append(found.line(scenario.name))
            if found.bad:
                print(name, found.bad[0])
                return
    raise AssertionError(lines)
