"""What a device's status means for its deployment, and what it is to do next. Pure: values in, values out."""

from __future__ import annotations

import enum
import uuid

import msgspec

from dfud.controller.config import ControllerConfig
from dfud.model.deployment import Deployment, Event, HistoryEntry, State, advance
from dfud.model.desired import Desired
from dfud.model.firmware import Firmware
from dfud.wire.messages import Code, Outcome, Phase, Status

# The device, the network or the package may be better next time; with the others it would be the same again.
RETRYABLE = frozenset({Code.IMAGE_HASH, Code.CHUNK, Code.BASE, Code.FLASH, Code.INTERNAL})
# After these the next attempt gets the package that depends on nothing.
FULL_AFTER = frozenset({Code.IMAGE_HASH, Code.CHUNK, Code.BASE})


class Action(enum.Enum):
    SYNC = "sync"
    WAIT = "wait"
    STOP = "stop"
    SEND = "send"


class Verdict(msgspec.Struct):
    """deployment: the newest one after this status; steps: what changed, in order, each to be stored with its entry."""

    action: Action
    deployment: Deployment | None
    steps: list[tuple[Deployment, HistoryEntry]] = []
    poll_s: int = 0
    reason: str = ""


def entry_of(deployment: Deployment, event: str) -> HistoryEntry:
    d = deployment
    return HistoryEntry(d.id, d.app, d.device, d.updated_s, d.state, d.version, event, d.code, d.text)


