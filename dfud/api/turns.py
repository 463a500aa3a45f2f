"""Turns at something dear (a handshake, a slow hash): so many at a time, served fairly by key. No I/O; trio's clock."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class _Waiter:
    __slots__ = ("event", "turn")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.turn: _Turn | None = None


class _Turn:
    __slots__ = ("key", "over", "since")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.since = trio.current_time()
        self.over = False


class Turns:
    """At most `at_once` holders, and `per_key` of one key (an address, say).

    lasts_s: a turn that lasts longer goes to whoever waits, and its holder goes on without one: who holds turns by doing nothing
    must not keep others waiting, and costs nothing either.

    Who waits is served key by key, in a circle, so that one key with a thousand waiting delays another by one turn only.
    A deadline belongs inside of the turn: it begins when the turn does.
    """

    def __init__(self, at_once: int, per_key: int | None = None, *, lasts_s: float = math.inf) -> None:
        self._at_once = at_once
        self._per_key = at_once if per_key is None else per_key
        self._lasts_s = lasts_s
        self._turns: OrderedDict[_Turn, None] = OrderedDict()  # the longest first
        self._held: Counter[Hashable] = Counter()
        self._queues: OrderedDict[Hashable, deque[_Waiter]] = OrderedDict()

    @property
    def taken(self) -> int:
        """How many turns are being had."""
        return len(self._turns)

    @property
    def waiting(self) -> int:
        """How many wait for theirs."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends."""
        turn = await self._begin(key)
        try:
            yield
        finally:
            self._end(turn)

    async def _begin(self, key: Hashable) -> _Turn:
        # While a turn is free, every key that waits is at its own limit: nobody is overtaken here.
        if len(self._turns) < self._at_once and self._held[key] < self._per_key:
            return self._take(key)
        waiter = _Waiter()
        self._queues.setdefault(key, deque()).append(waiter)
        try:
            while waiter.turn is None:
                with trio.move_on_at(next(iter(self._turns)).since + self._lasts_s):
                    await waiter.event.wait()
                self._end_long_ones()
        except BaseException:
            if waiter.turn is not None:
                self._end(waiter.turn)
            else:
                self._leave(key, waiter)
            raise
        return waiter.turn

    def _end_long_ones(self) -> None:
        late = trio.current_time() - self._lasts_s
        for turn in [turn for turn in self._turns if turn.since <= late]:
            self._end(turn)

    def _take(self, key: Hashable) -> _Turn:
        turn = _Turn(key)
        self._turns[turn] = None
        self._held[key] += 1
        return turn

    def _end(self, turn: _Turn) -> None:
        if turn.over:
            return
        turn.over = True
        key = turn.key
        del self._turns[turn]
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
                waiter.turn = self._take(following)
                waiter.event.set()
                return

    def _leave(self, key: Hashable, waiter: _Waiter) -> None:
        queue = self._queues[key]
        queue.remove(waiter)
        if not queue:
            del self._queues[key]
