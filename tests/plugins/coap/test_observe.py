"""Observations, under a clock that is a number."""

from __future__ import annotations

from typing import Any

import pytest
from dfud_coap.observe import PAUSE_S, Observation, Observers
from dfud_coap.reliability import Timers
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Code as Outcome
from dfud.api import Credentials, Reply, Request, Waiting
from dfud.testing.transport import FakeEndpoint, FakeWaiting


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


def test_the_same_command_decided_anew_is_told_again_and_once() -> None:
    w = Watching()
    w.register()
    w.answer = Reply(Outcome.COMMAND, "dfu", b"update", told=1)
    w.endpoint.wake(w.answer)
    w.arrive()
    w.until(60)
    assert len(w.told) == 1
    # Cancelled and wished again between two looks: the same bytes, but history has it twice, and so has the device.
    w.answer = Reply(Outcome.COMMAND, "dfu", b"update", told=2)
    w.until(200)
    w.arrive()
    w.until(500)
    assert [b for _, b, _ in w.told] == [b"update", b"update"]


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
