"""The parts that know no sockets, each alone, under a clock that is a number."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from dfud_coap import reliability
from dfud_coap.block import LIFETIME_S, Block, BlockError, Bodies, Kept, cut, szx_of
from dfud_coap.echo import ECHO_LIFETIME_S, VERIFIED_S, Echo, Verified
from dfud_coap.message import Code
from dfud_coap.observe import PAUSE_S, Observation, Observers
from dfud_coap.oscore import EPOCH_S, LEAD_MS, Contexts, Header
from dfud_coap.peer import Strangers, counted
from dfud_coap.reliability import EXCHANGE_LIFETIME_S, QUEUED_PER_PEER_MAX, Duplicates, Outbox, Timers
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Code as Outcome
from dfud.api import Credentials, Reply, Request, Waiting
from dfud.testing.transport import FakeEndpoint, FakeWaiting
from tests.plugins.coap.virtual import Patient

# Timers and the outbox


def test_timers_run_in_order_and_a_cancelled_one_does_not() -> None:
    told: list[Any] = []
    timers = Timers(lambda: told.append("sooner"))
    timers.at(5, lambda now: told.append(("five", now)))
    timers.at(7, lambda now: told.append("seven")).cancel()
    timers.at(3, lambda now: timers.at(4, lambda now: told.append("four")))
    assert told == ["sooner", "sooner"] and timers.next_s() == 3
    timers.run(6)
    assert told[-2:] == ["four", ("five", 6)] and timers.next_s() is None and len(timers) == 0


class Sending:
    def __init__(self) -> None:
        self.timers = Timers()
        self.outbox = Outbox(self.timers, Patient())
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
    for number in range(QUEUED_PER_PEER_MAX + 5):
        s.send(number)
    assert len(s.outbox) == QUEUED_PER_PEER_MAX + 1 and len(s.ended) == 4
    s.until(10_000)
    assert len(s.outbox) == 0 and len(s.ended) == QUEUED_PER_PEER_MAX + 5


# Duplicates


def test_a_duplicate_is_known_for_its_lifetime_and_by_its_bytes() -> None:
    d = Duplicates(10)
    assert d.find("a", b"x", 0) is None
    d.add("a", b"x", b"", 0)
    assert d.find("a", b"x", 1) == b"" and d.find("a", b"y", 1) is None
    d.answered("a", b"answer")
    d.answered("never seen", b"answer")
    assert d.find("a", b"x", EXCHANGE_LIFETIME_S - 0.1) == b"answer"
    assert d.find("a", b"x", EXCHANGE_LIFETIME_S) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 40)), max_size=80))
def test_the_table_of_duplicates_stays_within_its_bounds(steps: list[tuple[int, int, int]]) -> None:
    limit, reliability.REMEMBERED_MAX_BYTES = reliability.REMEMBERED_MAX_BYTES, 100
    try:
        d, now_s = Duplicates(10), 0.0
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
    finally:
        reliability.REMEMBERED_MAX_BYTES = limit


# Blocks


@given(st.binary(min_size=1, max_size=3000), st.integers(0, 6), st.integers(0, 6))
def test_what_is_cut_up_is_put_together_again(body: bytes, asked: int, largest: int) -> None:
    got, number, szx = b"", 0, asked
    bodies = Bodies(10, 10, 4096)
    while True:
        part, block = cut(body, Block(number, False, szx), largest)
        assert block is not None and block.szx <= largest and len(part) <= block.size
        got += part
        whole = bodies.add("k", "a", block, part, 0)
        assert (whole is None) is block.more
        if whole is not None:
            assert whole == got == body and len(bodies) == 0
            return
        szx, number = block.szx, block.number + 1


def test_an_answer_of_one_block_has_no_option_unless_it_was_asked_for() -> None:
    assert cut(b"x" * 1024, None, 6) == (b"x" * 1024, None)
    assert cut(b"x" * 1025, None, 6) == (b"x" * 1024, Block(0, True, 6))
    assert cut(b"x", Block(0, False, 6), 6) == (b"x", Block(0, False, 6))
    assert cut(b"", Block(0, False, 6), 6) == (b"", Block(0, False, 6))
    assert cut(b"x" * 200, Block(1, False, 3), 1) == (b"x" * 32, Block(4, True, 1))  # smaller, from the same byte on
    with pytest.raises(BlockError):
        cut(b"x" * 128, Block(1, False, 3), 6)
    assert [szx_of(n) for n in (16, 17, 31, 32, 1023, 1024)] == [0, 0, 0, 1, 5, 6]


def test_a_body_that_is_too_large_or_has_a_gap_is_forgotten_or_refused() -> None:
    bodies = Bodies(2, 2, 40)
    assert bodies.add("k", "a", Block(0, True, 0), b"a" * 16, 0) is None
    with pytest.raises(BlockError) as gap:
        bodies.add("k", "a", Block(2, False, 0), b"c", 0)
    assert gap.value.code is Code.INCOMPLETE and len(bodies) == 1
    assert bodies.add("k", "a", Block(1, True, 0), b"b" * 16, 0) is None
    with pytest.raises(BlockError) as large:
        bodies.add("k", "a", Block(2, True, 0), b"c" * 16, 0)
    assert large.value.code is Code.TOO_LARGE and len(bodies) == 0
    with pytest.raises(BlockError) as short:
        bodies.add("k", "a", Block(0, True, 0), b"c" * 15, 0)
    assert short.value.code is Code.BAD_REQUEST
    bodies.add("k", "a", Block(0, True, 0), b"a" * 16, 0)
    bodies.add("k", "a", Block(1, True, 0), b"b" * 16, 0)
    assert bodies.add("k", "a", Block(0, True, 0), b"z" * 16, 0) is None  # block 0 begins again
    with pytest.raises(BlockError):
        bodies.add("k", "a", Block(2, False, 0), b"", 0)


def test_bodies_are_bounded_in_total_for_an_address_and_in_time() -> None:
    bodies = Bodies(3, 2, 100)
    for key, address in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        bodies.add(key, address, Block(0, True, 0), b"x" * 16, 0)
    assert (
        len(bodies) == 3
        and set(bodies._held) == {"a3", "b1", "c1"}
        and dict(bodies._counts) == {"a": 1, "b": 1, "c": 1}
    )
    with pytest.raises(BlockError):
        bodies.add("b1", "b", Block(1, False, 0), b"", LIFETIME_S)
    assert len(bodies) == 0 and not bodies._counts


def test_kept_answers_are_bounded_in_number_and_time() -> None:
    kept: Kept[str] = Kept(2)
    for name in ("a", "b", "c"):
        kept.keep(name, name, 0)
    assert (kept.get("a", 1), kept.get("b", 1), kept.get("c", 1)) == (None, "b", "c")
    assert kept.get("c", LIFETIME_S) is None and len(kept) == 0


# Echo, addresses, strangers


def test_an_echo_is_good_for_one_purpose_and_a_while() -> None:
    echo = Echo(b"k" * 16)
    value = echo.make(b"purpose", 100.0)
    assert echo.check_untrusted(value, b"purpose", 100.0 + ECHO_LIFETIME_S) == 100.0
    assert echo.check_untrusted(value, b"purpose", 100.1 + ECHO_LIFETIME_S) is None
    assert echo.check_untrusted(value, b"purpose", 99.0) is None
    assert echo.check_untrusted(value, b"another", 100.0) is None
    assert Echo(b"j" * 16).check_untrusted(value, b"purpose", 100.0) is None
    for bit in range(len(value) * 8):
        forged = bytes(b ^ (1 << bit % 8 if bit // 8 == at else 0) for at, b in enumerate(value))
        assert echo.check_untrusted(forged, b"purpose", 100.0) is None
    for broken in (None, b"", value[:-1], value + b"\0", bytes(16), b"\xff" * 16):
        assert echo.check_untrusted(broken, b"purpose", 100.0) is None


def test_verified_addresses_are_bounded_in_number_and_time() -> None:
    verified = Verified(2)
    for number in range(3):
        verified.add(number, 0)
    assert [verified.has(n, 1) for n in range(3)] == [False, True, True] and len(verified) == 2
    assert not verified.has(2, VERIFIED_S)


def test_strangers_hear_so_much_in_a_minute_and_then_nothing() -> None:
    strangers = Strangers(2)
    assert [strangers.may_tell("a", 0) for _ in range(3)] == [True, True, False]
    assert strangers.is_silenced("a", 59) and not strangers.is_silenced("b", 59) and strangers.may_tell("b", 59)
    assert not strangers.is_silenced("a", 60) and strangers.may_tell("a", 60)


def test_limits_count_a_network_of_ipv6_as_one_address() -> None:
    assert counted("192.0.2.1") == "192.0.2.1" and counted("no:address") == "no:address"
    assert counted("2001:db8:1:2:3:4:5:6") == counted("2001:db8:1:2:ffff::") == "2001:db8:1:2::"
    assert counted("2001:db8:1:3::1") != counted("2001:db8:1:2::1")


# OSCORE contexts


def test_no_number_is_used_twice_and_no_old_echo_counts_after_a_context_was_forgotten() -> None:
    contexts = Contexts(1)
    headers = [Header(b"\0", bytes([n]) * 8 + b"d@a", "d@a") for n in range(3)]
    first = contexts.derive(headers[0], b"k" * 16, EPOCH_S + 10.0)
    assert first is not None and first.sequence == 10_000
    # Challenged again and again by the same message that is replayed: other numbers, and soon nothing.
    replayed = [contexts.derive(headers[0], b"k" * 16, EPOCH_S + 10.0) for _ in range(LEAD_MS + 3)]
    assert [c and c.sequence for c in replayed] == [*range(10_001, 10_001 + LEAD_MS), None, None, None]
    contexts.establish(first, made_s=100.0)
    assert contexts.get(headers[0].id_context) is first and contexts.is_fresh(99.0) and not first.forgotten
    first._aio.sender_sequence_number = 50_000  # a lively one
    second = contexts.derive(headers[1], b"k" * 16, EPOCH_S + 11.0)
    assert second is not None
    contexts.establish(second, made_s=101.0)  # there is room for one
    assert contexts.get(headers[0].id_context) is None and len(contexts) == 1 and first.forgotten
    # The same context again: not below what was used; and what established it is not fresh again.
    assert contexts.derive(headers[0], b"k" * 16, EPOCH_S + 12.0) is None
    again = contexts.derive(headers[0], b"k" * 16, EPOCH_S + 51.0)
    assert again is not None and again.sequence == 51_000
    assert not contexts.is_fresh(100.0) and contexts.is_fresh(100.1) and not contexts.is_fresh(None)


# Observing


class Watching:
    """Observers with FakeEndpoint's waitings; `told` is what was sent, each to be answered by `arrive()`."""

    def __init__(self, check_s: float = 900.0) -> None:
        self.now_s = 0.0
        self.timers = Timers()
        self.endpoint = FakeEndpoint()
        self.posts: list[Request] = []
        self.answer: Reply | None = None
        self.told: list[tuple[float, bytes, Any]] = []
        self.ended: list[Observation] = []
        self.observers = Observers(
            self.timers,
            lambda: self.now_s,
            self._post,
            self._notify,
            self.ended.append,
            check_s=check_s,
            wait_s=check_s,
        )

    def _post(self, request: Request, then: Any) -> None:
        self.posts.append(request)
        if self.answer is not None:
            then(self.answer)
            return
        waiting: Waiting = FakeWaiting(self.endpoint, min(request.timeout_s, 300.0))
        self.endpoint.parked.add(waiting)  # type: ignore[arg-type]
        then(waiting)

    def _notify(self, observation: Observation, reply: Reply, then: Any) -> None:
        self.told.append((self.now_s, reply.body, then))

    def arrive(self, arrived: bool = True) -> None:
        self.told[-1][2](arrived)

    def register(self, who: str = "w", *, as_device: str = "", key: str = "k") -> Observation:
        request = Request("coap", "p", Credentials(), "dfu", b"status", as_device=as_device)
        return self.observers.register(key, who, None, request, Reply(Outcome.COMMAND, "dfu", b"sync"))

    def until(self, at_s: float) -> None:
        while (next_s := self.timers.next_s()) is not None and next_s <= at_s:
            self.now_s = next_s
            self.timers.run(next_s)
        self.now_s = at_s


