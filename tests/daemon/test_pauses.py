"""How long collections of garbage take is counted, and what is there after the start is left out of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dfud.daemon.pauses import YOUNG, Pauses


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_what_is_there_at_the_start_is_left_out_and_young_ones_are_collected_seldom() -> None:
    pauses = Pauses()
    kept = [[number] for number in range(1000)]
    pauses.freeze()
    assert gc.get_freeze_count() > len(kept)
    assert gc.get_threshold()[0] == YOUNG
    assert not any(one is kept[0] for one in gc.get_objects())


def test_pauses_are_counted_while_they_are_watched() -> None:
    pauses = Pauses()
    pauses.watch()
    try:
        gc.collect()
    finally:
        pauses.end()
    total_s = pauses.counters()["dfud_gc_pause_seconds_total"]
    assert 0 < pauses.counters()["dfud_gc_longest_pause_seconds"] <= total_s
    gc.collect()
    assert pauses.counters()["dfud_gc_pause_seconds_total"] == total_s, "nobody watches any longer"