class _Case:
    """One decision under way: the deployment as it changes, and the steps."""

    def __init__(self, deployment: Deployment | None, now_s: float) -> None:
        self.deployment = deployment
        self.now_s = now_s
        self.steps: list[tuple[Deployment, HistoryEntry]] = []

    @property
    def open(self) -> Deployment | None:
        return self.deployment if self.deployment is not None and not self.deployment.final else None

    def step(self, event: Event, **changes: object) -> None:
        """Apply `event` where the table has it; a step that changes nothing but progress is not history."""
        before = self.open
        if before is None or advance(before.state, event) is None:
            return
        after = before.step(event, self.now_s, **changes)
        self.deployment = after
        if after.state is not before.state:
            self.steps.append((after, entry_of(after, event)))

    def start(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.steps.append((deployment, entry_of(deployment, "created")))


def decide(
    app: str,
    device: str,
    status: Status,
    deployment: Deployment | None,
    desired: Desired,
    target: Firmware | None,
    policy: ControllerConfig,
    now_s: float,
) -> Verdict:
    """Work out the consequences of one status.

    deployment: the device's newest; target: the published firmware that `desired` asks for, None if there is none. With
    action SEND the returned deployment is open, and the caller sends a package of it, or WAIT while it makes one.
    """
    case = _Case(deployment, now_s)
    _hear(case, status, policy)
    action, poll_s, reason = _next(case, app, device, status, desired, target, policy)
    return Verdict(action, case.deployment, case.steps, poll_s, reason)


def _hear(case: _Case, status: Status, policy: ControllerConfig) -> None:
    """Take what the status says about the open deployment."""
    current = case.open
    if current is None:
        return
    digest = status.digest.hex()
    result = status.result
    if result is not None and result.digest.hex() == current.sha256 and result.outcome != Outcome.CONFIRMED:
        told = {
            "code": result.code,
            "text": result.text,
            "crashes": result.attempts,
            "reset_reason": result.reset,
            "record": result.record,
        }
        if result.outcome == Outcome.ROLLED_BACK:
            case.step(Event.LEFT, blocks=True, **told)
        else:
            _failed_attempt(case, current, policy, told)
        return
    if digest == current.sha256:
        # Whatever an earlier attempt said is outdated by an image that runs.
        case.step(Event.BOOTED if status.trial else Event.CONFIRMED, code=0, text="")
        return
    if current.state is State.TRIAL:
        case.step(
            Event.LEFT, blocks=True, code=int(Code.CRASHED), text="it runs its old image again and does not say why"
        )
        return
    progress = status.progress
    if progress is not None and progress.package.hex() == current.package:
        if progress.phase == Phase.WRITTEN:
            case.step(Event.WRITTEN, chunks_done=current.chunks_total)
        else:
            case.step(Event.CHUNK, chunks_done=min(progress.next, current.chunks_total))
    elif progress is None and current.state is State.WRITTEN:
        _failed_attempt(case, current, policy, {"code": int(Code.INTERNAL), "text": "what it had written is gone"})
    elif progress is None and current.state is State.FETCHING:
        case.step(Event.STARTED_OVER, chunks_done=0)


def _failed_attempt(case: _Case, current: Deployment, policy: ControllerConfig, told: dict[str, object]) -> None:
    attempts = current.attempts + 1
    if told["code"] not in RETRYABLE or attempts >= policy.attempts:
        case.step(Event.GIVEN_UP, attempts=attempts, blocks=True, **told)
        return
    wait_s = min(policy.retry_s * 2 ** (attempts - 1), policy.retry_max_s)
    case.step(
        Event.ATTEMPT_FAILED, attempts=attempts, not_before_s=case.now_s + wait_s, chunks_done=0, package="", **told
    )


def _next(
    case: _Case,
    app: str,
    device: str,
    status: Status,
    desired: Desired,
    target: Firmware | None,
    policy: ControllerConfig,
) -> tuple[Action, int, str]:
    digest = status.digest.hex()
    if status.trial:
        # Whatever is wanted meanwhile: first let the running image prove itself or be left.
        return Action.WAIT, policy.busy_poll_s, "on trial"
    current = case.open
    if current is not None and (target is None or target.sha256 != current.sha256):
        case.step(Event.CANCEL, text="the target changed" if target is not None else "nothing is wanted any more")
        current = None
    fetching = status.progress is not None
    if target is None:
        return (Action.STOP if fetching else Action.WAIT), policy.poll_s, desired.problem or "nothing is decided"
    if digest == target.sha256:
        return (Action.STOP if fetching else Action.SYNC), policy.poll_s, "it runs what it should"
    if current is None:
        newest = case.deployment
        if newest is not None and newest.blocks and newest.sha256 == target.sha256:
            return (
                (Action.STOP if fetching else Action.WAIT),
                policy.poll_s,
                f"{target.version} was left here: {newest.state}",
            )
        if problem := _unfit(status, target):
            _refuse(case, app, device, status, target, problem)
            return Action.WAIT, policy.poll_s, problem[1]
        case.start(_new(app, device, status, target, case.now_s))
        current = case.open
    assert current is not None
    if desired.hold:
        return Action.WAIT, policy.poll_s, desired.reason or "on hold"
    if status.defer is not None:
        return Action.WAIT, max(1, min(status.defer.retry_s, policy.poll_s)), "deferred by the device"
    if case.now_s < current.not_before_s:
        return Action.WAIT, int(current.not_before_s - case.now_s) + 1, "waits for another attempt"
    if desired.download_only and current.state is State.WRITTEN:
        return Action.WAIT, policy.poll_s, "download only"
    return Action.SEND, policy.busy_poll_s, ""


def _unfit(status: Status, target: Firmware) -> tuple[Code, str] | None:
    """Say why this device could never run the target."""
    if target.hardware != status.hardware:
        return Code.HARDWARE, f"{target.version} is for {target.hardware}, the device is {status.hardware}"
    if target.size_bytes > status.capacity:
        return Code.TOO_LARGE, f"{target.version} has {target.size_bytes} bytes, the slot holds {status.capacity}"
    return None


def _new(app: str, device: str, status: Status, target: Firmware, now_s: float) -> Deployment:
    return Deployment(
        uuid.uuid4().hex,
        app,
        device,
        target.version,
        target.sha256,
        State.PENDING,
        now_s,
        now_s,
        status.version,
        status.digest.hex(),
    )


def _refuse(case: _Case, app: str, device: str, status: Status, target: Firmware, problem: tuple[Code, str]) -> None:
    case.start(_new(app, device, status, target, case.now_s))
    case.step(Event.GIVEN_UP, code=int(problem[0]), text=problem[1], blocks=True)
