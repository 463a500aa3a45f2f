"""Instants as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def time_of(at_s: float) -> str:
    """Return RFC 3339 in UTC to the second, of seconds since the epoch."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
