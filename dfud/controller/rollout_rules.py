"""What a rollout has to be before it is made, and who is in its waves: what the engine asks, without its state."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from dfud.api import App, ConflictError, Metadata, PeerError, RefusedError, Rollout, Store
from dfud.model.overlap import may_overlap
from dfud.model.policy import wave_of
from dfud.model.rollout import Facts, Plan, RolloutStatus
from dfud.model.rollout_states import FINAL


async def judge(
    store: Store, app: App, name: str, plan: Plan, others: Mapping[str, tuple[Rollout, Plan | None]], per_app: int
) -> None:
    """Refuse what cannot come to anything, with a sentence that names the field."""
    if name in others:
        raise ConflictError(f"rollout {name} of app {app.name} exists already")
    if len(others) >= per_app:
        raise RefusedError(
            f"app {app.name} has {per_app} rollouts already; delete some that have ended, or raise [controller] rollouts_per_app"
        )
    firmware = await store.firmware(app.name, plan.version)
    if firmware is None:
        raise PeerError(f"spec.firmware: {plan.version} is not published")
    if firmware.recalled is not None:
        raise PeerError(f"spec.firmware: {plan.version} is recalled: {firmware.recalled.reason}")
    refuse_conflict(plan, others)
    for device in sorted(plan.whom.devices):
        if await store.device(app.name, device) is None:
            raise PeerError(f"spec.devices.names: no device {device} in app {app.name}")
    if not plan.whom.devices and not plan.whom.dynamic:
        if not await store.devices(app.name, plan.whom.selector, limit=1):
            raise PeerError("spec.devices.selector: matches no device; with dynamic: true it may come to")


def refuse_conflict(plan: Plan, others: Mapping[str, tuple[Rollout, Plan | None]]) -> None:
    """Raise ConflictError where another rollout of the same priority may mean the same device."""
    for other, its in others.values():
        if its is None or other.status.state in FINAL:
            continue
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
        if (facts.actual is None or facts.actual.version != plan.version)
        and not any(selector.matches(facts.labels) for selector in selectors)
    )


def new_metadata(given: Metadata, app: App, now_s: float) -> Metadata:
    """Return the metadata of a rollout that is made now. The annotation `app` says which app of that name it belongs to."""
    return Metadata(
        name=given.name,
        application=app.name,
        uid=str(uuid.uuid4()),
        creation_timestamp=datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds"),
        generation=1,
        resource_version=secrets.token_hex(8),
        labels=given.labels,
        annotations={**given.annotations, "app": app.metadata.uid},
    )


def four_eyes(app: App) -> bool:
    section = app.spec.get("rollouts")
    return isinstance(section, dict) and section.get("approval") is True


def waiting(plan: Plan, uid: str, status: RolloutStatus, members: Sequence[Facts], wave: int) -> int:
    """Return how many members of a wave do not run the version yet."""
    shares = tuple(int(s) for s in status.shares)
    return sum(
        wave_of(plan, uid, shares, facts) == wave
        for facts in members
        if facts.actual is None or facts.actual.version != plan.version
    )


def scope_of(uid: str) -> str:
    """Return the name under which the store counts for a rollout."""
    return f"rollout/{uid}"
