"""Maintenance windows: open when the clock on the wall says so, whatever the clock itself does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.schedule import (
    DAYS,
    Window,
    is_open,
    next_closing,
    next_opening,
    read_windows_untrusted,
    read_zone_untrusted,
)

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [BERLIN, ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC"), ZoneInfo("Asia/Kathmandu")]
EVERY_DAY = frozenset(range(7))


def at(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    windows = read_windows_untrusted([{"days": ["sat"], "from": "22:00", "to": "04:00"}], "windows")
    assert not is_open(windows, BERLIN, at("2026-11-28T21:59"))  # a Saturday
    assert is_open(windows, BERLIN, at("2026-11-28T22:00"))
    assert is_open(windows, BERLIN, at("2026-11-29T03:59"))
    assert not is_open(windows, BERLIN, at("2026-11-29T04:00"))
    assert not is_open(windows, BERLIN, at("2026-11-29T22:30"))
    assert not is_open(windows, BERLIN, at("2026-11-28T03:00"))
    assert next_opening(windows, BERLIN, at("2026-11-29T04:00")) == at("2026-12-05T22:00")
    assert next_closing(windows, BERLIN, at("2026-11-28T23:00")) == at("2026-11-29T04:00")


def test_what_lies_in_the_hour_that_is_skipped_does_not_open_that_day() -> None:
    windows = (Window(EVERY_DAY, 120, 180),)
    before = at("2026-03-29T01:59")
    assert next_opening(windows, BERLIN, before) == at("2026-03-30T02:00")


def test_a_window_that_begins_in_the_skipped_hour_opens_when_the_clock_is_put_forward() -> None:
    windows = (Window(EVERY_DAY, 150, 240),)
    assert next_opening(windows, BERLIN, at("2026-03-29T01:00")) == at("2026-03-29T03:00")


def test_in_the_hour_that_is_shown_twice_a_window_is_open_twice() -> None:
    windows = (Window(EVERY_DAY, 120, 150),)
    first, second = at("2026-10-25T02:00"), at("2026-10-25T02:00", fold=1)
    assert second - first == 3600
    assert next_opening(windows, BERLIN, at("2026-10-25T01:00")) == first
    assert next_closing(windows, BERLIN, first) == first + 1800
    assert next_opening(windows, BERLIN, first + 1800) == second


def test_all_day_every_day_never_closes_and_no_window_is_no_limit() -> None:
    always = read_windows_untrusted([{"from": "00:00", "to": "24:00"}], "windows")
    assert next_closing(always, BERLIN, at("2026-03-28T12:00")) is None
    assert is_open((), BERLIN, 0.0) and next_closing((), BERLIN, 0.0) is None and next_opening((), BERLIN, 5.0) == 5.0


WINDOWS = st.lists(
    st.builds(
        Window,
        st.frozensets(st.integers(0, 6), min_size=1),
        st.integers(0, 1439),
        st.integers(1, 1440),
    ).filter(lambda w: w.start != w.end),
    min_size=1,
    max_size=3,
)
# Around the days on which clocks are changed, and any other days.
MOMENTS = st.one_of(
    st.sampled_from(["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04"]).flatmap(
        lambda day: st.integers(-1440, 1440).map(
            lambda m: datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + 60 * m
        )
    ),
    st.integers(0, 1 << 31).map(float),
)


@settings(deadline=None, max_examples=60)
@given(WINDOWS, st.sampled_from(ZONES), MOMENTS)
def test_the_next_opening_is_what_looking_at_the_clock_every_minute_finds(
    windows: list[Window], zone: ZoneInfo, now_s: float
) -> None:
    found = next_opening(windows, zone, now_s)
    assert is_open(windows, zone, found)
    minute = now_s // 60 * 60 + 60
    while minute < found and minute < now_s + 2 * 86400:
        assert not is_open(windows, zone, minute), datetime.fromtimestamp(minute, zone)
        minute += 60
    if found > now_s:
        closed = found - 60 if found - 60 >= now_s else now_s
        assert not is_open(windows, zone, closed)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected a list of 1 to 32 windows"),
        ({}, "expected a list of 1 to 32 windows"),
        (["x"], r"windows\[0\]: expected an object"),
        ([{"from": "25:00", "to": "04:00"}], r"windows\[0\].from: '25:00', expected a time"),
        ([{"from": "01:00", "to": "24:30"}], r"windows\[0\].to: '24:30'"),
        ([{"from": "24:00", "to": "01:00"}], "24:00 begins no window"),
        ([{"from": "01:00", "to": "01:00"}], "it never opens"),
        ([{"days": [], "from": "01:00", "to": "02:00"}], "without a day it never opens"),
        ([{"days": ["Sunday"], "from": "01:00", "to": "02:00"}], "'Sunday', expected one of mon, tue"),
        ([{"days": [["sun"]], "from": "01:00", "to": "02:00"}], "expected one of mon"),
        ([{"from": 1, "to": "02:00"}], "'1', expected a time"),
        ([{"from": "01:00", "to": "02:00", "zone": "x"}], "'zone' is not known"),
    ],
)
def test_a_window_that_is_wrong_is_refused_with_its_place(value: Any, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        read_windows_untrusted(value, "windows")


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "Europe", "x" * 300, None, 5, "a\0b"])
def test_a_time_zone_that_does_not_exist_is_refused(name: Any) -> None:
    with pytest.raises(PeerError, match="is no time zone"):
        read_zone_untrusted(name, "timeZone")
    assert read_zone_untrusted("Europe/Berlin", "timeZone") == BERLIN


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=6) | st.sampled_from(DAYS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["days", "from", "to", "x"]), inner),
)


@given(JSON)
def test_no_value_makes_the_reader_raise_anything_else(value: Any) -> None:
    try:
        read_windows_untrusted(value, "windows")
    except PeerError:
        return
