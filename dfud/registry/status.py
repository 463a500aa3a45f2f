"""status.firmware of a device: what it said, and how far it is from what is desired. Conditions as Drogue's clients read them."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from dfud.api import Actual, App, Deployment, Desired, DeviceView, Firmware, State
from dfud.model.deployment import TWINS_AFTER, TWINS_S, Health
from dfud.model.kinds import APP, SYSTEM
from dfud.model.quickest import Measured, choice_json
from dfud.model.times import time_of
from dfud.wire.manifest import renewal_due
from dfud.wire.messages import Boot, code_name
from dfud.wire.trust import trust_problem


def timestamp(at_s: float) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    return time_of(at_s, "milliseconds")


class _Side(msgspec.Struct):
    """One kind of firmware of a device: what is desired of it, and what of the device is about it."""

    desired: Desired
    target: Firmware | None
    view: DeviceView
    deployment: Deployment | None
    in_sync: dict[str, Any]

    @property
    def good(self) -> bool:
        return bool(self.in_sync["status"] == "True")


def firmware_status(
    app: App, view: DeviceView, target: Firmware | None, desired: Desired, other: Firmware | None = None
) -> dict[str, Any]:
    """Return the value of status.firmware. target, other: the firmware that the specs ask for, of the kind of `desired` and of the
    other one, if it is published. Of the condition InSync both kinds are part; what is the app firmware's own stands under `app`.
    """
    wishes = [(desired, target)] + ([(desired.other, other)] if desired.other is not None else [])
    sides = [_side(app, view, wish, firmware) for wish, firmware in wishes]
    first = next((side for side in sides if not side.good), sides[0])
    actual, deployment = view.actual, first.deployment if first.deployment is not None else sides[0].deployment
    if view.deployment is not None and not view.deployment.final:
        deployment = view.deployment
    in_sync = first.in_sync
    if (
        actual is None and deployment is None
    ):  # nothing was ever heard or decided: it has been so since the device is there
        in_sync["lastTransitionTime"] = view.device.metadata.creation_timestamp or in_sync["lastTransitionTime"]
    conditions = [in_sync]
    if deployment is not None and not deployment.final:
        message = f"{progress_percent(deployment)}"
        conditions.append(_condition("UpdateProgress", "True", deployment.state, message, deployment.updated_s))
    if actual is not None:
        conditions += _of_the_board(actual)
        for side in sides:
            if side.view.actual is not None:
                conditions += _of_the_manifest(side.view.actual, side.deployment, side.target)
    system = next((side for side in sides if side.desired.kind == SYSTEM), None)
    out: dict[str, Any] = {
        "conditions": conditions,
        "current": actual.version if actual is not None else "",
        "target": system.desired.version if system is not None else "",
    }
    program = next((side for side in sides if side.desired.kind == APP), None)
    if program is not None or (actual is not None and actual.program is not None):
        out["app"] = _app_json(actual, program)
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
        if measured := _measured_json(actual.measured):
            out["actual"]["measured"] = measured
        if actual.attributes:
            out["actual"]["attributes"] = actual.attributes
        if actual.health is not None:
            out["actual"]["health"] = health_json(actual.health)
        if actual.defer_reason:
            out["actual"]["deferred"] = {"reason": actual.defer_reason, "until": timestamp(actual.defer_until_s)}
    if desired.hold:
        out["hold"] = desired.reason or True
    if deployment is not None:
        out["deployment"] = deployment_json(deployment)
    return out


def _measured_json(measured: Measured | None) -> dict[str, Any]:
    """Return what transfers have shown, without what they have not."""
    if measured is None:
        return {}
    shown = {"bytesPerSecond": measured.rate, "slowness": measured.slowness / 1000}
    return {key: value for key, value in shown.items() if value}


def _side(app: App, view: DeviceView, desired: Desired, target: Firmware | None) -> _Side:
    actual = view.actual.of(desired.kind) if view.actual is not None else None
    newest = view.deployment.of(desired.kind) if view.deployment is not None else None
    seen = DeviceView(view.device, actual, newest)
    deployment = _that_matters(seen, target)
    barred = trust_problem(app.spec, target.version, target.manifest) if target is not None else ""
    found = _in_sync(desired, actual, deployment, target, barred)
    if view.actual is not None and actual is None and not desired.problem and target is not None:
        text = f"{desired.version} is app firmware, and the device has no banks for it"
        found = _condition("InSync", "False", "NoBanks", text, view.actual.seen_s)
    return _Side(desired, target, seen, deployment, found)


def _app_json(actual: Actual | None, side: _Side | None) -> dict[str, Any]:
    """Return what is said and wanted of the app firmware."""
    program = actual.program if actual is not None else None
    out: dict[str, Any] = {
        "current": program.version if program is not None else "",
        "target": side.desired.version if side is not None else "",
    }
    if side is not None:
        out["inSync"] = {key: side.in_sync[key] for key in ("status", "reason", "message") if key in side.in_sync}
    if program is not None:
        out["actual"] = {
            "version": program.version,
            "sha256": program.sha256,
            "trial": program.trial,
            "sequence": program.sequence,
            "capacity": program.capacity_bytes,
        }
        if program.manifest is not None:
            out["actual"]["manifest"] = program.manifest
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
        **({"package": choice_json(d.choice)} if d.choice is not None and d.choice.package == d.package else {}),
        "attempts": d.attempts,
        "created": timestamp(d.created_s),
        "updated": timestamp(d.updated_s),
    }
    if d.kind == APP:
        out["kind"] = d.kind
    if d.then:
        out["then"] = d.then
    if d.not_before_s:
        out["notBefore"] = timestamp(d.not_before_s)
    if d.blocks:
        out["blocked"] = True
    if d.problem:
        out["problem"] = d.problem
    if d.route is not None:
        out["route"] = {"toward": d.route.toward, "step": d.route.step, "steps": d.route.steps}
    if d.code or d.text or d.crashes:
        out["result"] = {
            "code": d.code,
            "reason": code_name(d.code, d.state),
            "text": d.text,
            "crashes": d.crashes,
            "reset": d.reset_reason,
        }
        if d.record:
            out["result"]["record"] = d.record.hex()
    return out


def health_json(h: Health) -> dict[str, Any]:
    """Return how a device fares: over its life, and since the running image was first seen."""
    out: dict[str, Any] = {
        "starts": h.starts,
        "crashes": h.crashes,
        "image": {"starts": h.starts - h.starts_before, "crashes": h.crashes - h.crashes_before},
        "reset": h.reset_reason,
    }
    if h.text:
        out["text"] = h.text
    if h.crashed_s:
        out["crashed"] = timestamp(h.crashed_s)
    return out


_WEAKER = {
    Boot.ONE_TRIAL: "a new firmware has one trial: it is left at the first reset before it is confirmed",
    Boot.NO_SIGNATURE: "no signature is checked at a start, only by the agent before the switch",
    Boot.NO_FALLBACK: "the bootloader does not go back by itself: firmware that ends before the agent runs stays",
}


def weaker(boot: int) -> str:
    """Say what a device lacks that has another bootloader than dfud's (bits of Boot)."""
    return "; ".join(text for bit, text in _WEAKER.items() if boot & bit) or "what it lacks is not known here"


