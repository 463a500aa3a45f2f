"""Requests that wait for a command, and how many may; observations are counted here, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import msgspec

from dfud.api import Reply, Waiting, contained
from dfud_coap.answering import Answering
from dfud_coap.message import Code, Option, uint
from dfud_coap.peer import Exchange
from dfud_coap.translate import Answer, CoapRequest, answer_reply

RETRY_S = 10


class Parked(msgspec.Struct, eq=False):
    exchange: Exchange
    asked: CoapRequest
    waiting: Waiting
    timer: Any = None

    @property
    def key(self) -> tuple[Hashable, bytes]:
        return (self.exchange.who, self.exchange.token)


class WaitingRoom:
    """At most `count_max` that wait or observe, `address_max` of one address."""

    def __init__(self, count_max: int, address_max: int, answering: Answering, *, now: Callable[[], float]) -> None:
        self._count_max = count_max
        self._address_max = address_max
        self._answering = answering
        self._now = now
        self._parked: dict[tuple[Hashable, bytes], Parked] = {}
        self._of_address: Counter[str] = Counter()
        self.held = 0

    def __len__(self) -> int:
        """How many requests wait; observations not counted."""
        return len(self._parked)

    def waits(self, who: Hashable, token: bytes) -> bool:
        return bool(self._parked) and (who, token) in self._parked

    def holds(self, address: str) -> bool:
        """Whether anything of an address waits or observes."""
        return bool(self._of_address[address])

    def may_hold(self, address: str) -> bool:
        return self.held < self._count_max and self._of_address[address] < self._address_max

    def hold(self, address: str) -> None:
        self.held += 1
        self._of_address[address] += 1

    def release(self, address: str) -> None:
        self.held -= 1
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]

    def park(self, exchange: Exchange, asked: CoapRequest, waiting: Waiting, now_s: float) -> None:
        """Acknowledge, and answer when `waiting` is woken or its time has passed; at once if there is no room."""
        answering = self._answering
        address = exchange.peer.counted
        if not self.may_hold(address) or (exchange.who, exchange.token) in self._parked:
            waiting.cancel()
            answering.finish(exchange, asked, Answer(Code.UNAVAILABLE, [(Option.MAX_AGE, uint(RETRY_S))]), now_s)
            return
        answering.acknowledge(exchange)
        if not exchange.confirmable:
            answering.duplicates.add(exchange.place, exchange.data, b"", now_s)
        self.hold(address)
        parked = Parked(exchange, asked, waiting)
        parked.timer = answering.timers.at(now_s + waiting.timeout_s, lambda now: self._expired(parked))
        self._parked[parked.key] = parked
        waiting.listen(lambda reply: self._woken(parked, reply))

    def superseded(self, exchange: Exchange, asked: CoapRequest) -> None:
        """A new request with the token of a waiting one ends that, if it is of the same device."""
        if self._parked and (old := self._parked.get((exchange.who, exchange.token))) is not None:
            if old.asked.credentials == asked.credentials:
                self._take(old).cancel()

    def peer_gone(self, key: Hashable) -> None:
        for parked in [p for p in self._parked.values() if p.exchange.who == key]:
            self._take(parked).cancel()

    def end_all(self) -> None:
        """Answer everybody who waits."""
        for parked in tuple(self._parked.values()):
            self._expired(parked)

    def _take(self, parked: Parked) -> Waiting:
        del self._parked[parked.key]
        parked.timer.cancel()
        self.release(parked.exchange.peer.counted)
        return parked.waiting

    def _woken(self, parked: Parked, reply: Reply) -> None:
        if self._parked.get(parked.key) is parked:
            self._take(parked)
            with contained("coap.wake", peer=parked.exchange.peer.address) as guard:
                self._answering.finish(parked.exchange, parked.asked, answer_reply(reply), self._now())
            if guard.error is not None:
                self._answering.failed(parked.exchange)
            self._answering.changed()

    def _expired(self, parked: Parked) -> None:
        self._woken(parked, parked.waiting.expire())
