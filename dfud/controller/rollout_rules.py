"""What a rollout has to be before it is made, and who is in its waves: what the engine asks, without its state."""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from dfud.api import (
    Actual,
    App,
    ConflictError,
    DeviceView,
    Firmware,
    Metadata,
    PeerError,
    RefusedError,
    Rollout,
    Store,
)
from dfud.model.kinds import APP, KINDS, SYSTEM
from dfud.model.overlap import may_overlap
from dfud.model.policy import wave_of
from dfud.model.rollout import Facts, Happened, Plan, RolloutStatus
from dfud.model.rollout_states import FINAL
from dfud.model.rollout_step import Step
from dfud.model.schedule import next_opening
from dfud.model.steps import image_for
from dfud.wire.beside import do_not_run_together
from dfud.wire.manifest import FLAG_DOWNGRADE, decode_envelope_untrusted

PAGE = 1000
FIELDS = {"spec.firmware": SYSTEM, "spec.app": APP}
FEW = 200  # devices of a fleet that is looked at whole before a rollout is made
HISTORY_MAX = 100
log = logging.getLogger("dfud")


async def judge(
    store: Store,
    app: App,
    name: str,
    plan: Plan,
    others: Mapping[str, tuple[Rollout, Plan | None]],
    per_app: int,
    now_s: float,
) -> None:
    """Refuse what cannot come to anything, with a sentence that names the field.

    Only a page of devices is looked at: what nobody can know without all of them pauses the rollout when it starts.
    """
    if name in others:
        raise ConflictError(f"rollout {name} of app {app.name} exists already")
    if len(others) >= per_app:
        raise RefusedError(
            f"app {app.name} has {per_app} rollouts already; delete some that have ended, or raise [controller] rollouts_per_app"
        )
    brought = await _brought(store, app.name, plan)
    _refuse_times(plan, now_s)
    refuse_conflict(plan, others)
    for device in sorted(plan.whom.devices):
        if await store.device(app.name, device) is None:
            raise PeerError(f"spec.devices.names: no device {device} in app {app.name}")
    if plan.whom.devices or plan.whom.dynamic:
        return
    page = await store.devices(app.name, plan.whom.selector, limit=FEW + 1)
    if not page:
        raise PeerError("spec.devices.selector: matches no device; with dynamic: true it may come to")
    for number, wave in enumerate(plan.waves):
        if wave.selector is not None and not await store.devices(app.name, wave.selector, limit=1):
            raise PeerError(f"spec.waves[{number}].selector: matches no device, so the wave would be good at once")
    for field, firmware in brought.items():
        if len(page) <= FEW and (why := all_refuse(firmware, [view.actual for view in page])):
            raise PeerError(f"{field}: {why}")


async def _brought(store: Store, app: str, plan: Plan) -> dict[str, Firmware]:
    """Return the firmwares that a rollout brings, by the field that names them. Raises PeerError for what nobody could be sent."""
    found: dict[str, Firmware] = {}
    for field, kind in FIELDS.items():
        version = plan.version_of(kind)
        if not version:
            continue
        firmware = await store.firmware(app, version)
        if firmware is None:
            raise PeerError(f"{field}: {version} is not published")
        if firmware.of_kind != kind:
            raise PeerError(f"{field}: {version} is {firmware.of_kind} firmware, expected {kind} firmware")
        if firmware.recalled is not None:
            raise PeerError(f"{field}: {version} is recalled: {firmware.recalled.reason}")
        found[field] = firmware
    if len(found) == len(FIELDS) and (why := do_not_run_together(*found.values())):
        raise PeerError(f"spec.app: {why}")
    return found


def _refuse_times(plan: Plan, now_s: float) -> None:
    """Raise PeerError for times that leave nothing to do."""
    for field, at_s in (("end", plan.end_s), ("offerUntil", plan.offer_until_s)):
        if at_s and at_s <= now_s:
            raise PeerError(f"spec.{field}: it is over, expected a time to come")
    if plan.windows and plan.end_s and not plan.zone_label and not plan.zone_attribute:
        if next_opening(plan.windows, plan.zone, max(now_s, plan.start_s)) >= plan.end_s:
            raise PeerError("spec.windows: none opens before spec.end, so it could never run")


