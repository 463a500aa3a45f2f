"""Power cuts at every flash operation, any number of them, on the shipped ELF; and that bugs would be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bootloader.sim.explore import Scenario, explore
from bootloader.sim.scenarios import ALL, crashing, install
from bootloader.sim.variants import VARIANTS, build
from tests.real_parts import require


@pytest.mark.parametrize(
    "make", ALL, ids=["install", "delta", "mapped", "confirmed", "crashing", "revert", "changeover", "rotation"]
)
def test_every_state_ends_with_an_image_that_verifies(make: Callable[[], Scenario]) -> None:
    require("unicorn")
    require("riscv-gcc")
    scenario = make()
    found = explore(scenario)
    print(found.line(scenario.name))
    assert found.bad == []
    assert found.closed
    assert set(found.ends) <= set(scenario.good_ends)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seeded_bug_is_found(name: str, tmp_path: Path) -> None:
    require("unicorn")
    require("riscv-gcc")
    elf = build(name, tmp_path)
    found = [explore(make(), elf, limit=1000) for make in (install, crashing)]
    assert any(f.bad for f in found), [f.line(name) for f in found]
