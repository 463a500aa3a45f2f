"""What should run on a device, and who says so: the one answer that the decision, the API and the explanation share. Pure.

In this order: the device's own spec.firmware; the running rollout with the highest priority (of equal ones the newer), as far as
it has come; the app's rules, from the first; the app's spec.firmware. A rollout that has ended goes on speaking for the devices
that it brought to its version, until somebody else does: otherwise its end would take them back. Each kind of firmware is asked
for by itself, of those that name one of it; a device's own spec.firmware speaks for both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from dfud.errors import PeerError
from dfud.model.counts import field_of
from dfud.model.deployment import Deployment
from dfud.model.deployment import State as Deployed
from dfud.model.desired import Desired, Held, desired_of, joined
from dfud.model.kinds import APP, KINDS, SYSTEM, Kind, other_of
from dfud.model.label_index import LabelIndex
from dfud.model.membership import place, share, share_of_count
from dfud.model.rollout import Facts, Mode, Plan, Rollout, RolloutStatus, is_member, status_problem
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import ACTIVE, FINAL, State
from dfud.model.schedule import is_open, next_opening, read_zone_untrusted
from dfud.model.selectors import Selector, parse_selector_untrusted

RULES_MAX = 200
ZONES_MAX = 10_000


class Running(msgspec.Struct, frozen=True):
    """A rollout as the policy needs it: read once. shares: one place a wave."""

    rollout: Rollout
    plan: Plan
    shares: tuple[int, ...]

    @property
    def uid(self) -> str:
        return self.rollout.metadata.uid


class Rule(msgspec.Struct, frozen=True):
    selector: Selector
    desired: Desired


def read_rules_untrusted(value: object) -> tuple[Rule, ...]:
    """Read spec.rules, `[{"selector": "channel=beta", "firmware": {"version": "1.3"}}]`. Raises PeerError."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > RULES_MAX:
        raise PeerError(f"spec.rules: expected a list of up to {RULES_MAX} rules")
    rules = []
    for number, entry in enumerate(value):
        where = f"spec.rules[{number}]"
        if not isinstance(entry, Mapping) or set(entry) != {"selector", "firmware"}:
            raise PeerError(f"{where}: expected an object with selector and firmware")
        if not isinstance(entry["selector"], str) or not entry["selector"].strip():
            raise PeerError(f"{where}.selector: expected text; what all devices should run is spec.firmware")
        try:
            selector = parse_selector_untrusted(entry["selector"])
        except PeerError as error:
            raise PeerError(f"{where}.selector: {error}") from None
        desired = desired_of({"firmware": entry["firmware"]}, {})
        if desired.problem or not desired.version:
            raise PeerError(f"{where}: {desired.problem or 'firmware says no version'}")
        rules.append(Rule(selector, _from(desired, f"rule {number + 1}")))
    return tuple(rules)


def _from(desired: Desired, origin: str) -> Desired:
    named = msgspec.structs.replace(desired, origin=origin)
    return named if desired.other is None else named.beside(msgspec.structs.replace(desired.other, origin=origin))


def rules_for(app_spec: Mapping[str, Any], version: str) -> list[str]:
    """Return the names of the app's rules that ask for a version; of rules that cannot be read, none."""
    try:
        rules = read_rules_untrusted(app_spec.get("rules"))
    except PeerError:
        return []
    return [f"{rule.desired.origin} of the app" for rule in rules if version in rule.desired.versions]


