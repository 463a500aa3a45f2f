"""What has yet to be told to hawkBit: keys with the time they are due. The durable half are documents (records.DIRTY).

A key is *held* while the change that it stands for is being committed, so that nobody works on what was before; and it is
finished only if nothing was put on it since the work began.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import trio


class Work:
    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._generation: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._wake = trio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def hold(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._held[key] += 1
            self._generation[key] = self._generation.get(key, 0) + 1

    def release(self, due: dict[str, float]) -> None:
        """End hold(); the keys are due at these times at the latest."""
        for key, at_s in due.items():
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
            self.poke(key, at_s)

    def poke(self, key: str, at_s: float) -> None:
        self._generation[key] = self._generation.get(key, 0) + 1
        self._due[key] = min(self._due.get(key, math.inf), at_s)
        self._wake.set()

    def take(self, now_s: float, limit: int) -> list[tuple[str, int]]:
        """Return due keys, longest due first, each with its generation; they stay until finished."""
        ready = sorted((at, key) for key, at in self._due.items() if at <= now_s and not self._held[key])[:limit]
        return [(key, self._generation[key]) for _, key in ready]

    def unchanged(self, key: str, generation: int) -> bool:
        return self._generation.get(key) == generation

    def finish(self, key: str, generation: int) -> None:
        """Forget the key unless something was put on it since take(); then it is due at once."""
        self._tries.pop(key, None)
        if self.unchanged(key, generation):
            self._due.pop(key, None)
            self._generation.pop(key, None)

    def due(self, keys: Iterable[str], at_s: float) -> set[str]:
        """Return which of the keys are to be worked on at `at_s` or before, or are held."""
        return {key for key in keys if self._held[key] or self._due.get(key, math.inf) <= at_s}

    def later(self, key: str, at_s: float) -> None:
        """Put the key off, whatever it was due at."""
        if key in self._due:
            self._due[key] = at_s
            self._wake.set()

    def failed(self, key: str, now_s: float, first_s: float, most_s: float) -> None:
        """Put the key off for longer each time."""
        self._tries[key] += 1
        self.later(key, now_s + min(first_s * 2 ** min(self._tries[key] - 1, 30), most_s))

    async def wait(self, now_s: float, *, most_s: float = 3600.0) -> None:
        """Return when something may be due."""
        next_s = min((at for key, at in self._due.items() if not self._held[key]), default=math.inf)
        if next_s <= now_s:
            await trio.lowlevel.checkpoint()
            return
        self._wake = trio.Event()
        with trio.move_on_after(min(next_s - now_s, most_s)):
            await self._wake.wait()
