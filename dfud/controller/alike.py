"""Devices that come together in the same situation: what one of them is told is worked out once and given to the others.

What is decided depends on a status, on what is wanted and on the newest deployment; between two devices that are the same in
these, only names and numbers differ. An Alike lives for one batch and holds one moment. What changes meanwhile changes the
app's epoch, which is part of what is compared. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from dfud.api import Actual, Change, Deployment, Desired, Firmware
from dfud.controller.decide import Verdict
from dfud.controller.keeping import Look, Step, has_place
from dfud.controller.memory import Hold
from dfud.controller.observe import actual_of
from dfud.controller.sending import Order
from dfud.model.ids import ids_of, ordered_id
from dfud.package.file import PackageFile
from dfud.wire.messages import Command, Status

Key = tuple[object, ...]


class Said(msgspec.Struct, frozen=True):
    """One status as it is taken: what it says of a device, of whichever name. part: all of it that decides, the same object for all
    statuses that are the same in that.
    """

    status: Status
    actual: Actual
    part: Key


class Situation(msgspec.Struct, frozen=True, gc=False):
    """All that an outcome depends on, but for names, numbers and health. desired, said: what the key names by identity."""

    key: Key
    desired: Desired
    said: Said


class Model(msgspec.Struct, frozen=True):
    """What the first device of a situation came to. steps: of a deployment that began with the first of them; none: nothing of its
    deployment changed. tally, counts: what it is counted in now, and what changed that; None: it was not stored, so nobody knows.
    """

    situation: Situation
    steps: Sequence[Step]
    tally: tuple[str, ...] | None
    counts: Sequence[Change]
    look: Look

    def steps_of(self, name: str, device: str, number: int) -> list[Step]:
        return [
            (replace(after, id=name, device=device, number=number), replace(entry, deployment=name, device=device))
            for after, entry in self.steps
        ]


class Outcome(msgspec.Struct, frozen=True):
    """What one device of a situation was told: (verdict, desired, order, package, command), as Controller works them out.

    began: all its steps are those of a deployment that began with it; else nothing of its deployment changed. place: uid of the
    rollout in which whoever is told this has to take a place, "" if none.
    """

    verdict: Verdict
    began: bool
    place: str
    desired: Desired
    target: Firmware | None
    order: Order | None
    package: PackageFile | None
    command: Command

    def of(self, hold: Hold, now_s: float) -> Verdict:
        """Return the verdict with the names and numbers of another device."""
        before, verdict = hold.known.deployment, self.verdict
        if not self.began:
            return Verdict(verdict.action, before, [], verdict.poll_s, verdict.reason, verdict.why)
        device, name = hold.key[1], ordered_id(now_s)
        number = before.number + 1 if before is not None else 1
        last, steps = verdict.deployment, []
        stamped = None
        for step, entry in verdict.steps:
            deployment = replace(step, id=name, device=device, number=number)
            steps.append((deployment, replace(entry, deployment=name, device=device)))
            if step is last:
                stamped = deployment
        if stamped is None and last is not None:
            stamped = replace(last, id=name, device=device, number=number)
        return Verdict(verdict.action, stamped, steps, verdict.poll_s, verdict.reason, verdict.why)


class Alike:
    """now_s: since the epoch; now: on trio's clock. Both are those of all that is worked out with this."""

    def __init__(self, now_s: float, now: float) -> None:
        self.now_s = now_s
        self.now = now
        self._outcomes: dict[Key, Outcome] = {}
        self.new_id = ids_of(now_s)
        self.models: dict[Key, Model] = {}
        self._said: dict[tuple[int, str, str], Said] = {}
        self._parts: dict[Key, Key] = {}

    def said(self, app: str, device: str, status: Status, transport: str) -> Said:
        """Return actual_of(), of one device or another: the bodies of a fleet are read once, so its statuses are the same objects."""
        key = (id(status), app, transport)
        found = self._said.get(key)
        if found is None:
            part = (*_deciding(status), tuple(sorted(status.attributes.items())), transport)
            part = self._parts.setdefault(part, part)
            # With the status: else another one could get its identity.
            found = self._said[key] = Said(status, actual_of(app, device, status, transport, self.now_s), part)
        return found

    def key(
        self, hold: Hold, status: Status, transport: str, desired: Desired, target: Firmware | None, twins: bool
    ) -> Key | None:
        """Return what the outcome depends on; None: it is looked at by itself. What is named by identity is kept with the outcome."""
        if status.result is not None or status.progress is not None:
            return None
        before = hold.known.deployment
        if before is not None and (not before.final or before.other is not None):
            return None
        if "link" in hold.known.device.spec:
            return None  # of which package it gets its own link decides
        asked: tuple[tuple[str, str], ...] = ()
        if target is not None and status.attributes and (target.more or target.attributes):
            asked = tuple(sorted(status.attributes.items()))
        return (
            hold.key[0],
            hold.epoch,
            _deciding(status),
            asked,
            id(desired),
            id(target),
            twins,
            # What is known of how it fetches and decodes, by which its package is chosen.
            transport,
            hold.known.actual.measured if hold.known.actual is not None else None,
            nameless(before) if before is not None else None,
        )

    def find(self, key: Key) -> Outcome | None:
        return self._outcomes.get(key)

    def keep(
        self,
        key: Key,
        hold: Hold,
        verdict: Verdict,
        command: Command,
        *,
        asked: tuple[Desired, Firmware | None],
        order: Order | None,
        package: PackageFile | None,
    ) -> None:
        """Keep what came out, if others can be given it. asked: what the key names by identity."""
        before, after = hold.known.deployment, verdict.deployment
        desired, target = asked
        began, place = False, ""
        if verdict.steps or after is not before:
            if after is None or (before is not None and after.id == before.id):
                return
            if after.other is not None or any(step.id != after.id for step, _ in verdict.steps):
                return
            began = True
            place = after.rollout if takes_place(before, after) else ""
        self._outcomes[key] = Outcome(
            verdict=verdict,
            began=began,
            place=place,
            desired=desired,
            target=target,
            order=order,
            package=package,
            command=command,
        )


def takes_place(known: Deployment | None, began: Deployment) -> bool:
    """Say whether a deployment begins only with a place in its rollout."""
    return bool(began.rollout) and not began.final and not began.back and not has_place(known, began)


def _deciding(status: Status) -> Key:
    """Return all of a status but for its attributes, and what nothing is decided by: how often it has started."""
    return (
        status.version,
        status.digest,
        status.hardware,
        status.kinds,
        status.payload,
        status.capacity,
        status.trial,
        status.defer,
        status.sequence,
        status.manifest,
        status.app,
    )


def nameless(deployment: Deployment) -> Deployment:
    """Return a deployment that is over without what nothing is decided by: two of the same kind are equal then."""
    return replace(deployment, id="", device="", number=0, created_s=0.0, updated_s=0.0, moved_s=0.0, choice=None)