class Policy:
    """What an app's spec and its rollouts say, read once for all its devices."""

    def __init__(self, app_spec: Mapping[str, Any], rollouts: Sequence[Rollout] = ()) -> None:
        """Whatever cannot be read speaks for nobody; it was refused when it was stored, and is shown where it stands."""
        self._app_spec = app_spec
        try:
            self._rules = read_rules_untrusted(app_spec.get("rules"))
        except PeerError:
            self._rules = ()
        self._active: list[Running] = []
        self._ended: dict[str, Running] = {}
        self._closed: dict[tuple[str, str | None], tuple[float, float]] = {}
        newest = sorted(rollouts, key=lambda r: (r.metadata.creation_timestamp, r.metadata.uid), reverse=True)
        for rollout in newest:
            state = rollout.status.state
            if not rollout.status.started_s:
                continue
            try:
                plan = read_plan_untrusted(rollout.spec)
            except PeerError:
                continue
            if status_problem(plan, rollout.status):
                continue
            running = Running(rollout, plan, tuple(int(s) for s in rollout.status.shares))
            if state not in FINAL:
                self._active.append(running)
            elif not (state is State.FINISHED and plan.promote) and not rollout.status.reverted:
                self._ended[running.uid] = running
        self._active.sort(key=lambda r: -r.plan.priority)
        self._rule_index = LabelIndex([rule.selector for rule in self._rules])
        self._active_index = LabelIndex([running.plan.whom.selector for running in self._active])
        self._numbers = {running.uid: number for number, running in enumerate(self._active)}
        self._default = desired_of(app_spec, {})
        named = [running.plan.app for running in (*self._active, *self._ended.values())]
        asked = (self._default, *(rule.desired for rule in self._rules))
        self._has_apps = any(named) or any(desired.of(APP) is not None for desired in asked)
        told_apart = self._active or self._ended or self._rules or self._has_apps
        self.common = None if told_apart else self._default.of(SYSTEM) or Desired(kind=SYSTEM)
        """What should run on every device that asks for nothing itself; None: that depends on the device."""

    def wanted(
        self, device_spec: Mapping[str, Any], facts: Facts, deployment: Deployment | None, now_s: float
    ) -> Desired:
        """Return what this device should run now; never raises. deployment: its newest one."""
        if "firmware" in device_spec:
            return desired_of({}, device_spec)
        if not self._has_apps:
            return self._wanted(facts, deployment, now_s, SYSTEM)
        return joined(*(self._wanted(facts, deployment, now_s, kind) for kind in KINDS))

    def _wanted(self, facts: Facts, deployment: Deployment | None, now_s: float, kind: Kind) -> Desired:
        """Return what should run of one kind."""
        for number in self._numbers_of(facts):
            running = self._active[number]
            found = self._of_rollout(running, facts, deployment, now_s, kind) if running.plan.version_of(kind) else None
            if found is not None:
                return found
        if self._ended and (kept := self._kept(facts, deployment, now_s, kind)) is not None:
            return kept
        for number in self._rule_index.candidates(facts.labels):
            rule = self._rules[number]
            if rule.selector.matches(facts.labels) and (asked := rule.desired.of(kind)) is not None:
                return asked
        return self._default.of(kind) or Desired(kind=kind)

    def _kept(self, facts: Facts, deployment: Deployment | None, now_s: float, kind: Kind) -> Desired | None:
        """Return what a rollout that has ended brought this device to, or is still bringing it to. The newest one counts.

        One that was aborted with its updates called back brings nobody there any longer.
        """
        for told in deployment.both if deployment is not None else ():
            ended = self._ended.get(told.rollout)
            mine = _of_this(ended, deployment, kind) if ended is not None else None
            if ended is None or mine is None or not _goes_on(mine) or mine.back:
                continue
            if not ended.rollout.status.called_back:
                return self._going(ended, facts, mine, now_s, kind)
        last = deployment.of(kind) if deployment is not None else None
        if (stays := self._stays(facts, last, now_s, kind)) is not None:
            return stays
        if facts.actual is None:
            return None
        for ended in self._ended.values():
            plan, status = ended.plan, ended.rollout.status
            version = plan.version_of(kind)
            if not version or version != facts.actual.runs(kind):
                continue
            if not is_member(plan, ended.uid, status.started_s, facts):
                continue
            wave = wave_of(plan, ended.uid, ended.shares, facts)
            if wave is not None and wave <= status.wave:
                return _desired(ended, wave, now_s, kind)
        return None

    def _stays(self, facts: Facts, last: Deployment | None, now_s: float, kind: Kind) -> Desired | None:
        """Return what runs, where that is a step on the way to the version of a rollout that has ended and cannot go further."""
        if last is None or last.route is None or last.back or facts.actual is None:
            return None
        ended, runs = self._ended.get(last.rollout), facts.actual.runs(kind)
        if ended is None or runs in (last.route.began, ended.plan.version_of(kind)):
            return None
        return msgspec.structs.replace(_desired(ended, last.wave, now_s, kind), version=runs)

    def _numbers_of(self, facts: Facts) -> list[int]:
        """Return the running rollouts that may speak for a device, in their order; the one that told it whatever its labels are."""
        found = self._active_index.candidates(facts.labels) if self._active else []
        mine = {self._numbers[uid] for uid in (facts.told, facts.told_other) if uid in self._numbers}
        return found if mine.issubset(found) else sorted({*found, *mine})

    def _of_rollout(
        self, running: Running, facts: Facts, deployment: Deployment | None, now_s: float, kind: Kind
    ) -> Desired | None:
        """Return what one rollout says of a kind on a device, or None if it does not speak for it."""
        rollout, plan = running.rollout, running.plan
        last = deployment.of(kind) if deployment is not None else None
        told = last is not None and last.rollout == running.uid
        if rollout.status.state is State.REVERTING:
            return _back(running, last, kind) if told else None
        if deployment is not None and (failed := _failed(running, deployment, other_of(kind))) is not None:
            return _undone(running, deployment, failed)  # nothing else of a pair is brought where one has failed
        mine = _of_this(running, deployment, kind)
        if mine is not None and _goes_on(mine):
            return self._going(running, facts, mine, now_s, kind)
        if not is_member(plan, running.uid, rollout.status.started_s, facts):
            return None
        wave = wave_of(plan, running.uid, running.shares, facts)
        if wave is None:
            return None
        if facts.actual is not None and facts.actual.runs(kind) == plan.version_of(kind):
            return _desired(running, wave, now_s, kind)
        left = mine is not None and mine.blocks
        if not left and not _is_its_turn(rollout.status, wave):
            return None  # till its turn, whatever else speaks for it does
        return _desired(running, wave, now_s, kind, self._held(running, facts, now_s) if plan.windows else None)

    def _going(self, running: Running, facts: Facts, mine: Deployment, now_s: float, kind: Kind) -> Desired:
        """Return what a device is being brought to: what has begun goes on, but for a switch that was not asked for yet.

        Within its window only: being told, or told again, the switch to what it has written, the next of several steps.
        """
        found = _desired(running, mine.wave, now_s, kind)
        held = self._held(running, facts, now_s) if running.plan.windows else None
        if held is None:
            return found
        waits = found.download_only or running.plan.mode is Mode.DOWNLOAD
        return msgspec.structs.replace(found, held=held, download_only=waits)

    def _held(self, running: Running, facts: Facts, now_s: float) -> Held | None:
        """Say until when the device's windows are closed. They stay closed till the next opening, so that is found once."""
        zone = zone_of(running.plan, facts)
        key = (running.uid, zone.key)
        since_s, until_s = self._closed.get(key, (0.0, 0.0))
        if not since_s <= now_s < until_s:
            if is_open(running.plan.windows, zone, now_s):
                return None
            until_s = next_opening(running.plan.windows, zone, now_s)
            if len(self._closed) > ZONES_MAX:
                self._closed.clear()
            self._closed[key] = (now_s, until_s)
        return Held("window", until_s)


