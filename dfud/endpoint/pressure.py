"""How much is worked on at a time, and who is told to come back because it would be late. Oldest first.

Every request passes through trio's loop several times, and what is not read yet waits for it, too. So as many are worked on as keep
the loop from being late, which is measured, but only while enough is under way for it to matter. Others wait for their turn; and
where their turn would come too late, at the rate of the last moments, they are told at once.
"""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict

import msgspec
import trio

from dfud.api import Reply
from dfud.endpoint.replies import AWAY

LAG_S = 0.1  # how late the loop may be
BUSY = 64  # under way; with fewer, whatever makes the loop late is not that there are too many
AT_FIRST = 256
AT_LEAST = 128  # they share a commit: fewer would cost more each
EVERY_S = 0.02
GROWS, SHRINKS = 1.25, 0.5  # at a measurement
RATE_AT_FIRST = 2000.0  # a second, until it was measured: after a start, when most come at once
RATE_OVER_S = 0.5
# Those who come back meet others, so that more are turned away again than need be: by how much Retry-After grows in a second in which
# somebody always waited, and shrinks in one in which nobody did for a moment.
LONGER, SHORTER, LONGEST = 1.5, 0.5, 8.0


class Waiter:
    """One that waits for a turn. told(): called once: its turn has come (`has_turn`), or it would be late."""

    __slots__ = ("has_turn", "since_s")

    def __init__(self) -> None:
        self.has_turn = False
        self.since_s = 0.0

    def told(self) -> None:
        raise NotImplementedError


class _Task(Waiter):
    __slots__ = ("event",)

    def __init__(self) -> None:
        super().__init__()
        self.event = trio.Event()

    def told(self) -> None:
        self.event.set()


class Pressure:
    """at_once: how many are worked on at most; late_s: how long one may wait for its turn; away_s: the longest Retry-After.

    The time is trio's. Turns are limited only while `watch()` runs.
    """

    def __init__(self, at_once: int, late_s: float, away_s: int) -> None:
        self._at_once = at_once
        self._late_s = late_s
        self._away_s = away_s
        self.limit = min(at_once, AT_FIRST)
        self.under_way = 0
        self.turned_away = 0
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._hands_on = False
        self._busy = trio.Event()
        self._most = 0  # under way, since the last measurement
        self._rate = RATE_AT_FIRST
        self._done = 0
        self._measured_s = 0.0
        # How many are to come back in which second, and in all.
        self._back: Counter[int] = Counter()
        self._second = 0
        self._coming = 0
        self._times = 1.0  # as long as serving them would take
        self._idle = False  # nobody waited, at some moment of this second
        # Made once, so that a transport writes each once, too: being turned away has to be cheap.
        self._answers = [msgspec.structs.replace(AWAY, retry_after_s=seconds) for seconds in range(away_s + 1)]

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether what comes now would have its turn too late."""
        return self.under_way >= self.limit and len(self._waiting) >= self._rate * self._late_s

    def turn_now(self) -> bool:
        """Take a turn that nobody waits for and return True, `end()` is due then; or False: there is none."""
        if self._waiting or self.under_way >= self.limit:
            return False
        self._begin()
        return True

    async def turn(self) -> bool:
        """Wait for a turn and return True, `end()` is due then; or False: it would be late."""
        if self.turn_now():
            return True
        if self.full:
            return False
        waiter = _Task()
        self.queue(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            self.leave(waiter)
            raise
        return waiter.has_turn

    def soon(self, waiter: Waiter) -> None:
        """Give it a turn, or have it wait for one; it is told later. `leave()` is due in the end."""
        if self.turn_now():
            waiter.has_turn = True
        else:
            self.queue(waiter)

    def queue(self, waiter: Waiter) -> None:
        waiter.since_s = trio.current_time()
        self._waiting[waiter] = None
        self._busy.set()

    def leave(self, waiter: Waiter) -> None:
        """Its turn is over, or it waits for one no longer."""
        if waiter.has_turn:
            waiter.has_turn = False
            self.end()
        else:
            self._waiting.pop(waiter, None)

    def _begin(self) -> None:
        self.under_way += 1
        self._most = max(self._most, self.under_way)
        if self.under_way == BUSY:
            self._busy.set()

    def end(self) -> None:
        self.under_way -= 1
        self._done += 1
        if self._waiting:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._hands_on:
            return  # one that was told had nothing to do: its turn is handed on below, not deeper and deeper
        self._hands_on = True
        try:
            late_s = trio.current_time() - self._late_s
            while self._waiting:
                waiter = next(iter(self._waiting))
                if waiter.since_s > late_s:
                    if self.under_way >= self.limit:
                        return
                    waiter.has_turn = True
                    self._begin()
                del self._waiting[waiter]
                waiter.told()
        finally:
            self._hands_on = False

    def away(self) -> Reply:
        """Return the answer to one that has no turn.

        Each is to come back at a time of its own, all of them within the time that serving those takes who are to come back; or a
        multiple of it, as long as too many come nevertheless.
        """
        now_s = trio.current_time()
        if now_s >= self._second + 1:
            if now_s >= self._second + 3 or self._idle:
                self._times = max(1.0, self._times * SHORTER)
            else:
                self._times = min(LONGEST, self._times * LONGER)
            self._idle = False
            self._second = math.floor(now_s)
            self._back = Counter({second: count for second, count in self._back.items() if second >= now_s})
            self._coming = self._back.total()
        longest_s = min(self._away_s, 2 + int(self._times * self._coming / self._rate))
        wait_s = 1 + int(random.random() * longest_s)  # noqa: S311 - not a secret
        self._back[math.floor(now_s) + wait_s] += 1
        self._coming += 1
        self.turned_away += 1
        return self._answers[wait_s]

    def measured(self, lag_s: float, over_s: float) -> None:
        """The loop was so late, within the last `over_s`."""
        if lag_s > LAG_S and self._most >= BUSY:
            self.limit = max(min(AT_LEAST, self._at_once), int(self.limit * max(SHRINKS, LAG_S / lag_s)))
        elif lag_s < LAG_S / 2 and self._waiting:
            self.limit = min(self._at_once, int(self.limit * GROWS) + 1)
        elif self._most < self.limit // 4 and self.limit > AT_FIRST:
            self.limit = max(AT_FIRST, int(self.limit / GROWS))
        self._most = self.under_way
        self._idle = self._idle or not self._waiting
        if self._waiting:
            self._measured_s += over_s
            if self._measured_s >= RATE_OVER_S:
                self._rate = max(1.0, (self._rate + self._done / self._measured_s) / 2)
                self._done, self._measured_s = 0, 0.0
        else:
            self._done, self._measured_s = 0, 0.0
        self._hand_on()

    async def watch(self) -> None:
        """Measure, until cancelled."""
        while True:
            if self.under_way < BUSY and not self._waiting:
                self._busy = trio.Event()
                await self._busy.wait()
            before_s = trio.current_time()
            await trio.sleep(EVERY_S)
            took_s = trio.current_time() - before_s
            self.measured(took_s - EVERY_S, took_s)
