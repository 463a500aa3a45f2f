"""Messages that arrive twice, and messages that must arrive: RFC 7252, section 4. Pure: times are arguments, sending is a
function that was passed in."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

# RFC 7252, 4.8
ACK_TIMEOUT_S = 2.0
ACK_RANDOM_FACTOR = 1.5
MAX_RETRANSMIT = 4
NSTART = 1
EXCHANGE_LIFETIME_S = 247.0  # 4.8.2
HEAP_MIN = 1024  # entries of a heap that is not worth clearing


class Timer:
    """`cancel()` is cheap: the entry stays in the heap until its time, or until most of the heap is of that kind."""

    __slots__ = ("_timers", "action", "when_s")

    def __init__(self, timers: Timers, when_s: float, action: Callable[[float], None]) -> None:
        self._timers = timers
        self.when_s = when_s
        self.action: Callable[[float], None] | None = action

    def cancel(self) -> None:
        if self.action is not None:
            self.action = None
            self._timers.cancelled()


class Timers:
    """What is to be done later. `sooner()` is called when something is put before everything else."""

    def __init__(self, sooner: Callable[[], None] = lambda: None) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = 0
        self._cancelled = 0
        self._sooner = sooner

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when_s: float, action: Callable[[float], None]) -> Timer:
        timer = Timer(self, when_s, action)
        self._order += 1
        first = not self._heap or when_s < self._heap[0][0]
        heappush(self._heap, (when_s, self._order, timer))
        if first:
            self._sooner()
        return timer

    def cancelled(self) -> None:
        """One more was; who begins to wait and stops, again and again, must not fill the heap."""
        self._cancelled += 1
        if self._cancelled > HEAP_MIN and 2 * self._cancelled > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if entry[2].action is not None]
            heapify(self._heap)
            self._cancelled = 0

    def next_s(self) -> float | None:
        """Return when something is to be done, or None."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def run(self, now_s: float) -> None:
        """Do everything whose time has come."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            timer = heappop(heap)[2]
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled -= 1
            else:
                action(now_s)


_Seen = dict[Hashable, tuple[float, int, bytes]]


class Duplicates:
    """Which messages were taken already, with what was answered. At most `count_max` of them, and two answers more than `bytes_max`.
    The half that came last is known for certain; of those before it the older ones are forgotten first.

    A message with the identifier of another and other bytes is a new one: a peer that restarted counts from anywhere.

    Three generations: what comes is put into the young one, and takes the place of one in the oldest. When the young one has half of
    all, or is as old as an entry may become, each steps up. So a table under load neither moves nor frees many in one step; an
    OrderedDict stood still for some ms whenever it grew or cleared its holes, and took twice the time for each message.
    """

    __slots__ = ("_bytes", "_bytes_half", "_count_half", "_old", "_oldest", "_turn_s", "_young", "_young_bytes")

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_half = count_max // 2
        self._bytes_half = bytes_max // 2
        self._bytes = 0
        self._young_bytes = 0
        self._turn_s = 0.0
        self._young: _Seen = {}
        self._old: _Seen = {}
        self._oldest: _Seen = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old) + len(self._oldest)

    def find(self, key: Hashable, data: bytes, now_s: float) -> bytes | None:
        """Return what this message was answered with (b"": nothing yet), or None: it is new."""
        found = self._young.get(key) or self._old.get(key) or self._oldest.get(key)
        if found is None or found[1] != hash(data) or found[0] <= now_s:
            return None
        return found[2]

    def add(self, key: Hashable, data: bytes, answer: bytes, now_s: float) -> None:
        """Note a message, and its answer if there is one already."""
        young, size = self._young, len(answer)
        if key in young:
            self._young_bytes -= len(young[key][2])
            self._bytes -= len(young[key][2])
        elif len(young) >= self._count_half or self._young_bytes >= self._bytes_half or now_s >= self._turn_s:
            self._turn(now_s)
            young = self._young
        if self._oldest:
            self._bytes -= len(self._oldest.popitem()[1][2])
            while self._oldest and self._bytes + size > 2 * self._bytes_half:
                self._bytes -= len(self._oldest.popitem()[1][2])
        young[key] = (now_s + EXCHANGE_LIFETIME_S, hash(data), answer)
        self._young_bytes += size
        self._bytes += size

    def _turn(self, now_s: float) -> None:
        if self._oldest:  # few have come since the last turn
            self._bytes -= sum(len(entry[2]) for entry in self._oldest.values())
        self._oldest, self._old, self._young = self._old, self._young, {}
        self._young_bytes = 0
        self._turn_s = now_s + EXCHANGE_LIFETIME_S

    def forget(self, key: Hashable) -> None:
        for seen in (self._young, self._old, self._oldest):
            found = seen.pop(key, None)
            if found is not None:
                self._bytes -= len(found[2])
                if seen is self._young:
                    self._young_bytes -= len(found[2])


class _Sent(msgspec.Struct):
    data: bytes
    send: Callable[[bytes], None]
    ended: Callable[[bool], None]
    message_id: int = 0
    timeout_s: float = 0.0
    count: int = 0
    timer: Any = None


class Outbox:
    """Confirmable messages and their retransmission; one at a time to each peer (NSTART), the others wait,
    `queued_max` of them.

    `ended(True)` is called with the acknowledgement, `ended(False)` with a reset, after the last retransmission or when a
    peer has too many waiting.
    """

    def __init__(self, timers: Timers, queued_max: int, rng: random.Random | None = None) -> None:
        self._timers = timers
        self._queued_max = queued_max
        self._rng = rng or random.SystemRandom()
        self._active: dict[tuple[Hashable, int], _Sent] = {}
        self._waiting: dict[Hashable, deque[_Sent]] = {}
        self._busy: dict[Hashable, int] = {}
        self.retransmissions = 0
        self.given_up = 0

    def __len__(self) -> int:
        return len(self._active) + sum(map(len, self._waiting.values()))

    @property
    def active(self) -> int:
        """How many have been sent and not acknowledged."""
        return len(self._active)

    def busy(self, peer: Hashable) -> bool:
        """Whether one to this peer has."""
        return peer in self._busy

    def send(
        self,
        peer: Hashable,
        message_id: int,
        data: bytes,
        now_s: float,
        send: Callable[[bytes], None],
        ended: Callable[[bool], None],
    ) -> None:
        sent = _Sent(data, send, ended, message_id)
        if self._busy.get(peer, 0) >= NSTART:
            queue = self._waiting.setdefault(peer, deque())
            if len(queue) >= self._queued_max:
                self.given_up += 1
                ended(False)
                return
            queue.append(sent)
            return
        self._start(peer, sent, now_s)

    def _start(self, peer: Hashable, sent: _Sent, now_s: float) -> None:
        self._busy[peer] = self._busy.get(peer, 0) + 1
        sent.timeout_s = ACK_TIMEOUT_S * self._rng.uniform(1, ACK_RANDOM_FACTOR)
        key = (peer, sent.message_id)
        self._active[key] = sent
        sent.timer = self._timers.at(now_s + sent.timeout_s, lambda now: self._late(key, now))
        sent.send(sent.data)

    def _late(self, key: tuple[Hashable, int], now_s: float) -> None:
        sent = self._active[key]
        if sent.count == MAX_RETRANSMIT:
            self.given_up += 1
            self.end(key[0], key[1], False, now_s)
            return
        sent.count += 1
        sent.timeout_s *= 2
        self.retransmissions += 1
        sent.timer = self._timers.at(now_s + sent.timeout_s, lambda now: self._late(key, now))
        sent.send(sent.data)

    def end(self, peer: Hashable, message_id: int, arrived: bool, now_s: float) -> bool:
        """An acknowledgement or a reset came; return whether anything was waiting for it."""
        sent = self._active.pop((peer, message_id), None)
        if sent is None:
            return False
        sent.timer.cancel()
        left = self._busy[peer] - 1
        if left:
            self._busy[peer] = left
        else:
            del self._busy[peer]
        queue = self._waiting.get(peer)
        if queue:
            following = queue.popleft()
            if not queue:
                del self._waiting[peer]
            self._start(peer, following, now_s)
        sent.ended(arrived)
        return True

    def forget(self, peer: Hashable, now_s: float) -> None:
        """The peer is gone for good (its session has ended)."""
        for sent in self._waiting.pop(peer, ()):
            sent.ended(False)
        for key in [k for k in self._active if k[0] == peer] if peer in self._busy else ():
            self.end(key[0], key[1], False, now_s)
