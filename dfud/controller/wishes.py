"""What users ask of a device's update, as a change of its deployment: stored, it outlives everything. Pure."""

from __future__ import annotations

import msgspec

from dfud.api import Actual, Deployment, Firmware, RefusedError, State
from dfud.controller.case import new_deployment
from dfud.model.deployment import Event


def retried(deployment: Deployment | None, now_s: float) -> Deployment | None:
    """Return the deployment after "retry", or None if nothing holds the device back.

    Of both kinds: a user says it of the device. An open one begins to count anew; and as the user may know more than dfud has
    heard, its verdict will not block.
    """
    if deployment is None or (deployment.final and not any(d.blocks for d in deployment.both)):
        return None
    other = deployment.other
    if other is not None and other.blocks:
        other = msgspec.structs.replace(other, blocks=False, updated_s=now_s)
    return msgspec.structs.replace(
        deployment,
        blocks=False,
        pardoned=not deployment.final,
        attempts=0,
        stalls=0,
        repeats=0,
        not_before_s=0.0,
        updated_s=now_s,
        other=other,
    )


def nothing_to_do(device: str, target: Firmware | None, actual: Actual | None) -> str:
    """Return in words why no update of a device can be meant, or "". target: what it should run."""
    if target is None:
        return f"no firmware is wanted of device {device}"
    seen = actual.of(target.of_kind) if actual is not None else None
    if seen is not None and seen.sha256 == target.sha256 and not seen.trial:
        return f"device {device} runs {target.version} already"
    return ""


def cancelled(
    app: str,
    device: str,
    deployment: Deployment | None,
    actual: Actual | None,
    target: Firmware | None,
    by: str,
    now_s: float,
) -> Deployment | None:
    """Return the deployment after "cancel", or None if there is nothing to end.

    A device that is away has no deployment of what it should run yet: it gets one that has ended, which blocks. Raises
    RefusedError for a device on trial: it decides, and cancelling would only make dfud's picture wrong.
    """
    text = f"cancelled by {by}"
    if deployment is not None and deployment.state is State.TRIAL:
        raise RefusedError(
            f"device {device} runs {deployment.version} on trial: it confirms it or goes back by itself; "
            "to replace it, say which firmware should run"
        )
    if deployment is not None and not deployment.final:
        return deployment.step(Event.CANCEL, now_s, text=text, blocks=True)
    seen = actual.of(target.of_kind) if actual is not None and target is not None else None
    if target is None or (seen is not None and seen.sha256 == target.sha256):
        return None
    last = deployment.of(target.of_kind) if deployment is not None else None
    if last is not None and last.blocks and last.sha256 == target.sha256:
        return None
    made = new_deployment(
        app,
        device,
        target,
        deployment,
        now_s,
        version=seen.version if seen is not None else "",
        sha256=seen.sha256 if seen is not None else "",
    )
    return made.step(Event.CANCEL, now_s, text=text, blocks=True)