def _goes_on(deployment: Deployment) -> bool:
    """Say whether a device is on its way: it has been told and not answered, or has done a step of several."""
    return not deployment.final or deployment.is_between


def _of_this(running: Running, deployment: Deployment | None, kind: Kind) -> Deployment | None:
    """Return the device's newest deployment that a rollout has asked for; of one that brings one kind, of that kind."""
    if deployment is None:
        return None
    if running.plan.version and running.plan.app:
        return deployment.in_rollout(running.uid)
    last = deployment.of(kind) if running.plan.version_of(kind) else None
    return last if last is not None and last.rollout == running.uid else None


def _desired(running: Running, wave: int, now_s: float, kind: Kind, held: Held | None = None) -> Desired:
    plan, status = running.plan, running.rollout.status
    return Desired(
        version=plan.version_of(kind),
        kind=kind,
        download_only=plan.mode is Mode.DOWNLOAD and not _switches(status, wave),
        origin=f"rollout {running.rollout.name}",
        rollout=running.uid,
        wave=wave,
        held=held,
        retries=status.retries if _is_its_turn(status, wave) else 0,
        attempts=plan.attempts,
        backoff_s=plan.backoff_s,
        forced=plan.is_forced(now_s),
    )


def _is_its_turn(status: RolloutStatus, wave: int) -> bool:
    return wave <= status.wave and status.state in ACTIVE


