"""Which firmware a device is sent next, of which kind, and why it is not: its wishes held against what is published and what runs.

Reads firmware through the memory that owns this; changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import msgspec

from dfud.api import Actual, App, Deployment, Desired, Firmware
from dfud.model.kinds import APP, SYSTEM, Leg, apart, breaks, first_of, other_of, outside
from dfud.model.steps import Ladder, image_for, no_way, started_from, way
from dfud.wire.manifest import beside_of, renewal_due
from dfud.wire.trust import trust_problem

Aimed = tuple[Desired, Firmware | None]


class Library(Protocol):
    """What is published, as the memory has it."""

    def firmware(self, app: str, version: str) -> Awaitable[Firmware | None]: ...

    def image(self, app: str, sha256: str) -> Awaitable[Firmware | None]: ...

    def ladder(self, app: str) -> Awaitable[Ladder]: ...


class _Kind(msgspec.Struct):
    """One kind of a device. final: the version that is desired in the end; target: what would be sent now."""

    desired: Desired
    final: Firmware | None
    target: Firmware | None
    actual: Actual | None

    @property
    def in_sync(self) -> bool:
        """Whether what is desired in the end runs, and not under a manifest that is to be replaced."""
        final, actual = self.final, self.actual
        if final is None or actual is None or actual.sha256 != final.sha256:
            return False
        return bool(self.desired.problem) or not renewal_due(final.manifest, final.sequence, actual.manifest)

    @property
    def never_fits(self) -> bool:
        target, actual = self.target, self.actual
        if target is None or actual is None or target.more:
            return target is not None and target.more != ()
        return not target.first_fits(actual.hardware, actual.attributes) or target.size_bytes > actual.capacity_bytes


async def aim(
    library: Library, app: App, desired: Desired, actual: Actual | None, deployment: Deployment | None = None
) -> Aimed:
    """Return what is sent to a device of which this is desired, and why not to send that (`problem`). Where both kinds are desired,
    the one that goes first, with the other one behind it. deployment: its newest one.
    """
    if not desired.version:
        return desired, None
    mine = await _one(library, app, desired, actual)
    if desired.other is None:
        if mine.final is None or actual is None or mine.in_sync or mine.desired.problem:
            return mine.desired, mine.target
        return await _beside_what_runs(library, app, mine, actual)
    kinds = {mine.desired.kind: mine}
    other = await _one(library, app, desired.other, actual)
    kinds[other.desired.kind] = other
    return await _both(library, app, kinds[SYSTEM], kinds[APP], actual, deployment)


async def _one(library: Library, app: App, desired: Desired, actual: Actual | None) -> _Kind:
    """Judge one kind by itself: published, of that kind, for the board, not recalled, reachable, trusted."""
    kind, seen = desired.kind, actual.of(desired.kind) if actual is not None else None
    desired = desired.alone
    record = await library.firmware(app.name, desired.version)
    if record is None:
        problem = f"firmware {desired.version} is not published"
        return _Kind(msgspec.structs.replace(desired, problem=problem), None, None, seen)
    if record.of_kind != kind:
        field = {SYSTEM: "spec.firmware.version", APP: "spec.firmware.app"}
        problem = f"{desired.version} is {record.of_kind} firmware, so it stands in {field[record.of_kind]}, not in {field[kind]}"
        return _Kind(msgspec.structs.replace(desired, problem=problem), None, None, seen)
    target = image_for(record, seen or actual)
    found = _Kind(desired, target, target, seen)
    if target.recalled is not None:
        text = f"{target.version} is recalled: {target.recalled.reason}"
        found.desired = msgspec.structs.replace(desired, problem=text, code="recalled")
    elif seen is not None and seen.sha256 != target.sha256:
        await _next(library, app.name, found, seen)
    assert found.target is not None
    found.desired = barred(found.desired, app.spec, found.target)
    return found


async def _next(library: Library, app: str, found: _Kind, seen: Actual) -> None:
    """Aim at the next version on the way to the final one, or say what keeps that from being sent."""
    desired, target = found.desired, found.final
    assert target is not None
    ladder = await library.ladder(app)
    if ladder.free or desired.back or target.more:
        return
    start = started_from(await library.image(app, seen.sha256), seen)
    others = [f for f in ladder.of(seen.hardware, seen.attributes) if f.of_kind == desired.kind]
    steps = way(start, target, others)
    if steps is None:
        found.desired = msgspec.structs.replace(desired, problem=no_way(start, target, others), code="no-path")
        return
    found.desired = msgspec.structs.replace(desired, steps=len(steps))
    found.target = steps[0]


async def _beside_what_runs(library: Library, app: App, mine: _Kind, actual: Actual, *, stays: bool = True) -> Aimed:
    """Hold one kind that changes now against the other. stays: that one does not change after it."""
    kind, target = mine.desired.kind, mine.target
    seen = actual.of(other_of(kind))
    assert target is not None
    if seen is None:
        return mine.desired, target  # without banks there is no other kind
    leg = _leg(target, mine.actual, None)
    other = _leg(None, seen, await _running(library, app.name, seen))
    problem = outside(leg, other, kind) or (breaks(leg, other, kind) if target is mine.final and stays else "")
    if problem:
        return msgspec.structs.replace(mine.desired, problem=problem, code="range"), target
    return mine.desired, target


async def _both(
    library: Library, app: App, system: _Kind, program: _Kind, actual: Actual | None, deployment: Deployment | None
) -> Aimed:
    """Choose between two kinds that are desired. One that runs, is blocked or has a problem lets the other one go first."""
    kinds = (system, program)
    pair = bool(system.desired.rollout) and system.desired.rollout == program.desired.rollout
    if pair and system.desired.back == program.desired.back:
        for mine, other in ((system, program), (program, system)):
            if not other.in_sync:
                mine.desired = msgspec.structs.replace(mine.desired, then=other.desired.version)
    if actual is None or actual.program is None:
        # Nothing is known, or it can take no app. A rollout that brings both does not begin there.
        together = actual is not None and bool(system.desired.then) and not system.in_sync
        chosen = program if together or (system.in_sync and actual is not None) else system
        return _with(chosen, system if chosen is program else program)
    under_way = deployment if deployment is not None and not deployment.final else None
    ready = [k for k in kinds if not k.in_sync and not k.desired.problem and not _is_blocked(k, deployment)]
    if not ready:
        waiting = [k for k in kinds if not k.in_sync] or list(kinds)
        return _with(waiting[0], program if waiting[0] is system else system)
    for k in ready:
        begun = under_way is not None and k.target is not None and under_way.sha256 == k.target.sha256
        # What has begun goes on. Of two that belong together, none begins where the other one can never be, or was left before.
        other = program if k is system else system
        if k.desired.then and (k.never_fits or (_is_blocked(other, deployment) and not begun)):
            return _with(k if k.never_fits else other, other if k.never_fits else k)
        if begun:
            desired, target = await _beside_what_runs(library, app, k, actual, stays=other not in ready)
            return _with(_Kind(desired, k.final, target, k.actual), other)
    free = [k for k in ready if k.desired.held is None and not k.desired.hold]
    if len(ready) == 1 or len(free) == 1:
        mine = (free or ready)[0]
        other = program if mine is system else system
        desired, target = await _beside_what_runs(library, app, mine, actual)
        return _with(_Kind(desired, mine.final, target, mine.actual), other)
    assert system.target is not None and program.target is not None and program.actual is not None
    legs = [
        _leg(k.target, k.actual, await _running(library, app.name, k.actual) if k.actual is not None else None)
        for k in kinds
    ]
    problem, first = apart(_leg(system.final, None, None), _leg(program.final, None, None)), None
    if not problem:
        first, problem = first_of(legs[0], legs[1])
    if problem:
        system.desired = msgspec.structs.replace(system.desired, problem=problem, code="range")
    return _with(program, system) if first == APP else _with(system, program)


def _with(mine: _Kind, other: _Kind) -> Aimed:
    return mine.desired.beside(other.desired), mine.target


def _is_blocked(k: _Kind, deployment: Deployment | None) -> bool:
    """Say whether the device left the target, or was stopped on the way to it, and is not sent it again."""
    last = deployment.of(k.desired.kind) if deployment is not None else None
    if last is None or not last.blocks or not last.final or k.target is None or last.sha256 != k.target.sha256:
        return False
    return last.rollout != k.desired.rollout or k.desired.retries <= last.retry


def _leg(target: Firmware | None, runs: Actual | None, published: Firmware | None) -> Leg:
    return Leg(
        version=target.version if target is not None else "",
        next_sequence=target.sequence if target is not None else 0,
        next_beside=beside_of(target.manifest) if target is not None else None,
        running_version=runs.version if runs is not None else "",
        running_sequence=(runs.manifest or 0) if runs is not None else 0,
        running_beside=beside_of(published.manifest) if published is not None else None,
    )


async def _running(library: Library, app: str, seen: Actual) -> Firmware | None:
    return await library.image(app, seen.sha256) if seen.sha256 else None


def barred(desired: Desired, spec: Mapping[str, Any], target: Firmware) -> Desired:
    """Return `desired` with the problem that keeps its target from being sent, if there is one."""
    if desired.problem:
        return desired
    return msgspec.structs.replace(desired, problem=trust_problem(spec, target.version, target.manifest))
