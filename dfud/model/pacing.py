"""How long a rollout takes at its rate, in its windows, with devices that ask now and then. Pure; an estimate, never a promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zoneinfo import ZoneInfo

import msgspec

from dfud.model.rollout import Plan
from dfud.model.schedule import Window, next_closing, next_opening

WEEK_S = 7 * 86400.0
OPENINGS_MAX = 500  # looked at one by one; a week has at most 32 windows a day
ZONES_MAX = 8  # those with the most devices; the others are taken for one of them
YEARS_MAX_S = 10 * 366 * 86400.0


class WavePace(msgspec.Struct, frozen=True):
    """devices: to be told in it. begins_s, ends_s: from its opening to the end of its soak. limit: what takes the longest."""

    devices: int
    begins_s: float
    ends_s: float
    limit: str


def pace_of(
    plan: Plan,
    waves: Sequence[int],
    zones: Mapping[str, int],
    now_s: float,
    *,
    poll_s: float,
    update_s: float,
) -> list[WavePace]:
    """Return how the waves follow each other if all goes well and nobody is silent.

    waves: devices to be told in each; zones: devices by time zone; poll_s: how often they ask; update_s: how long one update takes.
    """
    found: list[WavePace] = []
    at_s = max(now_s, plan.start_s)
    shares = _shares(plan, zones)
    for number, devices in enumerate(waves):
        begins_s = at_s
        limit = "nobody"
        if devices:
            limits = {"poll": poll_s}
            if plan.rate:
                limits["rate"] = max(0.0, devices - max(1.0, plan.rate / 6)) * 60.0 / plan.rate
            if plan.transfers:
                limits["transfers"] = -(-devices // plan.transfers) * update_s
            limit = max(limits, key=lambda name: limits[name])
            told_s = at_s
            for zone, share in shares:
                need_s = max(poll_s, limits[limit] * share)
                told_s = max(told_s, open_for(plan.windows, zone, at_s, need_s))
            if plan.windows and told_s - at_s > limits[limit] + 1:
                limit = "windows"
            at_s = told_s + update_s
        at_s += plan.waves[number].soak_s
        found.append(WavePace(devices, begins_s, at_s, limit))
    return found


def _shares(plan: Plan, zones: Mapping[str, int]) -> list[tuple[ZoneInfo, float]]:
    """Return the time zones that count with the share of devices that are there."""
    if not plan.windows or not zones:
        return [(plan.zone, 1.0)]
    most = sorted(zones.items(), key=lambda pair: (-pair[1], pair[0]))[:ZONES_MAX]
    whole = sum(number for _, number in most)
    return [(ZoneInfo(name), number / whole) for name, number in most]


def open_for(windows: Sequence[Window], zone: ZoneInfo, at_s: float, need_s: float) -> float:
    """Return when windows have been open for `need_s` since `at_s`; at most YEARS_MAX_S later."""
    if not windows:
        return at_s + need_s
    begin_s, week_s = at_s, open_in(windows, zone, at_s, at_s + WEEK_S)
    if week_s > 0 and need_s > 2 * week_s:
        # Whole weeks at once; the clock changes of a year do not matter for an estimate.
        weeks = int(need_s // week_s) - 1
        at_s, need_s = at_s + weeks * WEEK_S, need_s - weeks * week_s
    for _ in range(OPENINGS_MAX):
        if at_s - begin_s > YEARS_MAX_S:
            break
        at_s = next_opening(windows, zone, at_s)
        closes_s = next_closing(windows, zone, at_s)
        if closes_s is None or closes_s - at_s >= need_s:
            return min(at_s + need_s, begin_s + YEARS_MAX_S)
        need_s -= closes_s - at_s
        at_s = closes_s
    return begin_s + YEARS_MAX_S


def open_in(windows: Sequence[Window], zone: ZoneInfo, at_s: float, until_s: float) -> float:
    """Return for how many seconds windows are open between two instants."""
    found_s = 0.0
    for _ in range(OPENINGS_MAX):
        at_s = next_opening(windows, zone, at_s)
        if at_s >= until_s:
            break
        closes_s = next_closing(windows, zone, at_s)
        end_s = until_s if closes_s is None else min(closes_s, until_s)
        found_s += end_s - at_s
        if closes_s is None or closes_s >= until_s:
            break
        at_s = closes_s
    return found_s
