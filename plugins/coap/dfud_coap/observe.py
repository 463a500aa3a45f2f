"""Observations (RFC 7641): who is told when its command changes. Pure but for what is passed in: `post` asks the endpoint,
`notify` sends, `timers` has the time.

An observation is the device's status, posted again whenever something could be new. It is never posted on behalf of a device
that has not shown for `check_s` that it is there, nor while the device is doing what it was told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from dfud.api import Code, Credentials, Reply, Request, Waiting, contained
from dfud_coap.reliability import Timer, Timers

PAUSE_S = 10.0  # after a command, before the status is posted again; doubled up to check_s
AWAY_S = 30.0


class Observation:
    """One registration. `carrier` is the sender's business; `who` the peer or security context it came from."""

    __slots__ = ("alive_s", "carrier", "ended", "key", "last", "pause_s", "request", "timer", "waiting", "who")

    def __init__(self, key: Hashable, who: Hashable, carrier: Any, request: Request, last: Reply, now_s: float) -> None:
        self.key = key
        self.who = who
        self.carrier = carrier
        self.request = request
        self.last = last
        self.alive_s = now_s
        self.pause_s = PAUSE_S
        self.waiting: Waiting | None = None
        self.timer: Timer | None = None
        self.ended = False


class Observers:
    """post(request, then): post a status and call then(reply or waiting), now or later.
    notify(observation, reply, then): send a notification, and call then(arrived); an error code is the last one.
    ended(observation): called once for each, whatever ended it."""

    def __init__(
        self,
        timers: Timers,
        now: Callable[[], float],
        post: Callable[[Request, Callable[[Reply | Waiting], None]], None],
        notify: Callable[[Observation, Reply, Callable[[bool], None]], None],
        ended: Callable[[Observation], None],
        *,
        check_s: float,
        wait_s: float,
    ) -> None:
        self._timers, self._now, self._post, self._notify, self._ended = timers, now, post, notify, ended
        self._check_s, self._wait_s = check_s, wait_s
        self._all: dict[Hashable, Observation] = {}
        self._of: dict[Hashable, set[Observation]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def observes(self, who: Hashable) -> bool:
        return who in self._of

    def register(self, key: Hashable, who: Hashable, carrier: Any, request: Request, last: Reply) -> Observation:
        """Begin, or begin anew: `last` is what the device has just been told."""
        self.end(key)
        observation = Observation(
            key, who, carrier, msgspec.structs.replace(request, timeout_s=self._wait_s), last, self._now()
        )
        self._all[key] = observation
        self._of.setdefault(who, set()).add(observation)
        self._watch(observation)
        return observation

    def end(self, key: Hashable) -> None:
        observation = self._all.pop(key, None)
        if observation is None:
            return
        observation.ended = True
        group = self._of[observation.who]
        group.discard(observation)
        if not group:
            del self._of[observation.who]
        if observation.timer is not None:
            observation.timer.cancel()
        if observation.waiting is not None:
            observation.waiting.cancel()
        self._ended(observation)

    def end_all(self) -> None:
        for key in tuple(self._all):
            self.end(key)

    def posted(self, who: Hashable, request: Request) -> None:
        """The peer has posted a status itself: what was registered for the same device is out of date."""
        for o in tuple(self._of.get(who, ())):
            if o.request.credentials == request.credentials and o.request.as_device == request.as_device:
                self.end(o.key)

    def fetched(self, who: Hashable, credentials: Credentials) -> None:
        """The peer fetches chunks: its status is out of date until it says more."""
        for o in tuple(self._of.get(who, ())):
            if o.request.credentials == credentials:
                o.alive_s = self._now()
                o.pause_s = self._check_s
                self._stop_waiting(o)
                self._pause(o)

    def peer_gone(self, who: Hashable) -> None:
        for o in tuple(self._of.get(who, ())):
            self.end(o.key)

    # The life of one

    def _watch(self, o: Observation) -> None:
        self._post(o.request, lambda found: self._found(o, found))

    @contextmanager
    def _surviving(self, o: Observation) -> Iterator[None]:
        """Whatever is raised within costs a look: the device is waiting to be told."""
        with contained("coap.observation", peer=o.request.peer) as guard:
            yield
        if guard.error is not None and not o.ended:
            self._stop_waiting(o)
            self._pause(o)

    def _found(self, o: Observation, found: Reply | Waiting) -> None:
        if not isinstance(found, Waiting):
            self._told(o, found)
        elif o.ended or o.waiting is not None:
            found.cancel()
        else:
            self._stop_timer(o)
            o.waiting = found
            o.timer = self._timers.at(self._now() + found.timeout_s, lambda now_s: self._expired(o))
            found.listen(lambda reply: self._woken(o, found, reply))

    def _woken(self, o: Observation, waiting: Waiting, reply: Reply) -> None:
        if o.waiting is waiting:
            o.waiting = None
            with self._surviving(o):
                self._told(o, reply)

    def _expired(self, o: Observation) -> None:
        waiting, o.waiting, o.timer = o.waiting, None, None
        with self._surviving(o):
            reply = waiting.expire() if waiting is not None else None
            if reply is not None and reply.code is not Code.ACCEPTED:
                self._told(o, reply)
            else:
                self._again(o)

    def _told(self, o: Observation, reply: Reply) -> None:
        if o.ended:
            return
        if reply.code is Code.COMMAND:
            # `told` differs when the same was decided once more: cancelled and wished again, say, while nobody looked.
            if (reply.command, reply.body, reply.told) != (o.last.command, o.last.body, o.last.told):
                o.pause_s = PAUSE_S
                self._notify(o, reply, lambda arrived: self._arrived(o, arrived))
                o.last = reply  # what could not be sent has yet to be told
        elif reply.code in (Code.AWAY, Code.FAILED, Code.TOO_MANY):
            o.pause_s = max(AWAY_S, reply.retry_after_s)
        elif reply.code is not Code.ACCEPTED:
            self._notify(o, reply, lambda arrived: None)
            self.end(o.key)
        if not o.ended:
            self._pause(o)

    def _pause(self, o: Observation) -> None:
        self._stop_timer(o)
        o.timer = self._timers.at(self._now() + min(o.pause_s, self._check_s), lambda now_s: self._later(o))
        o.pause_s = min(o.pause_s * 2, self._check_s)

    def _later(self, o: Observation) -> None:
        with self._surviving(o):
            self._again(o)

    def _again(self, o: Observation) -> None:
        o.timer = None
        if self._now() - o.alive_s < self._check_s:
            self._watch(o)
            return
        self._notify(o, o.last, lambda arrived: self._checked(o, arrived))

    def _checked(self, o: Observation, arrived: bool) -> None:
        self._arrived(o, arrived)
        if not o.ended and o.waiting is None and o.timer is None:
            self._watch(o)

    def _arrived(self, o: Observation, arrived: bool) -> None:
        if arrived:
            o.alive_s = self._now()
        elif not o.ended:
            self.end(o.key)

    def _stop_waiting(self, o: Observation) -> None:
        waiting, o.waiting = o.waiting, None
        if waiting is not None:
            waiting.cancel()

    def _stop_timer(self, o: Observation) -> None:
        if o.timer is not None:
            o.timer.cancel()
            o.timer = None
