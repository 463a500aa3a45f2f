"""Turns at something dear (a handshake, a slow hash): so many at a time, served fairly by key. No I/O, no clock."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class _Waiter:
    __slots__ = ("event", "granted")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.granted = False


class Turns:
    """At most `at_once` holders, and `per_key` of one key (an address, say).

    Who waits is served key by key, in a circle, so that one key with a thousand waiting delays another by one turn only.
    A deadline belongs inside of the turn: it begins when the turn does.
    """

    def __init__(self, at_once: int, per_key: int | None = None) -> None:
        self._at_once = at_once
        self._per_key = at_once if per_key is None else per_key
        self._taken = 0
        self._held: Counter[Hashable] = Counter()
        self._queues: OrderedDict[Hashable, deque[_Waiter]] = OrderedDict()

    @property
    def taken(self) -> int:
        """How many turns are being had."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many wait for theirs."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends."""
        await self._begin(key)
        try:
            yield
        finally:
            self._end(key)

    async def _begin(self, key: Hashable) -> None:
        # While a turn is free, every key that waits is at its own limit: nobody is overtaken here.
        if self._taken < self._at_once and self._held[key] < self._per_key:
            self._take(key)
            return
        waiter = _Waiter()
        self._queues.setdefault(key, deque()).append(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.granted:
                self._end(key)
            else:
                self._leave(key, waiter)
            raise

    def _take(self, key: Hashable) -> None:
        self._taken += 1
        self._held[key] += 1

    def _end(self, key: Hashable) -> None:
        self._taken -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        for following, queue in self._queues.items():
            if self._held[following] < self._per_key:
                waiter = queue.popleft()
                if queue:
                    self._queues.move_to_end(following)
                else:
                    del self._queues[following]
                self._take(following)
                waiter.granted = True
                waiter.event.set()
                return

    def _leave(self, key: Hashable, waiter: _Waiter) -> None:
        queue = self._queues[key]
        queue.remove(waiter)
        if not queue:
            del self._queues[key]
