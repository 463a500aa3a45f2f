"""Guesses that are being judged, counted before the work that they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import trio

from dfud.model.windows import PerMinute


class TooMany(Exception):
    """Too many wrong credentials from this address, or for what was named."""


class Attempts:
    """Guesses, counted before they are judged: never more are under way for a key than may still fail for it.

    The others wait for a result, `waiting_max` of them for one key; `counted_max` keys are told apart in one minute. Right ones
    cost nothing, so that a fleet behind one address logs in, a few at a time.
    """

    def __init__(self, limit: int, clock: Callable[[], float], *, waiting_max: int, counted_max: int) -> None:
        self._failures = PerMinute(limit, counted_max)
        self._clock = clock
        self._waiting_max = waiting_max
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
            lot = self._waiting.setdefault(key, trio.lowlevel.ParkingLot())
            if len(lot) >= self._waiting_max:
                raise TooMany
            await lot.park()

    def free(self, key: Hashable) -> bool:
        """Say whether a guess of `key` that is judged at once needs neither to wait nor to be refused."""
        return self._judged.get(key, 0) < self._failures.left(key, self._clock())

    def failed(self, key: Hashable) -> None:
        """Count a guess that was judged at once and is wrong."""
        self._failures.add(key, self._clock())
        self._go_on(key)

    def count(self, key: Hashable, number: int) -> None:
        """Count what failed elsewhere."""
        for _ in range(min(number, self._failures.left(key, self._clock()))):
            self._failures.add(key, self._clock())

    def end(self, key: Hashable, *, failed: bool) -> None:
        if failed:
            self._failures.add(key, self._clock())
        self._judged[key] -= 1
        if not self._judged[key]:
            del self._judged[key]
        self._go_on(key)

    def _go_on(self, key: Hashable) -> None:
        """Let go on those for whom there is room now."""
        lot = self._waiting.get(key)
        if lot is None:
            return
        # One place is free, or one fewer may fail; with none left, everybody has to hear of it.
        left = self._failures.left(key, self._clock())
        lot.unpark(count=max(0, left - self._judged.get(key, 0)) if left else len(lot))
        if not len(lot):
            del self._waiting[key]
