"""What has happened, on its way to those who want to hear of it: a document for each of them in the commit of the change itself.

So nothing that is stored goes untold, whatever ends in between, and nothing is told that was not stored. Their keys grow with
time, so the events of one device are in the order of its commits. dfud.controller.delivery takes them from here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec

from dfud.api import Change, ChangeEvent, Deployment, HistoryEntry, PutDocument, Rollout, Section, Store
from dfud.model.kinds import APP
from dfud.model.rollout_step import Step
from dfud.wire.messages import code_name

Meta = msgspec.Meta
S = {"unit": "s"}
PAGE = 1000
TEXT_MAX = 1024
OVERFLOW = 2  # times waiting_max: from then on nothing more is kept for a sink


class OutboxConfig(msgspec.Struct, frozen=True):
    waiting_max: Annotated[
        int,
        Meta(
            description="changes that wait for one receiver; from then on the oldest become dead letters",
            ge=10,
            le=10_000_000,
        ),
    ] = 100_000
    keep_s: Annotated[
        float,
        Meta(
            description="how long a receiver may be away before a change becomes a dead letter",
            ge=1,
            le=31536000,
            extra=S,
        ),
    ] = 259200.0
    attempts: Annotated[
        int, Meta(description="how often a receiver may refuse a change before it becomes a dead letter", ge=1, le=100)
    ] = 5
    retry_s: Annotated[
        float, Meta(description="pause before the second attempt, doubled each time", ge=0.01, le=3600, extra=S)
    ] = 1.0
    retry_max_s: Annotated[float, Meta(description="longest pause between attempts", ge=0.01, le=86400, extra=S)] = (
        300.0
    )
    timeout_s: Annotated[float, Meta(description="time for one attempt", ge=0.1, le=600, extra=S)] = 15.0
    concurrent: Annotated[int, Meta(description="changes on their way to one receiver at a time", ge=1, le=1000)] = 8
    dead_max: Annotated[
        int, Meta(description="dead letters that are kept for one receiver; the oldest go first", ge=0, le=1_000_000)
    ] = 1000


SECTION = Section("outbox", OutboxConfig, "Changes of deployments and rollouts on their way to event sinks.")


def waiting(sink: str) -> str:
    """Return the collection of what waits for a sink."""
    return f"outbox.{sink}"


def dead(sink: str) -> str:
    return f"outbox.dead.{sink}"


def time_of_key(key: str) -> int:
    """Return the nanoseconds that a key begins with; 0 for one that is no key."""
    digits = key[:20]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


class Outbox:
    """sinks: names of those who want to hear. `numbers`: how many wait for each; exact enough to bound them."""

    def __init__(
        self,
        store: Store,
        sinks: Sequence[str] = (),
        config: OutboxConfig | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self.sinks = tuple(sinks)
        self.config = config or OutboxConfig()
        self._clock_ns = clock_ns
        self._last = 0
        # Keys of two processes that share a store never meet.
        self._mark = secrets.token_hex(3)
        self.numbers = dict.fromkeys(self.sinks, 0)
        self.lost = dict.fromkeys(self.sinks, 0)

    async def load(self) -> None:
        """Count what waits, and go on behind it, whatever the clock says. Raises StoreError."""
        for sink in self.sinks:
            await self.count(sink)

    async def count(self, sink: str) -> None:
        """Count what waits for a sink. Raises StoreError."""
        number, after = 0, ""
        while page := await self._store.documents(waiting(sink), after=after, limit=PAGE):
            number, after = number + len(page), page[-1][0]
        self.numbers[sink] = number
        self._last = max(self._last, time_of_key(after))

    def key(self) -> str:
        return self._key_of(self._numbered(1))

    def _numbered(self, number: int) -> int:
        """Return the first of so many numbers for keys, one behind the other."""
        first = max(self._last + 1, self._clock_ns())
        self._last = first + number - 1
        return first

    def _key_of(self, number: int) -> str:
        return f"{number:020d}-{self._mark}"

    def put(self, events: Iterable[ChangeEvent]) -> list[Change]:
        """Return what has to be committed for events to be told to the sinks."""
        changes: list[Change] = []
        for event in events if self.sinks else ():
            body = msgspec.json.encode(event)
            for sink in self.sinks:
                if self.numbers[sink] >= OVERFLOW * self.config.waiting_max:
                    self.lost[sink] += 1
                    continue
                self.numbers[sink] += 1
                changes.append(PutDocument(waiting(sink), event.id, body))
        return changes

    def put_again(self, sink: str, event: ChangeEvent) -> list[Change]:
        """Return what tells one sink of an event once more. Its id stays, so that who has it already knows it."""
        self.numbers[sink] += 1
        return [PutDocument(waiting(sink), self.key(), msgspec.json.encode(event))]

    def put_steps(
        self, steps: Sequence[tuple[Deployment, HistoryEntry]]
    ) -> tuple[Sequence[Callable[[], ChangeEvent]], list[Change]]:
        """Return for the steps of a device what makes their events, with ids in their order, and what is to be committed to tell
        them. Where nobody wants to hear of them, none is made.
        """
        first = self._numbered(len(steps))
        tells = [partial(self._event, d, entry, first + place) for place, (d, entry) in enumerate(steps)]
        return tells, self.put(tell() for tell in tells) if self.sinks else []

    def _event(self, deployment: Deployment, entry: HistoryEntry, number: int) -> ChangeEvent:
        return deployment_event(deployment, entry, self._key_of(number))

    def of_rollout(self, rollout: Rollout, steps: Iterable[Step], now_s: float) -> list[ChangeEvent]:
        """Return an event for each step of a rollout, with ids in their order."""
        return [
            rollout_event(rollout, str(s.event), now_s, self.key(), state=str(s.after), code=s.code, reason=s.reason)
            for s in steps
        ]

    def of_record(self, rollout: Rollout, event: str, now_s: float) -> list[ChangeEvent]:
        """Return the event of a rollout's being "created" or "deleted"."""
        return [rollout_event(rollout, event, now_s, self.key())]


def deployment_event(d: Deployment, entry: HistoryEntry, key: str) -> ChangeEvent:
    data: dict[str, Any] = {
        "deployment": d.id,
        "number": d.number,
        "from": d.from_version,
        "version": d.version,
        "state": str(entry.state),
        "event": entry.event,
        "attempts": d.attempts,
    }
    if entry.code or entry.text:
        data |= {"code": code_name(entry.code, entry.state), "text": entry.text[:TEXT_MAX]}
    if d.kind == APP:
        data["kind"] = d.kind
    if d.rollout:
        data |= {"rollout": d.rollout, "wave": d.wave + 1, "back": d.back}
    return ChangeEvent("deployment", d.app, d.device, entry.at_s, data, key)


def rollout_event(
    rollout: Rollout, event: str, now_s: float, key: str, *, state: str = "", code: str = "", reason: str = ""
) -> ChangeEvent:
    status = rollout.status
    data: dict[str, Any] = {
        "rollout": rollout.metadata.uid,
        "firmware": rollout.spec.get("firmware"),
        **({"app": rollout.spec["app"]} if "app" in rollout.spec else {}),
        "event": event,
        "state": state or str(status.state),
        "wave": status.wave + 1,
    }
    more = {"code": code, "reason": reason, "by": status.by}
    return ChangeEvent("rollout", rollout.app, rollout.name, now_s, data | {k: v for k, v in more.items() if v}, key)