UPDATE = Reply(Outcome.COMMAND, "dfu", b"update")


def test_a_change_is_told_once_and_the_status_is_posted_again() -> None:
    w = Watching()
    w.register()
    assert len(w.posts) == 1 and w.posts[0].timeout_s == 900 and not w.told
    w.answer = UPDATE  # from now on the endpoint says so at once
    w.endpoint.wake(UPDATE)
    assert [(t, b) for t, b, _ in w.told] == [(0, b"update")]
    w.arrive()
    w.until(400)
    assert len(w.told) == 1 and 2 < len(w.posts) < 8  # ever more seldom, and nothing new
    w.answer = Reply(Outcome.COMMAND, "dfu", b"stop")
    w.until(700)
    assert [b for _, b, _ in w.told] == [b"update", b"stop"]


def test_nobody_is_reported_alive_who_does_not_show_it() -> None:
    w = Watching()
    w.register()
    w.until(899)
    assert len(w.posts) == 3 and not w.told  # at 0, 300 and 600 s
    w.until(900)
    assert [b for _, b, _ in w.told] == [b"sync"] and len(w.posts) == 3
    w.until(5000)
    assert len(w.posts) == 3  # not before it has acknowledged
    w.arrive()
    assert len(w.posts) == 4 and not w.ended
    w.until(5900)
    w.arrive(False)
    assert len(w.ended) == 1 and len(w.observers) == 0 and not w.endpoint.parked and w.timers.next_s() is None


