"""One device going from one version to another: the state table.

`advance()` is the only way from one state to the next. The table's owner is dfud.controller; a test walks
states x events.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from dfud.errors import BugError
from dfud.model.kinds import SYSTEM, Kind
from dfud.model.quickest import Choice, Measured


class State(StrEnum):
    PENDING = "pending"  # decided, the device has not been told
    NOTIFIED = "notified"  # the device has been sent the command
    FETCHING = "fetching"  # it has asked for a chunk
    WRITTEN = "written"  # it has written and verified the image
    TRIAL = "trial"  # it runs the image, unconfirmed
    DONE = "done"
    ROLLED_BACK = "rolled-back"  # it ran the image and left it
    FAILED = "failed"  # it never ran the image, and dfud has given up
    CANCELLED = "cancelled"  # the target changed, or a user cancelled


FINAL = frozenset({State.DONE, State.ROLLED_BACK, State.FAILED, State.CANCELLED})


class Event(StrEnum):
    SENT = "sent"  # an update command went out
    CHUNK = "chunk"  # a chunk of its package was asked for, or a status says that it fetches
    WRITTEN = "written"  # a status says: written and verified
    BOOTED = "booted"  # a status says: runs the target, unconfirmed
    CONFIRMED = "confirmed"  # a status says: runs the target, confirmed
    LEFT = "left"  # a result, or what runs now, says: was booted and left
    ATTEMPT_FAILED = "attempt-failed"  # a result says: never booted; another attempt is allowed
    GIVEN_UP = "given-up"  # a result says: never booted; no attempt is left, or none makes sense
    STARTED_OVER = "started-over"  # a status without progress from a device that had got further since the last time
    CANCEL = "cancel"


_RUNNING = (State.PENDING, State.NOTIFIED, State.FETCHING, State.WRITTEN, State.TRIAL)

TABLE: dict[tuple[State, Event], State] = {
    (State.PENDING, Event.SENT): State.NOTIFIED,
    (State.NOTIFIED, Event.SENT): State.NOTIFIED,
    (State.FETCHING, Event.SENT): State.FETCHING,
    (State.WRITTEN, Event.SENT): State.NOTIFIED,
    **{(s, Event.CHUNK): State.FETCHING for s in (State.PENDING, State.NOTIFIED, State.FETCHING)},
    # A device that says "written" and then fetches again has lost what it wrote.
    (State.WRITTEN, Event.CHUNK): State.FETCHING,
    **{(s, Event.WRITTEN): State.WRITTEN for s in (State.PENDING, State.NOTIFIED, State.FETCHING, State.WRITTEN)},
    **{(s, Event.BOOTED): State.TRIAL for s in _RUNNING},
    **{(s, Event.CONFIRMED): State.DONE for s in _RUNNING},
    # Also when it is over: an image that was confirmed may crash later, and the reason may come after the verdict.
    **{(s, Event.LEFT): State.ROLLED_BACK for s in State},
    # What runs is what counts: the verdict was wrong, or somebody brought the image there by other ways.
    **{(s, Event.CONFIRMED): State.DONE for s in (State.ROLLED_BACK, State.FAILED)},
    **{(s, Event.ATTEMPT_FAILED): State.PENDING for s in _RUNNING},
    **{(s, Event.GIVEN_UP): State.FAILED for s in _RUNNING},
    **{(s, Event.STARTED_OVER): State.PENDING for s in _RUNNING},
    **{(s, Event.CANCEL): State.CANCELLED for s in _RUNNING},
}


def advance(state: State, event: Event) -> State | None:
    """Return the state after `event`, or None where the table has no such step (the event says nothing new there)."""
    return TABLE.get((state, event))


class Cause(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """What a verdict about an image on a device rests on: what the device said of itself, and the firmware's envelope (SHA-256,
    hexadecimal)."""

    hardware: str
    capacity_bytes: int
    sequence: int = 0
    manifest: str = ""


class Route(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where a deployment stands on the way to another version. toward: that version; step: from 1, of steps; began: what ran before
    the first step."""

    toward: str
    step: int
    steps: int
    began: str = ""


