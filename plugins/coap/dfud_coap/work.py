"""Requests that need the endpoint's slow methods: so many at a time, acknowledged meanwhile, each contained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dfud.api import contained
from dfud_coap.answering import Answering
from dfud_coap.message import Code, Option, uint
from dfud_coap.peer import Exchange
from dfud_coap.translate import Answer

ACK_LATEST_S = 1.0  # below every peer's ACK_TIMEOUT_S
T = TypeVar("T")


class Work:
    """What is under way: `count_max` at most, `address_max` of one address, and `events_max` that carry telemetry, which may have to
    wait for others than dfud. `spawn` starts a task.
    """

    def __init__(
        self,
        count_max: int,
        address_max: int,
        events_max: int,
        answering: Answering,
        *,
        spawn: Callable[..., None],
        now: Callable[[], float],
    ) -> None:
        self._count_max = count_max
        self._address_max = address_max
        self._events_max = events_max
        self._events = 0
        self._of_address: Counter[str] = Counter()
        self._answering = answering
        self._spawn = spawn
        self._now = now
        self.count = 0

    def start(
        self,
        exchange: Exchange,
        work: Callable[[], Awaitable[T]],
        then: Callable[[T], None],
        now_s: float,
        *,
        event: bool = False,
    ) -> None:
        """Have `then` called with what `work` gives; acknowledge meanwhile if that takes long. event: it carries telemetry."""
        answering = self._answering
        address = exchange.peer.counted
        full = self.count >= self._count_max or self._of_address[address] >= self._address_max
        if full or (event and self._events >= self._events_max):
            answering.respond(exchange, Answer(Code.UNAVAILABLE, [(Option.MAX_AGE, uint(1))]), now_s)
            return
        if exchange.code != Code.GET:
            answering.duplicates.add(exchange.place, exchange.data, b"", now_s)
        if exchange.confirmable and exchange.late is None:
            exchange.late = answering.timers.at(now_s + ACK_LATEST_S, lambda now: answering.acknowledge(exchange))
        self.count += 1
        self._of_address[address] += 1
        self._events += event
        self._spawn(self._run, exchange, work, then, event)

    async def _run(
        self, exchange: Exchange, work: Callable[[], Awaitable[T]], then: Callable[[T], None], event: bool
    ) -> None:
        try:
            with contained("coap.request", peer=exchange.peer.address) as guard:
                then(await work())
            if guard.error is not None:
                self._answering.failed(exchange)
        finally:
            self.count -= 1
            self._events -= event
            self._of_address[exchange.peer.counted] -= 1
            if not self._of_address[exchange.peer.counted]:
                del self._of_address[exchange.peer.counted]
            self._answering.changed()
