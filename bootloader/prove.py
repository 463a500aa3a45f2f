"""`make -C bootloader prove`: every scenario explored to its end, on the shipped ELF."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console

from bootloader.sim.explore import Scenario, explore
from bootloader.sim.scenarios import ALL, confirmed, crashing

# Also from logs that are nearly empty: more places to be torn at, the same ends.
MORE: tuple[Callable[[], Scenario], ...] = (
    lambda: confirmed(states=100, diagnostics=1),
    lambda: crashing(states=118, diagnostics=1),
)


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    wrong = 0
    for make in (*ALL, *MORE):
        scenario = make()
        started = time.perf_counter()
        with console.status(f"{scenario.name} ..."):
            found = explore(scenario)
        console.print(f"{found.line(scenario.name)}; {time.perf_counter() - started:.0f} s")
        for text in found.bad[:3]:
            console.print(f"  {text}")
        wrong += bool(found.bad) or not found.closed
    console.print("every exploration is closed and ends well" if not wrong else f"{wrong} explorations failed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
