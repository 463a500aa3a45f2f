"""One decision under way: the deployment as it changes, and the steps that are to be stored. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from dfud.controller.config import ControllerConfig
from dfud.model.deployment import Cause, Deployment, Event, HistoryEntry, Route, State, advance
from dfud.model.desired import Desired
from dfud.model.firmware import Firmware
from dfud.model.ids import ordered_id
from dfud.model.kinds import APP, SYSTEM, Kind, other_of
from dfud.wire.manifest import renewal_due
from dfud.wire.messages import NO_DIGEST, Status


def entry_of(deployment: Deployment, event: str, text: str | None = None) -> HistoryEntry:
    d = deployment
    return HistoryEntry(
        deployment=d.id,
        app=d.app,
        device=d.device,
        at_s=d.updated_s,
        state=d.state,
        version=d.version,
        event=event,
        code=d.code,
        text=d.text if text is None else text,
    )


def cause_of(status: Status, target: Firmware | None) -> Cause:
    manifest = hashlib.sha256(target.manifest).hexdigest() if target is not None else ""
    return Cause(status.hardware, status.capacity, status.sequence, manifest)


def new_deployment(
    app: str, device: str, target: Firmware, before: Deployment | None, now_s: float, *, version: str, sha256: str
) -> Deployment:
    """Return a deployment that begins now, the newest of its device after `before`.

    version, sha256: of what runs ("" if nobody knows).
    """
    other = before.of(other_of(target.of_kind)) if before is not None else None
    return Deployment(
        id=ordered_id(now_s),
        app=app,
        device=device,
        version=target.version,
        sha256=target.sha256,
        state=State.PENDING,
        created_s=now_s,
        updated_s=now_s,
        from_version=version,
        from_sha256=sha256,
        number=before.number + 1 if before is not None else 1,
        judged=before.judged if before is not None else "",
        kind=target.of_kind,
        other=other.alone if other is not None else None,
    )


class Case:
    """What is asked, and what comes of it, seen from one kind of firmware at a time (turn()): status, digest, deployment and target
    are of that kind. newest: the device's newest deployment, which knows the other kind's as well. twins: two boards use this
    identity, so its statuses contradict each other.
    """

    def __init__(
        self,
        *,
        app: str,
        device: str,
        status: Status,
        deployment: Deployment | None,
        target: Firmware | None,
        policy: ControllerConfig,
        now_s: float,
        twins: bool,
    ) -> None:
        self.app = app
        self.device = device
        self.said = status
        self.newest = deployment
        self.wanted = target
        self.policy = policy
        self.now_s = now_s
        self.twins = twins
        self.steps: list[tuple[Deployment, HistoryEntry]] = []
        self.turn(target.of_kind if target is not None else deployment.kind if deployment is not None else SYSTEM)

    def turn(self, kind: Kind) -> None:
        """Look at one kind from here on."""
        self.kind = kind
        self.status = self.said.of_app if kind == APP else self.said
        self.digest = self.status.digest.hex() if self.status.digest != NO_DIGEST else ""
        self.target = self.wanted if self.wanted is not None and self.wanted.of_kind == kind else None

    @property
    def deployment(self) -> Deployment | None:
        """The newest of this kind."""
        return self.newest.of(self.kind) if self.newest is not None else None

    @deployment.setter
    def deployment(self, after: Deployment) -> None:
        if self.newest is None or self.newest.kind == self.kind:
            self.newest = after
        else:
            self.newest = msgspec.structs.replace(self.newest, other=after.alone)

    @property
    def due(self) -> bool:
        """Whether the device runs the target, under a manifest that a newer one is to replace."""
        target = self.target
        if target is None or self.digest != target.sha256:
            return False
        return renewal_due(target.manifest, target.sequence, self.status.manifest)

    def runs(self, deployment: Deployment) -> bool:
        """Say whether the device runs what the deployment brings: the image, and with a renewal its manifest."""
        has = self.status.manifest
        return self.digest == deployment.sha256 and (has is None or has >= deployment.renews)

    @property
    def open(self) -> Deployment | None:
        """The deployment under way, of either kind: a device has one at a time."""
        return self.newest if self.newest is not None and not self.newest.final else None

    def step(self, event: Event, **changes: object) -> None:
        """Apply `event` where the table has it; a step that changes nothing but progress is not history."""
        before = self.deployment
        if before is None or advance(before.state, event) is None:
            return
        after = before.step(event, self.now_s, **changes)
        if after.final:
            target = self.target if self.target is not None and self.target.sha256 == after.sha256 else None
            after = msgspec.structs.replace(after, cause=cause_of(self.status, target))
        self.deployment = after
        if after.state is not before.state or after.final:
            self.steps.append((after, entry_of(after, event)))

    def note(self, event: str, text: str, **changes: object) -> None:
        """Change the deployment within its state, and say so in the history."""
        assert self.deployment is not None
        after = msgspec.structs.replace(self.deployment, updated_s=self.now_s, **changes)
        self.deployment = after
        self.steps.append((after, entry_of(after, event, text)))

    def start(self, target: Firmware, desired: Desired) -> None:
        status = self.status
        made = new_deployment(
            self.app, self.device, target, self.newest, self.now_s, version=status.version, sha256=self.digest
        )
        before, route = self.deployment, self._route(desired)
        if self.due:
            # Of a rollout the device has its part already.
            made = msgspec.structs.replace(made, renews=target.sequence, download_only=desired.download_only)
        else:
            same_rollout = before is not None and before.rollout == desired.rollout
            made = msgspec.structs.replace(
                made,
                rollout=desired.rollout,
                wave=desired.wave,
                back=desired.back,
                retry=max(desired.retries, before.retry if before is not None and same_rollout else 0),
                download_only=desired.download_only,
                route=route,
                then=desired.then,
                counted=desired.counted,
                other=_forgiven(made.other, desired),
            )
        self.newest = made
        told = desired.origin if desired.rollout else None
        if route is not None:
            told = f"{told or desired.origin}, step {route.step} of {route.steps} to {route.toward}"
        self.steps.append((made, entry_of(made, "created", told)))

    def _route(self, desired: Desired) -> Route | None:
        """Say where the deployment that begins stands on a way of several steps; the steps that are done count."""
        before, done, began = self.deployment, 0, self.status.version
        if before is not None and before.route is not None and _same_way(before, desired):
            if before.is_between:
                done, began = before.route.step, before.route.began
            elif self.digest == before.from_sha256:
                done, began = before.route.step - 1, before.route.began
        return Route(desired.version, done + 1, done + desired.steps, began) if done + desired.steps > 1 else None


def _forgiven(other: Deployment | None, desired: Desired) -> Deployment | None:
    """Return the other kind's deployment without what a rollout's retry forgives: it tries again whatever failed, of both kinds."""
    if other is None or other.rollout != desired.rollout or desired.retries <= other.retry or not desired.rollout:
        return other
    return msgspec.structs.replace(other, blocks=False) if other.state is not State.CANCELLED else other


def _same_way(before: Deployment, desired: Desired) -> bool:
    return before.route is not None and (before.route.toward, before.rollout) == (desired.version, desired.rollout)
