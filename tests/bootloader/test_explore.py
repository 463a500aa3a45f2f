"""Power cuts at every flash operation, any number of them, on the shipped ELF; and that bugs would be found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bootloader.sim.explore import Found, Scenario, explore
from bootloader.sim.images import SECTOR, STATE_AT
from bootloader.sim.scenarios import ALL, WORN, changed, confirmed, crashing, full, install, unconfirmed, worn
from bootloader.sim.variants import VARIANTS, build, short_trial
from bootloader.sim.worn import ERASE_IGNORED, PROGRAM_IGNORED, UNREADABLE
from tests.real_parts import require

NAMES = ["install", "delta", "mapped", "confirmed", "crashing", "unconfirmed", "revert", "changeover", "rotation"]
SMALL = [n for n in NAMES if n not in ("confirmed", "crashing", "unconfirmed", "changeover")]
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


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SMALL])
def test_states_drawn_from_everywhere_end_with_an_image_that_verifies(name: str) -> None:
    """A trial has tens of thousands of states; the whole of them is test_every_state_of_a_trial, a slow one."""
    assert explored(BY_NAME[name](), limit=400, sample=SEED).boots == 400


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in SMALL])
def test_every_state_of_a_trial(name: str) -> None:
    assert explored(BY_NAME[name]()).closed


def test_a_trial_with_few_power_cuts_is_confirmed() -> None:
    """Two power cuts anywhere, in the bootloader's count or in the agent's confirmation, do not end a trial of ten starts."""
    assert set(explored(confirmed(), cuts=2).ends) == {"new confirmed"}


def test_worn_flash_loses_no_record_and_boots_a_whole_image() -> None:
    """Some states of every scenario on every kind of bad sector."""
    assert sum(explored(make(), limit=12, sample=SEED).boots for make in WORN) > 8 * len(WORN)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("riscv-gcc")
    return short_trial(tmp_path_factory.mktemp("short"))


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", range(len(WORN)))
def test_every_state_on_worn_flash(number: int, short: Path) -> None:
    assert explored(WORN[number](), short).closed


SEEDED: tuple[Callable[[], Scenario], ...] = (
    install,
    crashing,
    unconfirmed,
    partial(worn, unconfirmed, STATE_AT, PROGRAM_IGNORED),
    partial(worn, full, STATE_AT, ERASE_IGNORED),
    partial(worn, changed, STATE_AT + SECTOR, UNREADABLE),
)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seeded_bug_is_found(name: str, tmp_path: Path) -> None:
    require("unicorn")
    require("riscv-gcc")
    elf = build(name, tmp_path)
    lines = []
    for make in SEEDED:
        scenario = make()
        for cuts, limit in ((0, 100), (None, 400)):
            found = explore(scenario, elf, limit=limit, cuts=cuts)
            lines.append(found.line(scenario.name))
            if found.bad:
                print(name, found.bad[0])
                return
    raise AssertionError(lines)
