"""Counting failures in windows of a minute; bounded memory, no timer."""

from __future__ import annotations

from collections.abc import Hashable

WINDOW_S = 60.0
KEYS_MAX = 100_000


class Failures:
    """How often something failed in the current window, for each key. `now_s` is any clock that only moves forward."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[Hashable, int] = {}
        self._window = -1

    def blocked(self, key: Hashable, now_s: float) -> bool:
        """Say whether `key` has used up this window's failures."""
        if int(now_s / WINDOW_S) != self._window:
            return False
        return self._counts.get(key, 0) >= self._limit

    def add(self, key: Hashable, now_s: float) -> None:
        window = int(now_s / WINDOW_S)
        if window != self._window:
            self._window = window
            self._counts.clear()
        if len(self._counts) < KEYS_MAX or key in self._counts:
            self._counts[key] = self._counts.get(key, 0) + 1
