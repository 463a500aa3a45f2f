"""tests/order.py, which decides in which order the others run."""

from __future__ import annotations

import pytest

from tests.order import dealt


def parts(order: list[int], workers: int) -> list[list[int]]:
    """Return what worksteal gives each worker at the beginning."""
    left, found = list(order), []
    for worker in range(workers):
        size = len(left) // (workers - worker)
        found.append(left[:size])
        del left[:size]
    return found


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize("short", [0, 1, 7, 500])
def test_every_test_runs_once_the_longest_first_and_half_of_the_workers_begin_with_short_ones(workers: int, short: int) -> None:
    seconds = {f"long{n}": 10.0 + n for n in range(8)} | {"gone": 99.0}
    names = [f"s{n}" for n in range(short)] + [name for name in seconds if name != "gone"]
    order = dealt(names, seconds, workers)
    assert sorted(order) == list(range(len(names)))
    given = [[names[n] for n in part] for part in parts(order, workers)]
    if short == 500:
        firsts = [part[0].startswith("long") for part in given]
        assert firsts.count(True) == max(1, workers // 2)
        assert given[0][0] == "long7", "the longest of all"
        for part in given:
            assert part == sorted(part, key=lambda name: -seconds.get(name, 0.0)), "none waits behind short ones"