def _switches(status: RolloutStatus, wave: int) -> bool:
    """Say whether devices of a wave that have written an image may run it."""
    if not status.activated_s or wave > status.wave:
        return False
    return status.state in ACTIVE or status.state is State.FINISHED


def wave_of(plan: Plan, uid: str, shares: Sequence[int], facts: Facts) -> int | None:
    """Return which wave a member is in, from 0, or None. shares: one place a wave (shares_of)."""
    where = place(uid, facts.device)
    for number, wave in enumerate(plan.waves):
        if wave.selector is not None:
            if wave.selector.matches(facts.labels):
                return number
        elif number < len(shares) and where < shares[number]:
            return number
    return None


def _before(last: Deployment) -> str:
    """Return the version of its kind that a device ran before a rollout, or goes back to already; "": none did."""
    if last.back:
        return last.version
    return last.route.began if last.route is not None and last.route.began else last.from_version


def _back(running: Running, last: Deployment | None, kind: Kind) -> Desired | None:
    """Return what a device that took the version of a rollout goes back to. last: its newest deployment of this kind."""
    if last is None or not last.from_version:
        return None
    return Desired(
        version=_before(last),
        kind=kind,
        origin=f"rollout {running.rollout.name}, going back",
        rollout=running.uid,
        wave=last.wave,
        back=True,
        forced=True,  # whoever puts off the way back runs what was found bad
    )


def _failed(running: Running, deployment: Deployment, kind: Kind) -> Deployment | None:
    """Return the deployment of a kind that has failed on a device, if its rollout brings both kinds and does not try it again."""
    last = deployment.of(kind)
    if last is None or last.rollout != running.uid or last.back or not (running.plan.version and running.plan.app):
        return None
    bad = last.state in (Deployed.FAILED, Deployed.ROLLED_BACK) and last.blocks
    return last if bad and running.rollout.status.retries <= last.retry else None


def _undone(running: Running, deployment: Deployment, failed: Deployment) -> Desired | None:
    """Return what the other kind than the one that has failed goes back to, or None: it was not brought, or nothing ran before."""
    last = deployment.of(other_of(failed.kind))
    if last is None or last.rollout != running.uid or not (last.back or last.state is Deployed.DONE):
        return None
    version = _before(last)
    if not version:
        return None
    return Desired(
        version=version,
        kind=last.kind,
        origin=f"rollout {running.rollout.name}, going back: {failed.version} failed",
        rollout=running.uid,
        wave=last.wave,
        back=True,
        forced=True,
        counted=last.counted or field_of(failed),
    )


def zone_of(plan: Plan, facts: Facts) -> ZoneInfo:
    """Return the time zone of a device's windows: its own if the plan says where that is and it is one, else the plan's."""
    name = facts.labels.get(plan.zone_label, "") if plan.zone_label else ""
    if plan.zone_attribute and facts.actual is not None:
        name = facts.actual.attributes.get(plan.zone_attribute, "")
    if not name:
        return plan.zone
    try:
        return read_zone_untrusted(name, "time zone")
    except PeerError:
        return plan.zone


def shares_of(plan: Plan, uid: str, members: Sequence[str], waiting: Collection[str] | None = None) -> tuple[int, ...]:
    """Return for each wave the place below which its devices are; 0 for one that is made by a selector.

    waiting: the members that do not run what it brings yet (None: all). A wave of percent has at least one of them more than the
    waves before it, while there are any: a wave of nobody would be good at once and prove nothing.
    """
    places = [place(uid, device) for device in members]
    left = sorted(places if waiting is None else (place(uid, device) for device in members if device in waiting))
    found: list[int] = []
    reached = 0
    for wave in plan.waves:
        if wave.selector is not None:
            found.append(0)
            continue
        limit = share(wave.percent) if wave.percent else share_of_count(places, wave.count)
        if wave.percent and (first := bisect_left(left, reached)) < len(left):
            limit = max(limit, left[first] + 1)
        reached = max(reached, limit)
        found.append(reached)
    return tuple(found)