class Deployment(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Identity: id. Times are seconds since the epoch (UTC). package is hexadecimal, empty before one was chosen.

    number counts the deployments of one device from 1: the newest is the one with the highest, whatever the clock said when
    it was made (0: made before they were counted).

    attempts counts transfers that came to nothing; not_before_s holds the next one back. A final deployment changes only by what
    TABLE has for its state, and by `blocks`: while it is set, this image is not sent to this device again. A user's retry
    clears it, and so does the end of its `cause`. pardoned: a user said retry before the verdict came, so it will not block.

    judged: which result was judged last, so that a repeated one counts once; repeats: commands sent since then without a sign
    that one arrived. furthest: the most chunks that were there when the device started over; stalls: how often in a row it then
    had got no further. served: chunks that it asked for in this attempt. problem: why its package cannot be sent, or "".

    renews: 0, or the sequence number of the manifest under which a device gets an image that it runs already.

    mark: the furthest that it has come, and moved_s when (0: it has not moved since it was made): going back is no movement.

    rollout: uid of the rollout that asked for it, "" if none did, and wave its wave (dfud.model.counts); back: it takes back
    what that rollout brought; retry: how often the rollout's failures had been forgiven when it was made. download_only: it was made
    to be written, and switched to later. route: it is one of several steps, None if it goes to its version directly.

    kind: which kind of firmware it brings. other: the newest one of the other kind, so that the newest of a device knows both
    (of()). then: the version of the other kind that its rollout brings the device to after this one, "" if none. counted: the
    rollout counts the device under this field whatever becomes of this deployment: it takes back what came with a failure.

    choice: why its package was chosen among those that would do, None: it has none, or was the only one that was known.
    """

    id: str
    app: str
    device: str
    version: str
    sha256: str
    state: State
    created_s: float
    updated_s: float
    from_version: str = ""
    from_sha256: str = ""
    package: str = ""
    chunks_done: int = 0
    chunks_total: int = 0
    bytes_total: int = 0
    attempts: int = 0
    not_before_s: float = 0.0
    code: int = 0
    text: str = ""
    crashes: int = 0
    reset_reason: int = 0
    record: bytes = b""
    blocks: bool = False
    number: int = 0
    cause: Cause | None = None
    pardoned: bool = False
    judged: str = ""
    repeats: int = 0
    furthest: int = 0
    stalls: int = 0
    served: int = 0
    problem: str = ""
    manifest: str = ""
    rollout: str = ""
    wave: int = 0
    back: bool = False
    renews: int = 0
    mark: int = 0
    moved_s: float = 0.0
    retry: int = 0
    download_only: bool = False
    route: Route | None = None
    kind: Kind = SYSTEM
    other: Deployment | None = None
    then: str = ""
    counted: str = ""
    choice: Choice | None = None

    def of(self, kind: Kind) -> Deployment | None:
        """Return the device's newest deployment of a kind; this one is its newest."""
        return self if self.kind == kind else self.other

    def in_rollout(self, uid: str) -> Deployment | None:
        """Return the newest deployment of both kinds that a rollout has asked for; this one is the device's newest."""
        if self.rollout == uid:
            return self
        return self.other if self.other is not None and self.other.rollout == uid else None

    @property
    def both(self) -> tuple[Deployment, ...]:
        """This one and the newest of the other kind."""
        return (self,) if self.other is None else (self, self.other)

    @property
    def alone(self) -> Deployment:
        return msgspec.structs.replace(self, other=None) if self.other is not None else self

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def is_between(self) -> bool:
        """Whether it is done and was a step: the device is on its way to the version that the route leads to, or to the
        other kind's."""
        if self.state is not State.DONE:
            return False
        return bool(self.then) or (self.route is not None and self.route.toward != self.version)

    def step(self, event: Event, now_s: float, **changes: object) -> Deployment:
        """Return this deployment after `event` with `changes` applied; raise BugError where the table has no step."""
        state = advance(self.state, event)
        if state is None:
            raise BugError(f"deployment {self.id}: no step from {self.state} on {event}")
        return msgspec.structs.replace(self, state=state, updated_s=now_s, **changes).marked(now_s)

    def marked(self, now_s: float) -> Deployment:
        """Return this deployment with a note of its being further than ever before, if it is."""
        mark = _MARKS[self.state] + (self.chunks_done if self.state is State.FETCHING else 0)
        return msgspec.structs.replace(self, mark=mark, moved_s=now_s) if mark > self.mark else self


# FETCHING is followed by its chunks, of which there are fewer than between it and WRITTEN.
_MARKS = {State.PENDING: 0, State.NOTIFIED: 1, State.FETCHING: 2, State.WRITTEN: 1 << 40, State.TRIAL: 2 << 40}
_MARKS |= dict.fromkeys(FINAL, 3 << 40)


class HistoryEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """One change of a deployment's state, kept for users. Appended, never changed.

    number: its place in the device's history, given by the store, from 1 on: it rises with every entry, whatever the clock says,
    and is never given twice (0: from before they were counted).
    """

    deployment: str
    app: str
    device: str
    at_s: float
    state: State
    version: str
    event: str = ""
    code: int = 0
    text: str = ""
    number: int = 0


class Health(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Starts and crashes as the device counts them (Status.starts), and what they were when the running image was first seen.

    text: what the last crash said; crashed_s: when dfud heard of it.
    """

    starts: int
    crashes: int
    starts_before: int = 0
    crashes_before: int = 0
    reset_reason: int = 0
    text: str = ""
    crashed_s: float = 0.0


TWINS_AFTER = 2  # contradictions that make a duplicate identity; one may be somebody with a cable
TWINS_S = 86400.0  # after the last contradiction it is taken for one board again


class Twins(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Signs that two boards use one identity. before: the digest that ran before the current one, hexadecimal.

    high: the count of starts from which it last fell. contradictions: how often a status said what one board cannot have come
    to, the last time at at_s.
    """

    before: str = ""
    high: int = 0
    contradictions: int = 0
    at_s: float = 0.0


class Program(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """The app firmware of a device that has banks for one. version, sha256 "": none runs. The rest as in Actual."""

    version: str
    sha256: str
    capacity_bytes: int
    trial: bool = False
    sequence: int = 0
    manifest: int | None = None


class Actual(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """What a device last said of itself; only ever that. sha256 is hexadecimal. program: None, it has no banks for app firmware.

    manifest: the sequence number in the manifest of what runs; None: it has none, or does not say.
    tally: the counters of its app's fleet that it is counted in (dfud.model.tally); dfud's own, stored with what it counts.
    boot: what is weaker than with dfud's bootloader (dfud.wire.messages.Boot).
    measured: what its transfers have shown of its link and its decoder.
    """

    app: str
    device: str
    version: str
    sha256: str
    hardware: str
    trial: bool = False
    sequence: int = 0
    kinds: int = 0
    payload_bytes: int = 0
    capacity_bytes: int = 0
    attributes: dict[str, str] = {}
    defer_reason: str = ""
    defer_until_s: float = 0.0
    defer_own: bool = False
    seen_s: float = 0.0
    transport: str = ""
    dialect: str = "dfu/1"
    health: Health | None = None
    twins: Twins | None = None
    manifest: int | None = None
    tally: tuple[str, ...] = ()
    program: Program | None = None
    boot: int = 0
    measured: Measured | None = None

    def of(self, kind: Kind) -> Actual | None:
        """Return the same with the numbers of a kind in place of the system's, or None: it has no banks for app firmware."""
        if kind == SYSTEM:
            return self
        p = self.program
        if p is None:
            return None
        return msgspec.structs.replace(
            self,
            version=p.version,
            sha256=p.sha256,
            capacity_bytes=p.capacity_bytes,
            trial=p.trial,
            sequence=p.sequence,
            manifest=p.manifest,
        )

    def runs(self, kind: Kind) -> str:
        """Return the version that runs of a kind, "" if none does."""
        return self.version if kind == SYSTEM else self.program.version if self.program is not None else ""

    @property
    def on_trial(self) -> bool:
        """Whether what runs of either kind is not confirmed."""
        return self.trial or (self.program is not None and self.program.trial)