def _of_the_board(actual: Actual) -> list[dict[str, Any]]:
    """Return the conditions Healthy, where the device counts its crashes, DuplicateIdentity, where there is a sign of it, and
    DfudBootloader, where it has another one."""
    out = []
    if actual.boot:
        out.append(_condition("DfudBootloader", "False", "OtherBootloader", weaker(actual.boot), actual.seen_s))
    health, twins = actual.health, actual.twins
    if health is not None:
        crashes, starts = health.crashes - health.crashes_before, health.starts - health.starts_before
        if crashes > 0:
            last = health.text.strip().rpartition("\n")[2]
            told = f"{crashes} of {starts} starts of {actual.version} ended in a crash" + (f": {last}" if last else "")
            out.append(_condition("Healthy", "False", "Crashed", told, health.crashed_s))
        else:
            out.append(_condition("Healthy", "True", "", "", actual.seen_s))
    if twins is not None and twins.contradictions >= TWINS_AFTER and abs(actual.seen_s - twins.at_s) < TWINS_S:
        told = "two boards use this identity: what runs contradicts what was sent; give each its own"
        out.append(_condition("DuplicateIdentity", "True", "Contradiction", told, twins.at_s))
    return out


def _of_the_manifest(actual: Actual, deployment: Deployment | None, target: Firmware | None) -> list[dict[str, Any]]:
    """Return the condition ManifestCurrent, where a device runs the target under another manifest than it has now."""
    if target is None or actual.sha256 != target.sha256:
        return []
    at_s = deployment.updated_s if deployment is not None else actual.seen_s
    if renewal_due(target.manifest, target.sequence, actual.manifest):
        told = (
            f"it runs {target.version} under the manifest with sequence {actual.manifest}: floor and keys of the one that replaced "
            f"it, sequence {target.sequence}, are not in force there yet; it is sent the image under that one"
        )
    else:
        d = deployment
        if d is None or d.state is not State.DONE or not d.manifest or d.sha256 != target.sha256:
            return []
        if d.manifest == hashlib.sha256(target.manifest).hexdigest():
            return []
        told = (
            f"it keeps the manifest that {target.version} was sent with: what the one that replaced it says is not in force there. "
            "It gets one that has a floor or changes keys, and a higher sequence than its own"
        )
    return [_condition("ManifestCurrent", "False", "Replaced", told, at_s)]


