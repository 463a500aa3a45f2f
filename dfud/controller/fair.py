"""Turns at something scarce: those who wait are served app by app, within an app in their order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class FairLimiter:
    """Up to `places` at a time. A group with a hundred waiters delays another group's first one by one turn, not by a hundred."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._idle = trio.lowlevel.ParkingLot()
        self._waiting: OrderedDict[Hashable, deque[trio.Event]] = OrderedDict()

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def full(self) -> bool:
        """Whether who comes now waits for the end of others."""
        return not self._free or bool(self._waiting)

    async def free(self) -> None:
        """Wait until there is a place that nobody waits for. It is not kept: for what may wait as long as others come."""
        while self.full:
            await self._idle.park()

    @asynccontextmanager
    async def turn(self, group: Hashable) -> AsyncIterator[None]:
        """Have one place within the block."""
        if self._free and not self._waiting:
            self._free -= 1
        else:
            event = trio.Event()
            self._waiting.setdefault(group, deque()).append(event)
            try:
                await event.wait()
            except BaseException:
                if event.is_set():
                    self._next()
                else:
                    self._forget(group, event)
                raise
        try:
            yield
        finally:
            self._next()

    def _forget(self, group: Hashable, event: trio.Event) -> None:
        self._waiting[group].remove(event)
        if not self._waiting[group]:
            del self._waiting[group]

    def _next(self) -> None:
        """Pass a place on to the group that was served longest ago."""
        if not self._waiting:
            self._free += 1
            self._idle.unpark()
            return
        group, queue = self._waiting.popitem(last=False)
        queue.popleft().set()
        if queue:
            self._waiting[group] = queue
