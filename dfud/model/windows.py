"""Counting in windows of a minute; bounded memory, no timer. Pure."""

from __future__ import annotations

from collections.abc import Hashable

WINDOW_S = 60.0
COUNTED_MAX = 100_000


class PerMinute:
    """How often something happened in the current window, for each key. `now_s` is any clock.

    Beyond `counted_max` keys in one window a new key counts as full: who has that many addresses gains nothing by one more.
    """

    def __init__(self, limit: int, counted_max: int = COUNTED_MAX) -> None:
        self._limit = limit
        self._counted_max = counted_max
        self._counts: dict[Hashable, int] = {}
        self._window = -1

    def left(self, key: Hashable, now_s: float) -> int:
        """Return how many more of `key` this window takes."""
        self._roll(now_s)
        unknown = 0 if len(self._counts) < self._counted_max else self._limit
        return max(0, self._limit - self._counts.get(key, unknown))

    def blocked(self, key: Hashable, now_s: float) -> bool:
        """Say whether `key` has used up this window's count."""
        return self.left(key, now_s) == 0

    def add(self, key: Hashable, now_s: float) -> None:
        """Count one more of `key`."""
        self._roll(now_s)
        if len(self._counts) < self._counted_max or key in self._counts:
            self._counts[key] = self._counts.get(key, 0) + 1

    def take(self, key: Hashable, now_s: float) -> bool:
        """Count one more of `key` and return True, or return False if that would be beyond the limit."""
        if self.blocked(key, now_s):
            return False
        self.add(key, now_s)
        return True

    def _roll(self, now_s: float) -> None:
        window = int(now_s / WINDOW_S)
        if window != self._window:
            self._window = window
            self._counts.clear()