def _that_matters(view: DeviceView, target: Firmware | None) -> Deployment | None:
    """Return the newest deployment, but not a verdict about an image that is wanted no longer, or that runs after all."""
    actual, deployment = view.actual, view.deployment
    if deployment is None or deployment.state not in (State.ROLLED_BACK, State.FAILED):
        return deployment
    if actual is not None and actual.sha256 == deployment.sha256:
        # Of a renewal it runs the image from the beginning: what counts is the manifest.
        renews = deployment.renews > (actual.manifest if actual.manifest is not None else deployment.renews)
        return deployment if renews else None
    return deployment if target is not None and _leads_to(deployment, target) else None


def _leads_to(deployment: Deployment, target: Firmware) -> bool:
    """Say whether a deployment is of the target, or of a step on the way to it."""
    if deployment.sha256 == target.sha256:
        return True
    return deployment.route is not None and deployment.route.toward == target.version


def _in_sync(
    desired: Desired, actual: Actual | None, deployment: Deployment | None, target: Firmware | None, barred: str
) -> dict[str, Any]:
    at_s = deployment.updated_s if deployment is not None else actual.seen_s if actual is not None else 0.0
    if desired.problem:
        return _condition("InSync", "Unknown", "BadSpec", desired.problem, at_s)
    if not desired.version:
        return _condition("InSync", "Unknown", "NothingDesired", "spec.firmware says nothing", at_s)
    if target is None:
        return _condition("InSync", "False", "NotPublished", f"firmware {desired.version} is not published", at_s)
    renewed = actual is not None and renewal_due(target.manifest, target.sequence, actual.manifest) and not barred
    if actual is not None and actual.sha256 == target.sha256 and not renewed:
        if actual.trial:
            return _condition("InSync", "False", "Trial", "runs the target, unconfirmed", at_s)
        return _condition("InSync", "True", "", "", at_s)
    if target.recalled is not None:
        reason = f"{target.version} is recalled: {target.recalled.reason}"
        return _condition("InSync", "False", "Recalled", reason, at_s)
    if barred:
        return _condition("InSync", "False", "NotTrusted", barred, at_s)
    ours = deployment if deployment is not None and _leads_to(deployment, target) else None
    if renewed and ours is not None and ours.renews < target.sequence:
        ours = None  # of the time before this manifest
    if ours is not None and ours.final and not ours.is_between:
        # Done, and yet it runs something else: it went back by itself, later.
        ended = State.ROLLED_BACK if ours.state is State.DONE else ours.state
        if ours.blocks or ours.state is State.DONE:
            return _condition("InSync", "False", ended, ours.text or code_name(ours.code, ours.state), at_s)
        return _condition("InSync", "False", State.PENDING, f"was {ended}, may be tried again", at_s)
    if actual is None:
        return _condition("InSync", "Unknown", "NeverSeen", "the device has not reported yet", at_s)
    if desired.hold:
        return _condition("InSync", "False", "Hold", desired.reason or "on hold", at_s)
    if ours is not None and ours.problem:
        return _condition("InSync", "False", "NotPackaged", ours.problem, at_s)
    # A deployment of another image ends with the device's next status.
    state = ours.state if ours is not None and not ours.final else State.PENDING
    return _condition("InSync", "False", state, _step_of(ours), at_s)


def _step_of(deployment: Deployment | None) -> str:
    route = deployment.route if deployment is not None else None
    if route is None or deployment is None:
        return ""
    return f"step {route.step} of {route.steps}: {deployment.version}"


def _condition(kind: str, status: str, reason: str, message: str, at_s: float) -> dict[str, Any]:
    out: dict[str, Any] = {"type": kind, "status": status, "lastTransitionTime": timestamp(at_s)}
    if reason:
        out["reason"] = str(reason)
    if message:
        out["message"] = message
    return out
