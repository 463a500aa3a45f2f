"""Instants as people read them."""

from __future__ import annotations

import pytest

from dfud.model.times import time_of


@pytest.mark.parametrize(
    ("at_s", "shown"),
    [
        (1_800_000_000.25, "2027-01-15T08:00:00.250Z"),
        (0.0, "1970-01-01T00:00:00.000Z"),
        (-1.0, "1970-01-01T00:00:00.000Z"),
        (float("nan"), "1970-01-01T00:00:00.000Z"),
        (float("-inf"), "1970-01-01T00:00:00.000Z"),
        (253402300799.9999, "9999-12-31T23:59:59.000Z"),
        (253402300800.0, "9999-12-31T23:59:59.000Z"),
        (1e300, "9999-12-31T23:59:59.000Z"),
        (float("inf"), "9999-12-31T23:59:59.000Z"),
    ],
)
def test_every_number_is_shown_as_an_instant(at_s: float, shown: str) -> None:
    """One odd number in a stored record must not cost the list that it stands in."""
    assert time_of(at_s, "milliseconds") == shown
    assert time_of(at_s) == shown[:19] + "Z"
