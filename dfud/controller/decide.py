"""What a device's status means for its deployment, and what it is to do next. Pure: values in, values out."""

from __future__ import annotations

import enum

import msgspec

from dfud.controller.case import Case, cause_of, entry_of
from dfud.controller.config import ControllerConfig
from dfud.controller.hear import hear
from dfud.model.deployment import Cause, Deployment, Event, HistoryEntry, State
from dfud.model.desired import Desired, Held
from dfud.model.firmware import Firmware, place_of
from dfud.model.kinds import APP, other_of
from dfud.wire.manifest import beside_of
from dfud.wire.messages import Code, Status

__all__ = ["FULL_AFTER", "Action", "Verdict", "Why", "decide", "entry_of"]

HELD_TEXT = {
    "window": "waits for its maintenance window",
    "rate": "waits for its turn: the rollout tells so many a minute",
    "ceiling": "waits for its turn: so many are being updated at one time",
}
# After these the next attempt gets the package that depends on nothing.
FULL_AFTER = frozenset({Code.IMAGE_HASH, Code.CHUNK, Code.BASE})


class Action(enum.Enum):
    SYNC = "sync"
    WAIT = "wait"
    STOP = "stop"
    SEND = "send"


class Why(enum.Enum):
    """Why a device is told what it is told: stable codes, one for each answer of decide() (docs/rollouts.md)."""

    IN_SYNC = "in-sync"
    TRIAL = "trial"
    NOTHING_WANTED = "nothing-wanted"
    BAD_SPEC = "bad-spec"
    BARRED = "barred"
    RECALLED = "recalled"
    NO_PATH = "no-path"
    RANGE = "range"
    NO_BANKS = "no-banks"
    LEFT = "left"
    WINDOW = "window"
    RATE = "rate"
    CEILING = "ceiling"
    HARDWARE = "hardware"
    TOO_LARGE = "too-large"
    TWIN_ON_TRIAL = "twin-on-trial"
    HOLD = "hold"
    DEFERRED = "deferred"
    BACK_OFF = "back-off"
    DOWNLOAD_ONLY = "download-only"
    SENT = "sent"


Next = tuple[Action, int, Why, str]


class Verdict(msgspec.Struct):
    """deployment: the newest one after this status; steps: what changed, in order, each to be stored with its entry.

    why: the code of the answer; reason: the same in a few words for the device.
    """

    action: Action
    deployment: Deployment | None
    steps: list[tuple[Deployment, HistoryEntry]] = []
    poll_s: int = 0
    reason: str = ""
    why: Why = Why.SENT


def decide(
    *,
    app: str,
    device: str,
    status: Status,
    deployment: Deployment | None,
    desired: Desired,
    target: Firmware | None,
    policy: ControllerConfig,
    now_s: float,
    heard: bool = False,
    twins: bool = False,
) -> Verdict:
    """Work out the consequences of one status.

    deployment: the device's newest; target: the published firmware that `desired` asks for, None if there is none. With
    a target, `desired.problem` says why it may not be sent. heard: what the status says is in the deployment already; only
    what is to be done next is asked. twins: two boards use this identity; then only what a board says outright counts, not
    what follows from the order of their statuses. With action SEND the returned deployment is open, and the caller sends a
    package of it, or WAIT while it makes one.
    """
    policy = _policy_of(policy, desired)
    case = Case(
        app=app,
        device=device,
        status=status,
        deployment=deployment,
        target=target,
        policy=policy,
        now_s=now_s,
        twins=twins,
    )
    if not heard:
        hear(case)
    action, poll_s, why, reason = _next(case, desired)
    return Verdict(action, case.newest, case.steps, poll_s, reason, why)


def _policy_of(policy: ControllerConfig, desired: Desired) -> ControllerConfig:
    """Return the configuration with what a rollout says of attempts."""
    if not desired.attempts and not desired.backoff_s:
        return policy
    first_s = int(desired.backoff_s) or policy.retry_s
    return msgspec.structs.replace(
        policy,
        attempts=desired.attempts or policy.attempts,
        retry_s=first_s,
        retry_max_s=max(first_s, policy.retry_max_s),
    )


