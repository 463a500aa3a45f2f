"""Messages that must arrive, and messages that arrive twice, under a clock that is a number."""

from __future__ import annotations

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
    d.add("a", b"x", b"answer", 0)
    assert len(d) == 1
    assert d.find("a", b"x", EXCHANGE_LIFETIME_S - 0.1) == b"answer"
    assert d.find("a", b"x", EXCHANGE_LIFETIME_S) is None
    d.forget("a")
    assert d.find("a", b"x", 1) is None and len(d) == 0


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=80),
    st.integers(10, 13),
)
def test_the_table_of_duplicates_stays_within_its_bounds(steps: list[tuple[int, int, int, bool]], count_max: int) -> None:
    d, now_s = Duplicates(count_max, 100), 0.0
    for key, seconds, size, forgets in steps:
        now_s += seconds * 50
        d.add(key, b"x", b"a" * size, now_s)
        assert d.find(key, b"x", now_s) == b"a" * size
        if forgets:
            d.forget(key)
            assert d.find(key, b"x", now_s) is None
        held = [len(entry[2]) for seen in (d._young, d._old, d._oldest) for entry in seen.values()]
        assert len(d) == len(held) <= count_max
        assert d._bytes == sum(held) <= 100 + 2 * 40
        assert d._young_bytes == sum(len(entry[2]) for entry in d._young.values())


@given(st.integers(2, 40), st.integers(0, 200), st.integers(0, 200))
def test_the_later_half_of_what_was_taken_is_always_known(count_max: int, before: int, seconds: int) -> None:
    d = Duplicates(count_max, 1 << 20)
    for key in range(before):
        d.add(key, b"x", b"%d" % key, key * seconds / 200)
    now_s = before * seconds / 200
    for key in range(max(0, before - count_max // 2), before):
        assert d.find(key, b"x", now_s) == b"%d" % key


def test_a_full_table_forgets_one_message_for_each_that_comes() -> None:
    d = Duplicates(1000, 1 << 20)
    for key in range(1000):
        d.add(key, b"x", b"a", 0)
    for key in range(1000, 5000):
        d.add(key, b"x", b"a", 0)
        assert len(d) == 1000
