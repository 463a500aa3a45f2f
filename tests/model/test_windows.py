"""Windows of a minute: what is counted, when it is forgotten, and how much is remembered."""

from __future__ import annotations

from dfud.model.windows import PerMinute


def test_a_key_is_blocked_until_the_minute_is_over() -> None:
    counts = PerMinute(2)
    assert [counts.take("a", now_s) for now_s in (0.0, 30.0, 59.9)] == [True, True, False]
    assert not counts.blocked("b", 59.9)
    assert not counts.blocked("a", 60.0)


def test_a_clock_that_is_set_back_begins_a_new_window() -> None:
    counts = PerMinute(1)
    counts.add("a", 1_000_000.0)
    assert counts.blocked("a", 1_000_000.0)
    assert not counts.blocked("a", 10.0)


def test_a_new_key_is_blocked_where_too_many_are_remembered() -> None:
    counts = PerMinute(2, counted_max=3)
    for key in "abc":
        counts.add(key, 0.0)
    assert not counts.take("d", 0.0)
    assert counts.take("a", 0.0), "who is counted goes on"
    assert counts.take("d", 60.0)