def _next(case: Case, desired: Desired) -> Next:
    status, target, policy = case.said, case.target, case.policy
    if status.on_trial:
        # Whatever is wanted meanwhile: first let the running image prove itself or be left.
        return Action.WAIT, policy.busy_poll_s, Why.TRIAL, "on trial"
    barred = desired.problem if target is not None else ""
    current = case.open
    if current is not None and (end := _ends(case, current, desired, barred)):
        case.turn(current.kind)
        case.step(Event.CANCEL, text=end)
        case.turn(case.wanted.of_kind if case.wanted is not None else case.kind)
        current = None
    _pass_by(case, desired)
    status = case.status
    stop = Action.STOP if status.progress is not None else Action.WAIT
    if target is None:
        why = Why.BAD_SPEC if desired.problem else Why.NOTHING_WANTED
        return stop, policy.poll_s, why, desired.problem or "nothing is decided"
    if case.digest == target.sha256 and (barred or not case.due):
        _complete(case, desired)
        action = Action.STOP if stop is Action.STOP else Action.SYNC
        return action, policy.poll_s, Why.IN_SYNC, "it runs what it should"
    if barred:
        if desired.back and (case.deployment is None or not case.deployment.back):
            # It cannot go back: that is counted, and the rollout does not wait for it.
            case.start(target, desired)
            case.step(Event.GIVEN_UP, code=int(Code.REFUSED), text=barred, blocks=True)
        return stop, policy.poll_s, Why(desired.code) if desired.code else Why.BARRED, barred
    if current is None:
        if held := _held_back(case, target, desired):
            return stop, policy.poll_s, Why.LEFT, held
        if desired.held is not None:
            # Nothing is stored of a device before it is its turn.
            code = desired.held.code
            return stop, _until(desired.held, policy, case.now_s), Why(code), HELD_TEXT[code]
        if problem := unfit(case.said, target):
            failed, why, text = problem
            if why is not Why.NO_BANKS or desired.rollout:
                # A wish for all, such as an app's default, passes by the boards that have no banks.
                case.start(target, desired)
                case.step(Event.GIVEN_UP, code=int(failed), text=text, blocks=True)
            return Action.WAIT, policy.poll_s, why, text
        again = case.deployment is not None and case.deployment.sha256 == target.sha256
        case.start(target, desired)
        if case.twins and again and case.deployment is not None:
            # Nothing blocks it, so that at least time stands between one board's update and the next one's.
            later_s = case.now_s + policy.retry_max_s
            case.deployment = msgspec.structs.replace(case.deployment, not_before_s=later_s)
            case.steps[-1] = (case.deployment, case.steps[-1][1])
        current = case.open
    assert current is not None
    return _open(case, current, desired)


def _ends(case: Case, current: Deployment, desired: Desired, barred: str) -> str:
    """Say why the deployment under way ends without an answer, or ""."""
    target = case.target
    if target is None:
        return desired.problem or "nothing is wanted any more"
    if target.sha256 != current.sha256 or barred:
        return desired.problem or "the target changed"
    if _is_taken_over(current, desired):
        # It was not told yet: the rollout that asks for it now tells it in its own time, and counts it.
        return f"{desired.origin} asks for it now"
    return "the manifest changed" if current.renews and not case.due else ""


def _pass_by(case: Case, desired: Desired) -> None:
    """Have a rollout wait no longer for a device that stands between two of its updates, where somebody else speaks for it now."""
    newest = case.newest
    if newest is None or not newest.is_between or newest.counted or not newest.rollout:
        return
    following = other_of(newest.kind) if newest.then else newest.kind
    for one in (desired, desired.other):
        if one is not None and one.rollout == newest.rollout and (one.back or one.kind == following):
            return
    _note(case, "passed-by", f"{desired.origin or 'nobody'} speaks for it now", counted="cancelled")


def _complete(case: Case, desired: Desired) -> None:
    """Both kinds run as they should: a first one of two that waited for the second waits no longer."""
    newest = case.newest
    if newest is None or newest.state is not State.DONE or not newest.then or newest.rollout != desired.rollout:
        return
    _note(case, "completed", f"{newest.then} runs already", then="", counted="")


def _note(case: Case, event: str, text: str, **changes: object) -> None:
    """Change the device's newest deployment within its state, whichever kind it is of."""
    assert case.newest is not None
    kind = case.kind
    case.turn(case.newest.kind)
    case.note(event, text, **changes)
    case.turn(kind)


def _is_taken_over(current: Deployment, desired: Desired) -> bool:
    untold = current.state is State.PENDING and not current.attempts
    return untold and bool(desired.rollout) and current.rollout != desired.rollout


