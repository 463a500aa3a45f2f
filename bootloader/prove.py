"""`make -C bootloader prove`: every scenario explored to its end, on the shipped ELF; also on flash that wears out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from bootloader.sim.explore import Found, Scenario, explore
from bootloader.sim.scenarios import ALL, WEARING, confirmed, crashing

# Also from logs that are nearly empty: more places to be torn at, the same ends.
MORE: tuple[Callable[[], Scenario], ...] = (
    lambda: confirmed(states=100, diagnostics=1),
    lambda: crashing(states=118, diagnostics=1),
)


EVERY = (*ALL, *MORE, *WEARING)


def one(number: int) -> tuple[str, Found, float]:
    started = time.perf_counter()
    scenario = EVERY[number]()
    found = explore(scenario)
    found.seen.clear()  # nobody else needs them, and they are large
    return scenario.name, found, time.perf_counter() - started


def main() -> int:
    jobs = int(os.environ.get("JOBS", os.cpu_count() or 1))
    wrong = states = boots = 0
    began = time.perf_counter()
    with ProcessPoolExecutor(jobs) as pool:
        for name, found, took_s in pool.map(one, range(len(EVERY))):
            print(f"{found.line(name)}; {took_s:.0f} s", flush=True)
            for text in found.bad[:3]:
                print(f"  {text}", flush=True)
            wrong += bool(found.bad) or not found.closed
            states, boots = states + found.states, boots + found.boots
    took = f"{len(EVERY)} explorations, {states} states, {boots} boots in {(time.perf_counter() - began) / 60:.0f} minutes"
    print(f"{took}; " + (f"{wrong} explorations failed" if wrong else "every one is closed and ends well"))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
