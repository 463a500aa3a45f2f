"""Which devices are in which wave: the same today and tomorrow, evenly spread, another choice in every rollout."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from dfud.model.membership import UNIT, place, share, share_of_count

NAMES = [f"device-{n}" for n in range(5000)]


def test_a_place_is_what_the_text_says() -> None:
    digest = hashlib.blake2b(b"uid\0dev", digest_size=16).digest()
    assert place("uid", "dev") == int.from_bytes(digest[:8], "big")


def test_percentages_are_met_and_each_rollout_chooses_others() -> None:
    for percent in (1, 10, 50):
        first = {n for n in NAMES if place("a", n) < share(percent)}
        second = {n for n in NAMES if place("b", n) < share(percent)}
        assert abs(len(first) - 50 * percent) < 3 * (50 * percent) ** 0.5 + 5
        assert first != second
    assert all(place("a", n) < share(100) for n in NAMES)


@given(st.sets(st.integers(0, UNIT - 1), max_size=50), st.integers(1, 60))
def test_a_count_takes_exactly_so_many(places: set[int], count: int) -> None:
    end = share_of_count(places, count)
    assert sum(p < end for p in places) == min(count, len(places))