def test_what_a_device_says_or_fetches_itself_supersedes_its_registration() -> None:
    w = Watching()
    w.register(as_device="a", key="1")
    w.register(as_device="b", key="2")
    w.observers.posted("w", w.posts[0])
    assert [o.key for o in w.ended] == ["1"] and len(w.endpoint.parked) == 1
    w.observers.posted("another", w.posts[1])
    assert len(w.observers) == 1
    w.observers.fetched("w", Credentials())
    posts = len(w.posts)
    assert not w.endpoint.parked
    w.until(899)
    assert len(w.posts) == posts  # its old status is not posted while it is busy
    w.observers.peer_gone("w")
    assert len(w.observers) == 0 and len(w.ended) == 2 and w.timers.next_s() is None


def test_registering_again_replaces() -> None:
    w = Watching()
    w.register()
    w.register()
    assert len(w.observers) == 1 and len(w.ended) == 1 and len(w.endpoint.parked) == 1
    w.observers.end_all()
    w.observers.end("k")
    assert len(w.ended) == 2 and not w.endpoint.parked


@pytest.mark.parametrize("code", [Outcome.AWAY, Outcome.TOO_MANY, Outcome.FAILED, Outcome.ACCEPTED])
def test_an_endpoint_that_is_away_is_asked_later(code: Outcome) -> None:
    w = Watching()
    w.answer = Reply(code)
    w.register()
    assert len(w.posts) == 1 and not w.told
    w.answer = None
    w.until(PAUSE_S * 4)
    assert len(w.posts) == 2 and len(w.endpoint.parked) == 1 and len(w.observers) == 1


