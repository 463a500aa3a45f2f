"""What one look at a device came to: what is to be stored of it, in the commit that others share, and what is told after that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType

import msgspec

from dfud.api import (
    Actual,
    ActualChanged,
    Bus,
    Change,
    ChangeEvent,
    Deployment,
    DeploymentChanged,
    DeviceSeen,
    DeviceView,
    HistoryEntry,
    PutActual,
    PutDeployment,
    Store,
    StoreError,
)
from dfud.controller.budget import Budget
from dfud.controller.config import ControllerConfig
from dfud.controller.counting import counted_of, counting
from dfud.controller.decide import Action, Verdict, entry_of
from dfud.controller.fleet import Fleet
from dfud.controller.hear import explained
from dfud.controller.memory import Hold
from dfud.controller.observe import health_of, newly_twins, twins_of
from dfud.controller.outbox import Outbox
from dfud.controller.packages import Busy
from dfud.controller.rollouts import Rollouts
from dfud.controller.sending import Order, sent
from dfud.model.quickest import Choice
from dfud.package.file import PackageFile
from dfud.wire.messages import Command, Outcome, Status

Step = tuple[Deployment, HistoryEntry]
Tells = Callable[[], ChangeEvent]
NOTHING: Mapping[str, int] = MappingProxyType({})
OLDER_MAX = 5  # deployments among which the one is looked for that a late result is about


class Settled(msgspec.Struct, gc=False):
    """What a look at a device came to that stays so while neither its app (epoch) changes nor what is known of it: actual and
    deployment, as they were kept after that look. status: the one that it was about.
    """

    status: Status
    command: Command
    epoch: int | None
    actual: Actual | None = None
    deployment: Deployment | None = None


class Kept(msgspec.Struct, gc=False):
    """changes: to be committed with all others of one look, or not at all; empty where nothing is worth it. told: what event sinks
    are told, one a step."""

    changes: list[Change]
    steps: Sequence[Step]
    counted: Mapping[str, int]
    actual: Actual
    deployment: Deployment | None
    news: bool
    now: float
    now_s: float
    told: Sequence[Tells] = ()
    settled: Settled | None = None


class Asked(msgspec.Struct, frozen=True, gc=False):
    """One device's status, among those of others (Controller.take). view: what is stored of it, if that was read just now."""

    app: str
    device: str
    status: Status
    transport: str
    view: DeviceView | None = None


class Look(msgspec.Struct, gc=False):
    """What a status comes to. order: the package that is to be sent; package: that, if it is there."""

    kept: Kept
    command: Command
    order: Order | None
    package: PackageFile | None


