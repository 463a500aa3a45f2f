"""Maintenance windows: when the clock on a device's wall says that it may be updated. Pure; `now_s` is seconds since the epoch.

A window is open while the local clock shows a time within it, on one of its days. So daylight saving needs no rule of its own: an
hour that the clock skips opens nothing, and in the hour that it shows twice a window is open twice. A window whose end is not
behind its start lasts over midnight and belongs to the day on which it opens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from dfud.errors import PeerError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 1440
WINDOWS_MAX = 32
ZONE_MAX_LENGTH = 64
_TIME = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")


class Window(msgspec.Struct, frozen=True):
    """days: 0 is Monday; start, end: minutes of the local day, end up to 1440 and, over midnight, not behind start."""

    days: frozenset[int]
    start: int
    end: int

    def shows(self, weekday: int, minute: int) -> bool:
        """Say whether a clock that shows this minute of this weekday is within the window."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)


def read_windows_untrusted(value: object, where: str) -> tuple[Window, ...]:
    """Read `[{"days": ["sat", "sun"], "from": "22:00", "to": "04:00"}]`; days left out: every day. Raises PeerError."""
    if not isinstance(value, list) or not 1 <= len(value) <= WINDOWS_MAX:
        raise PeerError(f"{where}: expected a list of 1 to {WINDOWS_MAX} windows")
    return tuple(_window(entry, f"{where}[{n}]") for n, entry in enumerate(value))


def _window(value: object, where: str) -> Window:
    if not isinstance(value, dict):
        raise PeerError(f"{where}: expected an object with from, to and perhaps days")
    if unknown := sorted(str(k) for k in value if k not in ("days", "from", "to")):
        raise PeerError(f"{where}: {unknown[0][:40]!r} is not known, expected days, from, to")
    start, end = _minute(value.get("from"), f"{where}.from"), _minute(value.get("to"), f"{where}.to")
    if start == DAY_MINUTES:
        raise PeerError(f"{where}.from: 24:00 begins no window, expected 00:00")
    if start == end:
        raise PeerError(
            f"{where}: from and to are both {value.get('from')}, so it never opens; all day is 00:00 to 24:00"
        )
    return Window(_days(value.get("days", list(DAYS)), f"{where}.days"), start, end)


def _minute(value: object, where: str) -> int:
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    minute = int(found[1]) * 60 + int(found[2]) if found else DAY_MINUTES + 1
    if minute > DAY_MINUTES:
        raise PeerError(f"{where}: {str(value)[:20]!r}, expected a time from 00:00 to 24:00")
    return minute


def _days(value: object, where: str) -> frozenset[int]:
    if not isinstance(value, list) or not value:
        raise PeerError(f"{where}: expected a list of {', '.join(DAYS)}; without a day it never opens")
    for name in value:
        if name not in DAYS:
            raise PeerError(f"{where}: {str(name)[:20]!r}, expected one of {', '.join(DAYS)}")
    return frozenset(DAYS.index(name) for name in value)


def read_zone_untrusted(name: object, where: str) -> ZoneInfo:
    """Return the time zone of that name in the system's database. Raises PeerError."""
    if isinstance(name, str) and 0 < len(name) <= ZONE_MAX_LENGTH and not name.startswith((".", "/")):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise PeerError(f"{where}: {str(name)[:ZONE_MAX_LENGTH]!r} is no time zone, expected a name such as Europe/Berlin")


def is_open(windows: Sequence[Window], zone: ZoneInfo, now_s: float) -> bool:
    """Say whether one of the windows is open there; without windows it always is."""
    if not windows:
        return True
    local = datetime.fromtimestamp(now_s, zone)
    minute = local.hour * 60 + local.minute
    return any(w.shows(local.weekday(), minute) for w in windows)


def next_opening(windows: Sequence[Window], zone: ZoneInfo, now_s: float) -> float:
    """Return when one of the windows is open next: `now_s` itself if one is open."""
    if is_open(windows, zone, now_s):
        return now_s
    return next(t for t in _changes(windows, zone, now_s) if is_open(windows, zone, t))


def next_closing(windows: Sequence[Window], zone: ZoneInfo, now_s: float) -> float | None:
    """Return when no window is open any longer, seen from `now_s`, at which one is; None if that is never."""
    if not windows:
        return None
    return next((t for t in _changes(windows, zone, now_s) if not is_open(windows, zone, t)), None)


def _changes(windows: Sequence[Window], zone: ZoneInfo, now_s: float) -> Iterator[float]:
    """Yield, in order, every instant behind `now_s` at which a window may open or close, for a little more than a week.

    That is each start and end, the first and the second time that the clock shows it, and each instant at which the clock is
    put forward or back.
    """
    today = datetime.fromtimestamp(now_s, zone).date()
    found: set[float] = set()
    for offset in range(-1, 10):
        day = today + timedelta(days=offset)
        for minute in {m for w in windows for m in (w.start, w.end % DAY_MINUTES)} | {0}:
            wall = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone)
            found.add(wall.timestamp())
            found.add(wall.replace(fold=1).timestamp())
        found.update(_clock_changes(zone, day))
    yield from sorted(t for t in found if t > now_s)


def _clock_changes(zone: ZoneInfo, day: date) -> Iterator[float]:
    """Yield the instant within the UTC day at which the zone's offset changes, to the minute."""
    begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    low, high = begin, begin + 86400

    def offset(at_s: int) -> Any:
        return datetime.fromtimestamp(at_s, zone).utcoffset()

    if offset(low) == offset(high):
        return
    while high - low > 60:
        middle = (low + high) // 120 * 60
        low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
    yield float(high)