def all_refuse(firmware: Firmware, devices: Sequence[Actual | None]) -> str:
    """Say why none of these devices would take a version: it is below the sequence that each of them accepts. Or ""."""
    kind = firmware.of_kind
    if kind == APP and devices and all(actual is not None and actual.program is None for actual in devices):
        return f"{firmware.version} is app firmware, and no device has banks for it"
    said = [seen for actual in devices if actual is not None and (seen := actual.of(kind)) is not None]
    if not said or len(said) < len(devices):
        return ""
    if any(not _is_below(image_for(firmware, actual), actual) for actual in said):
        return ""
    lowest = min(actual.sequence for actual in said)
    return (
        f"{firmware.version} has sequence {firmware.sequence}, every device accepts {lowest} or more: publish it again with a higher "
        "sequence, or signed with --allow-downgrade"
    )


def _is_below(target: Firmware, actual: Actual) -> bool:
    if actual.sha256 == target.sha256 or target.sequence >= actual.sequence:
        return False
    try:
        return not decode_envelope_untrusted(target.manifest)[1].flags & FLAG_DOWNGRADE
    except PeerError:
        return False


def refuse_conflict(plan: Plan, others: Mapping[str, tuple[Rollout, Plan | None]]) -> None:
    """Raise ConflictError where another rollout of the same priority may mean the same device."""
    for other, its in others.values():
        if its is None or other.status.state in FINAL:
            continue
        if not any(plan.version_of(kind) and its.version_of(kind) for kind in KINDS):
            continue  # each speaks for its kind
        if its.priority == plan.priority and may_overlap(plan, its):
            raise ConflictError(
                f"spec.priority: rollout {other.name} has {plan.priority}, too, and both may mean the same device; "
                "give one of them another priority"
            )


def waiting_names(plan: Plan, members: Sequence[Facts]) -> frozenset[str]:
    """Return the members that do not run the version yet and are in no wave of a selector."""
    selectors = [wave.selector for wave in plan.waves if wave.selector is not None]
    return frozenset(
        facts.device
        for facts in members
        if not plan.runs_on(facts.actual) and not any(selector.matches(facts.labels) for selector in selectors)
    )


def new_metadata(given: Metadata, app: App, now_s: float) -> Metadata:
    """Return the metadata of a rollout that is made now. The annotation `app` says which app of that name it belongs to."""
    return Metadata(
        name=given.name,
        application=app.name,
        uid=str(uuid.uuid4()),
        creation_timestamp=datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        generation=1,
        resource_version=secrets.token_hex(8),
        labels=given.labels,
        annotations={**given.annotations, "app": app.metadata.uid},
    )


def changed(rollout: Rollout, status: RolloutStatus, steps: Sequence[Step], now_s: float) -> Rollout:
    """Return a rollout with a new status, and the steps that led there in its history."""
    told = [
        Happened(at_s=now_s, event=s.event, state=s.after, wave=status.wave, code=s.code, reason=s.reason, by=status.by)
        for s in steps
    ]
    status = msgspec.structs.replace(status, history=(*status.history, *told)[-HISTORY_MAX:])
    metadata = msgspec.structs.replace(rollout.metadata, resource_version=secrets.token_hex(8))
    return msgspec.structs.replace(rollout, metadata=metadata, status=status)


def log_steps(rollout: Rollout, steps: Sequence[Step]) -> None:
    for s in steps:
        about = {"app": rollout.app, "rollout": rollout.name, "state": s.after, "reason": s.reason}
        log.info("rollout", extra={**about, "wave": rollout.status.wave + 1})


def facts_of(view: DeviceView) -> Facts:
    """Return what decides whether a device is a member."""
    return Facts(
        device=view.device.name,
        labels=view.device.metadata.labels,
        created=view.device.metadata.creation_timestamp,
        actual=view.actual,
        told=view.deployment.rollout if view.deployment is not None else "",
        told_other=view.deployment.other.rollout if view.deployment is not None and view.deployment.other else "",
    )


def four_eyes(app: App) -> bool:
    section = app.spec.get("rollouts")
    return isinstance(section, dict) and section.get("approval") is True


def waiting(plan: Plan, uid: str, status: RolloutStatus, members: Sequence[Facts], wave: int) -> int:
    """Return how many members of a wave do not run the version yet."""
    shares = tuple(int(s) for s in status.shares)
    return sum(wave_of(plan, uid, shares, facts) == wave for facts in members if not plan.runs_on(facts.actual))


def scope_of(uid: str) -> str:
    """Return the name under which the store counts for a rollout."""
    return f"rollout/{uid}"