class Keeper:
    """Adds to a device's own records what is counted of it, and what those hear who follow changes."""

    def __init__(
        self, store: Store, bus: Bus, config: ControllerConfig, outbox: Outbox, rollouts: Rollouts, fleet: Fleet
    ) -> None:
        self._store = store
        self._bus = bus
        self._config = config
        self.budget = Budget(config.history_per_hour, config.cache_devices)
        self._outbox = outbox
        self._rollouts = rollouts
        self._fleet = fleet

    def observed(self, hold: Hold, actual: Actual, status: Status, now_s: float) -> Actual:
        """Add what the row of statuses says of the board, this one among them."""
        known = hold.known.actual
        if known is not None and status.starts is None and known.health is None and known.sha256 == actual.sha256:
            return msgspec.structs.replace(actual, twins=known.twins, tally=known.tally)  # it says nothing of either
        health = health_of(known, status, now_s)
        twins = twins_of(known, status, hold.known.deployment, now_s)
        tally = known.tally if known is not None else ()
        return msgspec.structs.replace(actual, health=health, twins=twins, tally=tally)

    async def older(self, hold: Hold, status: Status, now_s: float) -> list[tuple[Deployment, HistoryEntry]]:
        """Return what a result says about a deployment that is not the newest any more: kept for people, and judged no more."""
        result, newest = status.result, hold.known.deployment
        if result is None or newest is None or result.outcome == Outcome.CONFIRMED:
            return []
        if result.digest.hex() in (d.sha256 for d in newest.both):
            return []
        for found in await self._store.deployments(newest.app, newest.device, limit=OLDER_MAX):
            if found.sha256 == result.digest.hex() and found.final:
                after = explained(found, result, now_s)
                return [after] if after is not None else []
        return []

    async def of(
        self, hold: Hold, actual: Actual, verdict: Verdict, now_s: float, older: Sequence[Step] = (), *, now: float
    ) -> Kept:
        """Work out what is to be stored. now: on trio's clock. Raises StoreError where the device has changed too often."""
        known = hold.known
        news = known.actual is None or not _same(known.actual, actual)
        steps: Sequence[Step] = verdict.steps
        doubled = actual.twins is not None and newly_twins(known.actual, actual, now_s)
        if older or doubled:
            steps = [*older, *verdict.steps]
            if verdict.deployment is not None and doubled:
                text = "two boards use this identity: what runs contradicts what was sent"
                steps.append((verdict.deployment, entry_of(verdict.deployment, "duplicate-identity", text)))
        changes: list[Change] = []
        if steps:
            self.budget.spend(actual.app, actual.device, len(steps), now)
            changes += [PutDeployment(d, e) for d, e in steps]
        last = steps[-1][0] if verdict.steps else known.deployment
        if verdict.deployment is not None and verdict.deployment is not last:
            due = now - known.progress_at >= self._config.progress_s
            moved = last is None or verdict.deployment.chunks_done != last.chunks_done
            if (moved and due) or last is None or _unmoved(verdict.deployment) != _unmoved(last):
                changes.append(PutDeployment(verdict.deployment))
                known.progress_at = now
        counted: dict[str, int] = {}
        told: Sequence[Tells] = ()
        if steps:
            told, waiting = self._outbox.put_steps(steps)
            changes += waiting
            entered = [d for d, _ in verdict.steps]
            if verdict.deployment is not None and entered and entered[-1] is not verdict.deployment:
                entered.append(verdict.deployment)  # a step of the other kind's moves it as well
            if any(d.rollout for d in entered):
                counted = await counted_of(self._store, self._rollouts.leads, known.deployment, entered)
            if counted:
                changes += counting(counted)
                changes += await self._rollouts.failures.noted([d for d, _ in verdict.steps])
        if news or changes or now - known.seen_at >= self._config.seen_s:
            actual, tallied = await self._fleet.noted(actual, verdict.deployment)
            changes += [PutActual(actual, tell=news), *tallied]
        return Kept(
            changes=changes,
            steps=steps,
            counted=counted,
            actual=actual,
            deployment=verdict.deployment,
            news=news,
            now=now,
            now_s=now_s,
            told=told,
        )

    def likewise(
        self,
        hold: Hold,
        actual: Actual,
        deployment: Deployment | None,
        steps: Sequence[Step],
        tally: tuple[str, ...] | None,
        counts: Sequence[Change],
        *,
        now: float,
        now_s: float,
    ) -> Kept | None:
        """As of(), for a device that is like another one, of which it is known what it is counted in (tally) and what changes that;
        tally None: not, and then None is returned where something is to be stored.
        """
        known = hold.known
        news = known.actual is None or not _same(known.actual, actual)
        changes: list[Change] = []
        told: Sequence[Tells] = ()
        if steps or news or now - known.seen_at >= self._config.seen_s:
            if tally is None:
                return None
            if steps:
                self.budget.spend(actual.app, actual.device, len(steps), now)
                changes = [PutDeployment(d, e) for d, e in steps]
                told, waiting = self._outbox.put_steps(steps)
                changes += waiting
            actual = msgspec.structs.replace(actual, tally=tally)
            changes.append(PutActual(actual, tell=news))
            changes += counts
            self._fleet.moved(actual.app)
        return Kept(
            changes=changes,
            steps=steps,
            counted=NOTHING,
            actual=actual,
            deployment=deployment,
            news=news,
            now=now,
            now_s=now_s,
            told=told,
        )

    def committing(self) -> AbstractContextManager[None]:
        """Around the commit of what of() gave: where that is not done, what is remembered of it is doubted."""
        return self._rollouts.failures.doubted()

    def done(self, hold: Hold, kept: Kept) -> None:
        """It is stored: remember it in the hold and say so on the bus."""
        known, actual = hold.known, kept.actual
        if kept.changes:
            hold.stored(kept.changes)
            known.seen_at = kept.now
        if kept.counted:
            self._rollouts.counted(dict(kept.counted))
        known.actual = actual
        known.deployment = kept.deployment
        known.settled = settled = kept.settled
        if settled is not None:
            settled.actual, settled.deployment = actual, kept.deployment
        for (deployment, entry), told in zip(kept.steps, kept.told, strict=True):
            self._bus.publish(DeploymentChanged(deployment, entry, told))
        if kept.news:
            self._bus.publish(ActualChanged(actual))
        if kept.changes:
            self._bus.publish(DeviceSeen(actual.app, actual.device, kept.now_s))


def _unmoved(deployment: Deployment) -> Deployment:
    return msgspec.structs.replace(deployment, chunks_done=0, served=0, updated_s=0.0, mark=0, moved_s=0.0)


def _same(one: Actual, other: Actual) -> bool:
    """Say whether a device has said nothing new, but for when it said it."""
    aged = msgspec.structs.replace(one, seen_s=other.seen_s, defer_until_s=other.defer_until_s)
    return aged == other


def taken(
    verdict: Verdict,
    order: Order,
    found: PackageFile | StoreError | None,
    policy: ControllerConfig,
    now_s: float,
    choice: Choice | None = None,
) -> PackageFile | None:
    """Return the package to send and note that it goes out, or have the device wait. found: it, or why there is none yet; choice: why
    it is this one."""
    if isinstance(found, PackageFile):
        sent(verdict, order.target, found, policy, now_s, choice)
        return found
    verdict.action, verdict.reason = Action.WAIT, "its package is being made"
    if isinstance(found, StoreError) and not isinstance(found, Busy):
        verdict.reason = "its package cannot be made"
        verdict.poll_s = policy.poll_s if not found.retryable else policy.retry_s or 1
        assert verdict.deployment is not None
        verdict.deployment = msgspec.structs.replace(verdict.deployment, problem=str(found)[:500])
    return None


def has_place(known: Deployment | None, began: Deployment) -> bool:
    """Say whether a device is counted as being updated by a rollout already: its update goes on, or takes its next step."""
    if known is None or known.rollout != began.rollout:
        return False
    return known.id == began.id or not known.final or known.is_between
