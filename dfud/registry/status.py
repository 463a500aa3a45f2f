"""status.firmware of a device: what it said, and how far it is from what is desired. Conditions as Drogue's clients read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dfud.api import App, Deployment, Desired, DeviceView, Firmware, State
from dfud.model.desired import desired_of
from dfud.wire.messages import Code


def timestamp(at_s: float) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def firmware_status(app: App, view: DeviceView, target: Firmware | None) -> dict[str, Any]:
    """Return the value of status.firmware. `target` is the firmware that the specs ask for, if it is published."""
    desired = desired_of(app.spec, view.device.spec)
    actual, deployment = view.actual, view.deployment
    conditions = [_in_sync(desired, view, target)]
    if deployment is not None and not deployment.final:
        message = f"{progress_percent(deployment)}"
        conditions.append(_condition("UpdateProgress", "True", deployment.state, message, deployment.updated_s))
    out: dict[str, Any] = {
        "conditions": conditions,
        "current": actual.version if actual is not None else "",
        "target": desired.version,
    }
    if actual is not None:
        out["actual"] = {
            "version": actual.version,
            "sha256": actual.sha256,
            "hardware": actual.hardware,
            "trial": actual.trial,
            "sequence": actual.sequence,
            "seen": timestamp(actual.seen_s),
            "transport": actual.transport,
            "dialect": actual.dialect,
        }
        if actual.attributes:
            out["actual"]["attributes"] = actual.attributes
        if actual.defer_reason:
            out["actual"]["deferred"] = {"reason": actual.defer_reason, "until": timestamp(actual.defer_until_s)}
    if desired.hold:
        out["hold"] = desired.reason or True
    if deployment is not None:
        out["deployment"] = deployment_json(deployment)
    return out


def progress_percent(deployment: Deployment) -> float:
    if deployment.state in (State.WRITTEN, State.TRIAL, State.DONE):
        return 100.0
    return round(100.0 * deployment.chunks_done / deployment.chunks_total, 1) if deployment.chunks_total else 0.0


def deployment_json(d: Deployment) -> dict[str, Any]:
    """Return a deployment as users see it."""
    out: dict[str, Any] = {
        "id": d.id,
        "state": d.state,
        "from": d.from_version,
        "version": d.version,
        "progress": progress_percent(d),
        "chunks": {"done": d.chunks_done, "total": d.chunks_total},
        "bytes": d.bytes_total,
        "attempts": d.attempts,
        "created": timestamp(d.created_s),
        "updated": timestamp(d.updated_s),
    }
    if d.not_before_s:
        out["notBefore"] = timestamp(d.not_before_s)
    if d.blocks:
        out["blocked"] = True
    if d.code or d.text or d.crashes:
        out["result"] = {
            "code": d.code,
            "reason": code_name(d.code),
            "text": d.text,
            "crashes": d.crashes,
            "reset": d.reset_reason,
        }
        if d.record:
            out["result"]["record"] = d.record.hex()
    return out


def code_name(code: int) -> str:
    try:
        return Code(code).name.lower().replace("_", "-")
    except ValueError:
        return f"code-{code}"


def _in_sync(desired: Desired, view: DeviceView, target: Firmware | None) -> dict[str, Any]:
    actual, deployment = view.actual, view.deployment
    at_s = deployment.updated_s if deployment is not None else actual.seen_s if actual is not None else 0.0
    if desired.problem:
        return _condition("InSync", "Unknown", "BadSpec", desired.problem, at_s)
    if not desired.version:
        return _condition("InSync", "Unknown", "NothingDesired", "spec.firmware says nothing", at_s)
    if target is None:
        return _condition("InSync", "False", "NotPublished", f"firmware {desired.version} is not published", at_s)
    if actual is None:
        return _condition("InSync", "Unknown", "NeverSeen", "the device has not reported yet", at_s)
    if actual.sha256 == target.sha256:
        if actual.trial:
            return _condition("InSync", "False", "Trial", "runs the target, unconfirmed", at_s)
        return _condition("InSync", "True", "", "", at_s)
    if deployment is not None and deployment.sha256 == target.sha256 and deployment.final:
        # Done, and yet it runs something else: it went back by itself, later.
        state = State.ROLLED_BACK if deployment.state is State.DONE else deployment.state
        return _condition("InSync", "False", state, deployment.text or code_name(deployment.code), at_s)
    if desired.hold:
        return _condition("InSync", "False", "Hold", desired.reason or "on hold", at_s)
    return _condition("InSync", "False", deployment.state if deployment else State.PENDING, "", at_s)


def _condition(kind: str, status: str, reason: str, message: str, at_s: float) -> dict[str, Any]:
    out: dict[str, Any] = {"type": kind, "status": status, "lastTransitionTime": timestamp(at_s)}
    if reason:
        out["reason"] = str(reason)
    if message:
        out["message"] = message
    return out
