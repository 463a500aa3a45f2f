"""What comes next in a rollout: whether its wave is good, bad, or has to wait. Pure: the same counts and time, the same answer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dfud.errors import BugError
from dfud.model.counts import REVERT_WAVE, WaveCounts
from dfud.model.rollout import OnError, Plan, RolloutStatus, Wave
from dfud.model.rollout_states import ACTIVE, Event, State, advance

NONE = WaveCounts()
CLOCK_S = 60.0  # by so much a clock may be set right without anything beginning anew


class Step(msgspec.Struct, frozen=True):
    """One transition that was made, for the audit and the event stream."""

    event: Event
    before: State
    after: State
    code: str = ""
    reason: str = ""


def apply(
    status: RolloutStatus, event: Event, now_s: float, *, code: str = "", reason: str = "", by: str = ""
) -> RolloutStatus:
    """Return the status after one event; raise BugError where the table has no such step."""
    state = advance(status.state, event)
    if state is None:
        raise BugError(f"rollout: no step from {status.state} on {event}")
    reverted = status.reverted or (status.state is State.REVERTING and event is Event.FINISH)
    return msgspec.structs.replace(
        status, state=state, since_s=now_s, code=code, reason=reason, by=by, reverted=reverted
    )


def step(
    plan: Plan, status: RolloutStatus, counts: Mapping[int, WaveCounts], now_s: float
) -> tuple[RolloutStatus, list[Step]]:
    """Make every transition that is due; return the status after them, and them.

    START is not among them: it needs to know the fleet. Opening a wave (NEXT) leaves `expected` for it to be set: the caller
    counts the wave's devices.
    """
    steps: list[Step] = []
    while (due := _due(plan, status, counts, now_s)) is not None:
        event, code, reason = due
        before = status.state
        status = apply(status, event, now_s, code=code, reason=reason)
        if event is Event.NEXT:
            status = msgspec.structs.replace(status, wave=status.wave + 1, wave_since_s=now_s)
        steps.append(Step(event, before, status.state, code, reason))
        if event is Event.NEXT:
            break
    return status, steps


def of_now(status: RolloutStatus, now_s: float) -> RolloutStatus:
    """Return the status with no time that is still to come: where the clock was set back, what had begun begins now."""
    if max(status.since_s, status.wave_since_s) <= now_s + CLOCK_S:
        return status
    return msgspec.structs.replace(
        status, since_s=min(status.since_s, now_s), wave_since_s=min(status.wave_since_s, now_s)
    )


def _due(
    plan: Plan, status: RolloutStatus, counts: Mapping[int, WaveCounts], now_s: float
) -> tuple[Event, str, str] | None:
    if status.state is State.REVERTING:
        if _reverted(counts):
            stayed = counts.get(REVERT_WAVE, NONE).bad
            more = f"; {stayed} devices could not go back" if stayed else ""
            return Event.FINISH, status.code, f"{status.reason or 'taken back'}{more}"
        return None
    if status.state not in ACTIVE:
        return None
    if bad := _too_bad(plan, status, counts):
        return (Event.REVERT if plan.on_error is OnError.REVERT else Event.PAUSE), "error-threshold", bad
    if plan.end_s and now_s >= plan.end_s:
        return Event.PAUSE, "ended", "its end has come before all devices were updated"
    wave = plan.waves[status.wave]
    found = without(counts.get(status.wave, NONE), _forgiven(status, status.wave))
    devices, open_s = expected(status, status.wave) - _forgiven(status, status.wave), now_s - status.wave_since_s
    good = is_good(wave, found, devices, open_s)
    if status.state is State.TELLING:
        if good:
            return Event.GOOD, "", ""
        if found.told and not found.under_way and (found.told >= devices or open_s >= wave.silent_s):
            limit = f"{wave.success.count}" if wave.success.count else f"{wave.success.percent:g} %"
            reason = f"wave {status.wave + 1}: {found.done} of {found.told} devices took it, expected at least {limit}"
            return Event.PAUSE, "success-missed", reason
        return None
    if not good:
        return Event.WORSE, "", ""
    if status.state is State.SOAKING and now_s >= status.since_s + wave.soak_s:
        if status.wave + 1 >= len(plan.waves):
            return Event.FINISH, "", ""
        return (Event.ASK if wave.approval else Event.NEXT), "", ""
    return None


def expected(status: RolloutStatus, wave: int) -> int:
    """Return how many devices a wave had when it opened."""
    return status.expected[wave] if wave < len(status.expected) else 0


def is_good(wave: Wave, counts: WaveCounts, devices: int, open_s: float) -> bool:
    """Say whether a wave's success condition holds. devices: how many it had when it opened; open_s: how long ago that was.

    All of them have to be told first, but for those that were silent for too long; whose update was cancelled is waited for no
    longer. A wave without devices is good.
    """
    told = counts.told
    if told + counts.cancelled < devices and open_s < wave.silent_s:
        return False
    if not told:
        return True
    return wave.success.reached(counts.done, told)


def _too_bad(plan: Plan, status: RolloutStatus, counts: Mapping[int, WaveCounts]) -> str:
    for number, wave in enumerate(plan.waves[: status.wave + 1]):
        found = counts.get(number, NONE)
        forgiven = _forgiven(status, number)
        if wave.error.exceeded(found.bad - forgiven, found.answered - forgiven):
            limit = f"less than {wave.error.count}" if wave.error.count else f"at most {wave.error.percent:g} %"
            failed = f"{found.bad} of {found.answered} devices that answered failed or went back"
            return f"wave {number + 1}: {failed}, expected {limit}"
    return ""


def _forgiven(status: RolloutStatus, wave: int) -> int:
    return status.forgiven[wave] if wave < len(status.forgiven) else 0


def without(counts: WaveCounts, forgiven: int) -> WaveCounts:
    """Return the counts without so many that failed."""
    left = min(forgiven, counts.left)
    failed = min(forgiven - left, counts.failed)
    return msgspec.structs.replace(counts, left=counts.left - left, failed=counts.failed - failed)


def forgive(status: RolloutStatus, counts: Mapping[int, WaveCounts]) -> RolloutStatus:
    """Return the status of a rollout that a user resumes: what failed so far counts no longer against it."""
    bad = tuple(counts.get(number, NONE).bad for number in range(status.wave + 1))
    return msgspec.structs.replace(status, forgiven=bad)


def _reverted(counts: Mapping[int, WaveCounts]) -> bool:
    """Say whether nobody runs it any longer and nobody is on the way, either way."""
    took = sum(c.done + c.under_way for number, c in counts.items() if number != REVERT_WAVE)
    return took == 0 and counts.get(REVERT_WAVE, NONE).under_way == 0


def next_time(plan: Plan, status: RolloutStatus, now_s: float) -> float | None:
    """Return when step() has to be asked again even if nothing is counted, or None."""
    times: list[float] = []
    if status.state is State.SCHEDULED:
        times.append(plan.start_s)
    elif status.state in ACTIVE:
        wave = plan.waves[status.wave]
        times += [plan.end_s, status.wave_since_s + wave.silent_s]
        if status.state is State.SOAKING:
            times.append(status.since_s + wave.soak_s)
    return min((t for t in times if t > now_s), default=None)