def _open(case: Case, current: Deployment, desired: Desired) -> Next:
    status, policy = case.status, case.policy
    if current.state is State.TRIAL:
        return Action.WAIT, policy.busy_poll_s, Why.TWIN_ON_TRIAL, "another board of this identity is on trial"
    if desired.hold:
        return Action.WAIT, policy.poll_s, Why.HOLD, desired.reason or "on hold"
    if status.defer is not None and (status.defer.own or not desired.forced):
        wait_s = max(1, min(status.defer.retry_s, policy.poll_s))
        return Action.WAIT, wait_s, Why.DEFERRED, "deferred by the device"
    left_s = current.not_before_s - case.now_s
    if left_s > policy.retry_max_s:
        # Nothing waits longer: the clock was set back.
        left_s = float(policy.retry_max_s)
        case.deployment = msgspec.structs.replace(current, not_before_s=case.now_s + left_s)
    if left_s > 0:
        return Action.WAIT, int(left_s) + 1, Why.BACK_OFF, "waits for another attempt"
    if desired.download_only and current.state is State.WRITTEN:
        if (held := desired.held) is not None:
            return Action.WAIT, _until(held, policy, case.now_s), Why(held.code), HELD_TEXT[held.code]
        return Action.WAIT, policy.poll_s, Why.DOWNLOAD_ONLY, "download only"
    if desired.held is not None and current.state is State.PENDING:
        # Decided in its turn, and put off or failed since: its window may be over.
        code = desired.held.code
        return Action.WAIT, _until(desired.held, policy, case.now_s), Why(code), HELD_TEXT[code]
    return Action.SEND, policy.busy_poll_s, Why.SENT, ""


def _until(held: Held, policy: ControllerConfig, now_s: float) -> int:
    """Return when to ask again: when the device's turn may have come, and not later than anybody who has nothing to do."""
    left_s = held.until_s - now_s if held.until_s else float(policy.poll_s)
    return max(1, min(policy.poll_s, int(left_s) + 1))


def _held_back(case: Case, target: Firmware, desired: Desired) -> str:
    """Say why the target is not sent to this device again, or "". What the verdict rested on may have changed."""
    newest = case.deployment
    if newest is None or not newest.blocks or newest.sha256 != target.sha256:
        return ""
    again = desired.rollout == newest.rollout and desired.retries > newest.retry
    if again and newest.state is not State.CANCELLED and unfit(case.said, target) is None:
        return ""  # a user had the rollout try again whatever failed
    ended = _ended(newest, cause_of(case.status, target))
    if not ended:
        return f"{target.version} was left here: {newest.state}"
    case.note("unblocked", ended, blocks=False)
    return ""


def _ended(deployment: Deployment, now: Cause) -> str:
    """Say how the cause of a verdict has ended, or "". What a user decided has no cause but the user."""
    was = deployment.cause
    if was is None or deployment.state is State.CANCELLED:
        return ""
    if was.hardware != now.hardware:
        return f"the hardware was {was.hardware} and is {now.hardware}"
    if was.capacity_bytes != now.capacity_bytes:
        return f"the slot held {was.capacity_bytes} bytes and holds {now.capacity_bytes}"
    if deployment.state is State.FAILED and was.manifest and was.manifest != now.manifest:
        return "the firmware has another manifest"
    if deployment.code == Code.DOWNGRADE and now.sequence < was.sequence:
        return f"the device accepted sequence {was.sequence} and more, now {now.sequence}"
    return ""


def unfit(said: Status, target: Firmware) -> tuple[Code, Why, str] | None:
    """Say why the device that says this could never run the target."""
    status = said.of_app if target.of_kind == APP else said
    if target.more or not target.first_fits(status.hardware, status.attributes):
        meant = "; ".join(image.meant_for for image in target.images)
        return Code.HARDWARE, Why.HARDWARE, f"{target.version} is for {meant}, the device is {_place(status, target)}"
    if said.app is None and target.of_kind == APP:
        return Code.HARDWARE, Why.NO_BANKS, f"{target.version} is app firmware, and the device has no banks for it"
    if said.app is None and beside_of(target.manifest) is not None:
        # Its readers are from before manifests said that, and refuse them.
        text = f"{target.version} says which app firmware it runs with, and the device has no banks for any"
        return Code.HARDWARE, Why.NO_BANKS, text
    if target.size_bytes > status.capacity:
        place = "bank" if target.of_kind == APP else "slot"
        text = f"{target.version} has {target.size_bytes} bytes, the {place} holds {status.capacity}"
        return Code.TOO_LARGE, Why.TOO_LARGE, text
    return None


def _place(status: Status, target: Firmware) -> str:
    """Say what a device is, as far as the images of a version ask for it."""
    asked = {key for image in target.images for key in image.attributes}
    return place_of(status.hardware, {key: value for key, value in status.attributes.items() if key in asked})
