"""How much of a large set of cases runs when: a sample in the usual run, all of them in `make exhaustive`."""

from __future__ import annotations

from typing import Any

import pytest


def sampled(few: Any, *whole: Any) -> list[Any]:
    """Return parameters for pytest.mark.parametrize: `few` for the usual run, each of `whole` for the slow one.

    With several names, give tuples: sampled(("cpython", 60), ("cpython", 600)).
    """
    return [few, *[pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow) for one in whole]]
