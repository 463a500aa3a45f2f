"""How long a rollout takes: by rate, ceiling, windows, zones and polls."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from dfud.model.pacing import YEARS_MAX_S, open_for, open_in, pace_of
from dfud.model.rollout import Plan, Wave
from dfud.model.schedule import read_windows_untrusted

UTC = ZoneInfo("UTC")
NIGHT = read_windows_untrusted([{"from": "22:00", "to": "02:00"}], "w")
SUNDAY = read_windows_untrusted([{"days": ["sun"], "from": "03:00", "to": "04:00"}], "w")
T0 = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()  # a Monday, at noon


def ends(plan: Plan, waves: list[int], **more: object) -> list[tuple[float, str]]:
    given: dict[str, object] = {"zones": {"UTC": sum(waves)}, "poll_s": 300.0, "update_s": 60.0} | more
    zones = given.pop("zones")
    found = pace_of(plan, waves, zones, T0, **given)  # type: ignore[arg-type]
    return [(pace.ends_s - T0, pace.limit) for pace in found]


def test_without_limits_the_slowest_poll_counts() -> None:
    plan = Plan("1.1", waves=(Wave(percent=10, soak_s=600), Wave(percent=100)))
    assert ends(plan, [10, 90]) == [(300 + 60 + 600, "poll"), (960 + 360, "poll")]
    assert ends(plan, [0, 90]) == [(600, "nobody"), (960, "poll")]


def test_a_rate_counts_with_its_burst_and_a_ceiling_in_rounds() -> None:
    assert ends(Plan("1.1", waves=(Wave(percent=100),), rate=60), [1000]) == [((1000 - 10) * 1.0 + 60, "rate")]
    assert ends(Plan("1.1", waves=(Wave(percent=100),), transfers=10), [1000]) == [(100 * 60 + 60, "transfers")]
    assert ends(Plan("1.1", waves=(Wave(percent=100),), rate=6000, transfers=1), [10]) == [(600 + 60, "transfers")]


def test_windows_are_waited_for_where_the_devices_are() -> None:
    plan = Plan("1.1", waves=(Wave(percent=100),), windows=NIGHT)
    assert ends(plan, [10]) == [(10 * 3600 + 300 + 60, "windows")]
    # Tokyo is nine hours ahead: its night begins an hour after noon in UTC.
    assert ends(plan, [10], zones={"Asia/Tokyo": 10}) == [(3600 + 300 + 60, "windows")]
    assert ends(plan, [10], zones={"Asia/Tokyo": 5, "UTC": 5}) == [(10 * 3600 + 300 + 60, "windows")]


def test_a_rate_in_windows_takes_as_many_of_them_as_it_needs() -> None:
    # 60 a minute, four hours a night: 14,400 a night.
    plan = Plan("1.1", waves=(Wave(percent=100),), windows=NIGHT, rate=60)
    ((seconds, limit),) = ends(plan, [14_400 * 3 + 10])
    assert limit == "windows" and seconds == 10 * 3600 + 2 * 86400 + 4 * 3600 + 60
    ((seconds, _),) = ends(plan, [14_400 * 365])
    assert abs(seconds - 365 * 86400) < 86400, "whole weeks at once end where single nights do"


def test_one_hour_a_week_may_take_years_and_then_that_is_said() -> None:
    assert open_in(SUNDAY, UTC, T0, T0 + 14 * 86400) == 7200
    assert open_for(SUNDAY, UTC, T0, 3600.0) == datetime(2026, 6, 7, 4, tzinfo=UTC).timestamp()
    assert open_for(SUNDAY, UTC, T0, 1e9) == T0 + YEARS_MAX_S
    assert open_for((), UTC, T0, 17.0) == T0 + 17
    all_day = read_windows_untrusted([{"from": "00:00", "to": "24:00"}], "w")
    assert open_for(all_day, UTC, T0, 1e6) == T0 + 1e6


def test_it_begins_at_its_start() -> None:
    plan = Plan("1.1", waves=(Wave(percent=100),), start_s=T0 + 1000)
    assert ends(plan, [1]) == [(1000 + 360, "poll")]
