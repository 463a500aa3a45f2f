"""What a status says about the newest deployment of its device. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from dfud.controller.case import Case, entry_of
from dfud.model.deployment import Deployment, Event, HistoryEntry, State
from dfud.wire.messages import Code, Outcome, Phase, Result

# The device, the network or the package may be better next time; with the others it would be the same again.
RETRYABLE = frozenset({Code.IMAGE_HASH, Code.CHUNK, Code.BASE, Code.FLASH, Code.INTERNAL})
# A result that is told again without a number of its own may be a new one that reads the same; after so many commands it is.
REPEATS_MAX = 10
STALLS_MAX = 3  # restarts in a row without getting further that make one failed attempt
SERVED_MAX = 3  # times the package's chunks, and SERVED_MORE: fetched more often, it will never be whole
SERVED_MORE = 32
# What a result says, where there is none.
_NOTHING: dict[str, object] = {"code": 0, "text": "", "crashes": 0, "reset_reason": 0, "record": b""}


def fingerprint(result: Result) -> str:
    """Return what tells one result from another."""
    return hashlib.sha256(repr(msgspec.structs.astuple(result)).encode()).hexdigest()[:16]


def hear(case: Case) -> None:
    """Take what the status says about the newest deployment of each kind. Leaves the case at the kind that it was at."""
    kind = case.kind
    if case.newest is not None:
        # The other one is over. Its verdict is in place before the newest is stored.
        for deployment in case.newest.both[::-1]:
            case.turn(deployment.kind)
            _hear(case)
    case.turn(kind)


def _hear(case: Case) -> None:
    newest = case.deployment
    if newest is None:
        return
    result = case.status.result
    if result is not None and (result.digest.hex() != newest.sha256 or result.outcome == Outcome.CONFIRMED):
        result = None
    if result is not None and _is_repeated(newest, result):
        result = None
    if newest.final:
        _hear_late(case, newest, result)
    else:
        _hear_open(case, newest, result)


def _is_repeated(deployment: Deployment, result: Result) -> bool:
    """Say whether this very result has been judged: a device repeats it until an answer arrives.

    With a number it is certain. Without, two failures may read alike: then it is the old one unless something was fetched
    since, or too many commands went out.
    """
    if not deployment.judged or deployment.judged != fingerprint(result):
        return False
    if result.number or deployment.final:
        return True
    return deployment.state in (State.PENDING, State.NOTIFIED) and deployment.repeats <= REPEATS_MAX


def _told(result: Result) -> dict[str, object]:
    return {
        "code": result.code,
        "text": result.text,
        "crashes": result.attempts,
        "reset_reason": result.reset,
        "record": result.record,
        "judged": fingerprint(result),
    }


def _hear_late(case: Case, newest: Deployment, result: Result | None) -> None:
    """It is over, and yet: a confirmed image may be left later, and a reason may come behind a verdict."""
    if case.runs(newest):
        # Of two boards, this one does not outweigh what the other one says outright.
        believed = not case.twins or not newest.judged
        if newest.state in (State.ROLLED_BACK, State.FAILED) and not case.status.trial and believed:
            case.step(Event.CONFIRMED, blocks=False, **_NOTHING)
        return
    if result is not None and result.outcome == Outcome.ROLLED_BACK:
        # A reason that comes late does not undo what a user said meanwhile.
        blocks = newest.blocks if newest.state is State.ROLLED_BACK else True
        case.step(Event.LEFT, **(_told(result) | {"blocks": blocks}))
        return
    target = case.target
    went_back = newest.state is State.DONE and case.digest == newest.from_sha256
    if went_back and target is not None and target.sha256 == newest.sha256 and not case.twins:
        # Sent again it would go round for ever.
        text = "it ran this firmware and then its old one again"
        case.step(Event.LEFT, blocks=True, **(_NOTHING | {"text": text, "judged": ""}))


def _hear_open(case: Case, current: Deployment, result: Result | None) -> None:
    status = case.status
    if result is not None:
        if result.outcome == Outcome.ROLLED_BACK:
            case.step(Event.LEFT, **(_told(result) | {"blocks": not current.pardoned}))
        else:
            failed_attempt(case, current, _told(result))
        return
    if case.runs(current):
        if case.twins and not status.trial and current.state in (State.PENDING, State.NOTIFIED, State.FETCHING):
            return  # the other board, which has it already
        # Whatever an earlier attempt said is outdated by an image that runs.
        case.step(Event.BOOTED if status.trial else Event.CONFIRMED, problem="", **_NOTHING)
        return
    if current.state is State.TRIAL:
        if not case.twins:
            text = "it runs its old image again and does not say why"
            told = _NOTHING | {"code": int(Code.CRASHED), "text": text, "judged": ""}
            case.step(Event.LEFT, blocks=not current.pardoned, **told)
        return
    _hear_progress(case, current)


def _hear_progress(case: Case, current: Deployment) -> None:
    progress = case.status.progress
    gone: dict[str, object] = {"code": int(Code.INTERNAL), "text": "what it had written is gone"}
    if progress is not None and progress.package.hex() == current.package:
        if progress.phase == Phase.WRITTEN:
            repeats = current.repeats if current.state is State.WRITTEN else 0
            total = current.chunks_total
            case.step(Event.WRITTEN, chunks_done=total, repeats=repeats, furthest=max(total, current.furthest))
        elif current.state is State.WRITTEN and current.stalls + 1 >= STALLS_MAX:
            failed_attempt(case, current, gone)
        elif current.served > SERVED_MAX * current.chunks_total + SERVED_MORE:
            text = f"it fetched {current.served} chunks, the package has {current.chunks_total}, and it is not whole"
            failed_attempt(case, current, {"code": int(Code.INTERNAL), "text": text})
        else:
            done = min(progress.next, current.chunks_total)
            stalls = current.stalls + (current.state is State.WRITTEN)
            case.step(Event.CHUNK, chunks_done=done, repeats=0, not_before_s=0.0, stalls=stalls)
    elif progress is None and current.state is State.WRITTEN:
        failed_attempt(case, current, gone)
    elif progress is None and current.state is State.FETCHING:
        _started_over(case, current)


def _started_over(case: Case, current: Deployment) -> None:
    """A restart costs nothing while the device gets further from one to the next."""
    done = current.chunks_done
    if done > current.furthest:
        case.step(Event.STARTED_OVER, chunks_done=0, furthest=done, stalls=0)
        return
    stalls = current.stalls + 1
    if stalls < STALLS_MAX:
        case.step(Event.STARTED_OVER, chunks_done=0, stalls=stalls)
        return
    text = f"it started over {stalls} times and did not get beyond chunk {current.furthest} of {current.chunks_total}"
    failed_attempt(case, current, {"code": int(Code.INTERNAL), "text": text})


def failed_attempt(case: Case, current: Deployment, told: dict[str, object]) -> None:
    """Have the next attempt wait, or give up."""
    policy, attempts = case.policy, current.attempts + 1
    if told["code"] not in RETRYABLE or attempts >= policy.attempts:
        case.step(Event.GIVEN_UP, attempts=attempts, **(told | {"blocks": not current.pardoned}))
        return
    changes = {
        "attempts": attempts,
        "not_before_s": case.now_s + wait_s(policy.retry_s, policy.retry_max_s, attempts),
        "chunks_done": 0,
        "package": "",
        "stalls": 0,
        "served": 0,
        "repeats": 0,
    }
    case.step(Event.ATTEMPT_FAILED, **(told | changes))


def wait_s(first_s: float, longest_s: float, number: int) -> float:
    """Return how long to wait after the failure of this number, from 1: doubled each time up to the longest."""
    return min(first_s * 2.0 ** min(number - 1, 30), longest_s)


def explained(older: Deployment, result: Result, now_s: float) -> tuple[Deployment, HistoryEntry] | None:
    """Return an older, final deployment with what a result says of it, or None if that was judged before."""
    if older.judged == fingerprint(result):
        return None
    told = _told(result) | {"updated_s": now_s}
    event = "told"
    if result.outcome == Outcome.ROLLED_BACK:
        told["state"], event = State.ROLLED_BACK, str(Event.LEFT)
    after = msgspec.structs.replace(older, **told)
    return after, entry_of(after, event)
