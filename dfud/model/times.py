"""Instants as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

LATEST_S = 253402300799.0  # the last second of the year 9999


def time_of(at_s: float, timespec: str = "seconds") -> str:
    """Return RFC 3339 in UTC, of seconds since the epoch. Never raises: beyond 1970 and 9999 it is the first or the last instant."""
    inside_s = at_s if 0.0 <= at_s <= LATEST_S else LATEST_S if at_s > LATEST_S else 0.0
    return datetime.fromtimestamp(inside_s, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
