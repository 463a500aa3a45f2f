"""`make -C bootloader prove`: every scenario explored to its end, on the shipped ELF; also on flash that wears out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console

from bootloader.sim.explore import Scenario, explore
from bootloader.sim.scenarios import ALL, WEARING, confirmed, crashing

# Also from logs that are nearly empty: more places to be torn at, the same ends.
MORE: tuple[Callable[[], Scenario], ...] = (
    lambda: confirmed(states=100, diagnostics=1),
    lambda: crashing(states=118, diagnostics=1),
)


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    wrong = states = 0
    began = time.perf_counter()
    for make in (*ALL, *MORE, *WEARING):
        scenario = make()
        started = time.perf_counter()
        with console.status(f"{scenario.name} ..."):
            found = explore(scenario)
        console.print(f"{found.line(scenario.name)}; {time.perf_counter() - started:.0f} s")
        for text in found.bad[:3]:
            console.print(f"  {text}")
        wrong += bool(found.bad) or not found.closed
        states += found.states
    console.print(f"{states} states in {(time.perf_counter() - began) / 60:.0f} minutes")
    console.print("every exploration is closed and ends well" if not wrong else f"{wrong} explorations failed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
