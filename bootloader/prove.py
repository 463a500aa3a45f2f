"""`make -C bootloader prove`: every scenario explored to its end, on the shipped ELF; on worn flash with a shorter trial,
for its states are many."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bootloader.sim.explore import Scenario, explore
from bootloader.sim.scenarios import ALL, WORN, confirmed, crashing
from bootloader.sim.variants import short_trial

# Also from logs that are nearly empty: more places to be torn at, the same ends.
MORE: tuple[Callable[[], Scenario], ...] = (
    lambda: confirmed(states=100, diagnostics=1),
    lambda: crashing(states=118, diagnostics=1),
)


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        short = short_trial(Path(directory))
        for make, elf in [*((make, None) for make in (*ALL, *MORE)), *((make, short) for make in WORN)]:
            scenario = make()
            started = time.perf_counter()
            with console.status(f"{scenario.name} ..."):
                found = explore(scenario, elf)
            console.print(f"{found.line(scenario.name)}; {time.perf_counter() - started:.0f} s")
            for text in found.bad[:3]:
                console.print(f"  {text}")
            wrong += bool(found.bad) or not found.closed
    console.print("every exploration is closed and ends well" if not wrong else f"{wrong} explorations failed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
