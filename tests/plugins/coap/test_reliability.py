"""Messages that must arrive, and messages that arrive twice, under a clock that is a number."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from dfud_coap.reliability import EXCHANGE_LIFETIME_S, HEAP_MIN, Duplicates, Outbox, Timers
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins.coap.virtual import Patient

QUEUED = 64


def test_timers_run_in_order_and_a_cancelled_one_does_not() -> None:
    told: list[Any] = []
    timers = Timers(lambda: told.append("sooner"))
    timers.at(5, lambda now: told.append(("five", now)))
    timers.at(7, lambda now: told.append("seven")).cancel()

    def three(now: float) -> None:
        timers.at(4, lambda now: told.append("four"))

    timers.at(3, three)
    assert told == ["sooner", "sooner"] and timers.next_s() == 3
    timers.run(6)
    assert told[-2:] == ["four", ("five", 6)] and timers.next_s() is None and len(timers) == 0


def test_those_that_are_cancelled_do_not_fill_the_heap() -> None:
    """Who waits for five minutes and stops at once, again and again, leaves nothing behind."""
    timers = Timers()
    told: list[float] = []
    kept = [timers.at(n, told.append) for n in range(100)]
    for _ in range(50_000):
        timers.at(300, told.append).cancel()
        assert len(timers) < 2 * (HEAP_MIN + len(kept))
    for timer in kept[::2]:
        timer.cancel()
    timers.run(400)
    assert told == [400] * 50 and len(timers) == 0 and timers._cancelled == 0


class Sending:
    def __init__(self) -> None:
        self.timers = Timers()
        self.outbox = Outbox(self.timers, QUEUED, Patient())
        self.sent: list[tuple[float, bytes]] = []
        self.ended: list[tuple[int, bool]] = []
        self.now_s = 0.0

    def send(self, message_id: int, peer: str = "p") -> None:
        self.outbox.send(
            peer,
            message_id,
            b"%d" % message_id,
            self.now_s,
            lambda data: self.sent.append((self.now_s, data)),
            lambda arrived: self.ended.append((message_id, arrived)),
        )

    def until(self, at_s: float) -> None:
        while (next_s := self.timers.next_s()) is not None and next_s <= at_s:
            self.now_s = next_s
            self.timers.run(next_s)
        self.now_s = at_s


def test_the_outbox_doubles_its_patience_and_gives_up_after_the_fourth_repetition() -> None:
    s = Sending()
    s.send(1)
    s.until(100)
    assert s.sent == [(t, b"1") for t in (0, 2, 6, 14, 30)]
    assert s.ended == [(1, False)] and len(s.outbox) == 0 and (s.outbox.retransmissions, s.outbox.given_up) == (4, 1)


def test_nstart_the_second_message_waits_for_the_end_of_the_first_but_not_for_other_peers() -> None:
    s = Sending()
    for number in (1, 2, 3):
        s.send(number)
    s.send(9, "another")
    assert [d for _, d in s.sent] == [b"1", b"9"]
    assert (
        s.outbox.end("p", 1, True, 1.0) and not s.outbox.end("p", 1, True, 1.0) and not s.outbox.end("q", 2, True, 1.0)
    )
    assert [d for _, d in s.sent] == [b"1", b"9", b"2"] and s.ended == [(1, True)]
    s.outbox.forget("p", 2.0)
    assert s.ended == [(1, True), (3, False), (2, False)] and len(s.outbox) == 1


def test_a_peer_that_never_acknowledges_cannot_pile_up_messages() -> None:
    s = Sending()
    for number in range(QUEUED + 5):
        s.send(number)
    assert len(s.outbox) == QUEUED + 1 and len(s.ended) == 4
    s.until(10_000)
    assert len(s.outbox) == 0 and len(s.ended) == QUEUED + 5


def test_a_duplicate_is_known_for_its_lifetime_and_by_its_bytes() -> None:
    d = Duplicates(10, 1 << 20)
    assert d.find("a", b"x", 0) is None
    d.add("a", b"x", b"", 0)
    assert d.find("a", b"x", 1) == b"" and d.find("a", b"y", 1) is None
    d.answered("a", b"answer")
    d.answered("never seen", b"answer")
    assert d.find("a", b"x", EXCHANGE_LIFETIME_S - 0.1) == b"answer"
    assert d.find("a", b"x", EXCHANGE_LIFETIME_S) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 40)), max_size=80))
def test_the_table_of_duplicates_stays_within_its_bounds(steps: list[tuple[int, int, int]]) -> None:
    d, now_s = Duplicates(10, 100), 0.0
    for key, seconds, size in steps:
        now_s += seconds * 50
        d.add(key, b"x", b"a" * size, now_s)
        assert d.find(key, b"x", now_s) == b"a" * size
        assert len(d) <= 10 and d._bytes == sum(len(v[2]) for v in d._seen.values()) <= 100 + 40
        expiries = [v[0] for v in d._seen.values()]
        assert expiries == sorted(expiries)
        assert isinstance(
            d._seen, OrderedDict
        )  # a dict would search for its first key at each message, once it is full
