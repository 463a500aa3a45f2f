"""Counting failures in windows of a minute, and guesses that are being judged; bounded memory, no timer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import trio

WINDOW_S = 60.0
KEYS_MAX = 100_000


class Failures:
    """How often something failed in the current window, for each key. `now_s` is any clock that only moves forward."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[Hashable, int] = {}
        self._window = -1

    def left(self, key: Hashable, now_s: float) -> int:
        """Return how often `key` may still fail in this window."""
        if int(now_s / WINDOW_S) != self._window:
            return self._limit
        return max(0, self._limit - self._counts.get(key, 0))

    def blocked(self, key: Hashable, now_s: float) -> bool:
        """Say whether `key` has used up this window's failures."""
        return self.left(key, now_s) == 0

    def add(self, key: Hashable, now_s: float) -> None:
        window = int(now_s / WINDOW_S)
        if window != self._window:
            self._window = window
            self._counts.clear()
        if len(self._counts) < KEYS_MAX or key in self._counts:
            self._counts[key] = self._counts.get(key, 0) + 1


class TooMany(Exception):
    """Too many wrong credentials from this address, or for what was named."""


class Attempts:
    """Guesses, counted before they are judged: never more are under way for a key than may still fail for it.

    The others wait for a result. Right ones cost nothing, so that a fleet behind one address logs in, a few at a time.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._failures = Failures(limit)
        self._clock = clock
        self._judged: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, trio.lowlevel.ParkingLot] = {}

    async def begin(self, key: Hashable) -> None:
        """Have one guess of `key` judged from now on, until `end()`; wait if need be. Raises TooMany."""
        while True:
            left = self._failures.left(key, self._clock())
            if not left:
                raise TooMany
            if self._judged[key] < left:
                self._judged[key] += 1
                return
            await self._waiting.setdefault(key, trio.lowlevel.ParkingLot()).park()

    def end(self, key: Hashable, *, failed: bool) -> None:
        if failed:
            self._failures.add(key, self._clock())
        self._judged[key] -= 1
        if not self._judged[key]:
            del self._judged[key]
        lot = self._waiting.get(key)
        if lot is None:
            return
        # One place is free, or one fewer may fail; with none left, everybody has to hear of it.
        left = self._failures.left(key, self._clock())
        lot.unpark(count=max(0, left - self._judged[key]) if left else len(lot))
        if not len(lot):
            del self._waiting[key]
