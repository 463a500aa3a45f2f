"""The order of the tests: those of longest.txt begin first, so that no worker is left with one of them when the others have nothing
to do. Most of them wait. Half of the workers begin with them, and the other half with work for the processor.

`pytest -n 4 --longest` writes longest.txt anew, out of that run: each test that took THRESHOLD_S or more.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("longest.txt")
THRESHOLD_S = 3.0
_took: defaultdict[str, float] = defaultdict(float)


def known() -> dict[str, float]:
    """Return how many seconds each of the longest tests took."""
    pairs = (line.split(" ", 1) for line in TABLE.read_text("utf-8").splitlines())
    return {name: float(seconds) for seconds, name in pairs}


def dealt(names: list[str], seconds: dict[str, float], workers: int) -> list[int]:
    """Return the order of tests, as their numbers, for pytest-xdist's worksteal: it gives each worker in turn an equal part of what
    is left, in this order, and takes from the ends of the parts later."""
    long = sorted((n for n, name in enumerate(names) if name in seconds), key=lambda n: -seconds[names[n]])
    short = [n for n, name in enumerate(names) if name not in seconds]
    half = max(1, workers // 2)
    order: list[int] = []
    for worker in range(workers):
        first = long[worker::half] if worker < half else []
        rest = (len(names) - len(order)) // (workers - worker) - len(first)
        order += first + short[: max(0, rest)]
        del short[: max(0, rest)]
    return order + short


@pytest.hookimpl(trylast=True)  # when what is not run has gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = [items[n] for n in dealt([item.nodeid for item in items], known(), workers)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _took[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--longest") and "PYTEST_XDIST_WORKER" not in os.environ:
        longest = sorted((-took, name) for name, took in _took.items() if took >= THRESHOLD_S)
        TABLE.write_text("".join(f"{-took:.0f} {name}\n" for took, name in longest), "utf-8")