def test_a_device_that_is_denied_is_told_so_and_observes_no_more() -> None:
    w = Watching()
    w.register()
    w.endpoint.wake(Reply(Outcome.DENIED, error="E", message="m"))
    assert len(w.told) == 1 and len(w.ended) == 1 and w.timers.next_s() is None
    w.arrive()
    assert len(w.observers) == 0


@given(
    st.lists(st.sampled_from(["wake", "accepted", "away", "arrive", "lost", "fetch", "time", "register"]), max_size=40)
)
def test_whatever_happens_an_observation_has_one_thing_to_wait_for(steps: list[str]) -> None:
    w = Watching()
    o = w.register()
    for number, step in enumerate(steps):
        if step == "wake":
            w.endpoint.wake(Reply(Outcome.COMMAND, "dfu", b"%d" % number))
        elif step == "accepted":
            w.endpoint.wake(Reply(Outcome.ACCEPTED))
        elif step == "away":
            w.endpoint.wake(Reply(Outcome.AWAY, retry_after_s=5))
        elif step in ("arrive", "lost") and w.told:
            w.arrive(step == "arrive")
        elif step == "fetch":
            w.observers.fetched("w", Credentials())
        elif step == "time":
            w.until(w.now_s + 301)
        elif step == "register":
            o = w.register()
        assert len(w.endpoint.parked) <= 1
        assert len(w.observers) == (0 if o.ended else 1)
        if not o.ended:
            waits = o.waiting is not None or o.timer is not None
            assert waits or w.now_s - o.alive_s >= 900  # or for the acknowledgement of the check
        else:
            assert not w.endpoint.parked
