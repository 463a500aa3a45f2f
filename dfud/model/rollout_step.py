"""What comes next in a rollout: whether its wave is good, bad, or has to wait. Pure: the same counts and time, the same answer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dfud.errors import BugError
from dfud.model.counts import REVERT_WAVE, WaveCounts
from dfud.model.rollout import Mode, OnError, Plan, RolloutStatus, Wave
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
    status = _with_fewer_forgiven(status, counts)
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
        if status.settled or _reverted(counts):
            stayed, lost = counts.get(REVERT_WAVE, NONE).bad, sum(status.silent)
            more = f"; {stayed} devices could not go back" if stayed else ""
            more += f"; {lost} have not been heard of" if lost else ""
            return Event.FINISH, status.code, f"{status.reason or 'taken back'}{more}"
        return None
    if status.state not in ACTIVE:
        return None
    if bad := _too_bad(plan, status, counts):
        return (Event.REVERT if plan.on_error is OnError.REVERT else Event.PAUSE), "error-threshold", bad
    if plan.end_s and now_s >= plan.end_s:
        return Event.PAUSE, "ended", "its end has come before all devices were updated"
    wave = plan.waves[status.wave]
    found = _as_answered(plan, status, without(counts.get(status.wave, NONE), _forgiven(status, status.wave)))
    devices = expected(status, status.wave) - _forgiven(status, status.wave)
    silent = status.silent[status.wave] if status.wave < len(status.silent) else 0
    good = is_good(wave, found, devices, silent)
    if status.state is State.TELLING:
        if good:
            return Event.GOOD, "", ""
        return _missed(wave, found, devices, silent, status.wave)
    if not good:
        return Event.WORSE, "", ""
    if status.state is State.SOAKING and now_s >= status.since_s + (0.0 if is_writing(plan, status) else wave.soak_s):
        if status.wave + 1 >= len(plan.waves):
            return (Event.STORE if is_writing(plan, status) else Event.FINISH), "", ""
        return (Event.ASK if wave.approval and not is_writing(plan, status) else Event.NEXT), "", ""
    return None


def is_writing(plan: Plan, status: RolloutStatus) -> bool:
    """Say whether waves are about writing the image, which nobody runs yet. Then nothing has to soak or to be approved."""
    return plan.mode is Mode.DOWNLOAD and not status.activated_s


def _as_answered(plan: Plan, status: RolloutStatus, counts: WaveCounts) -> WaveCounts:
    """Return the counts with those who have only written it as done, or as under way where they were to switch."""
    if not counts.written:
        return counts
    field = "done" if is_writing(plan, status) else "under_way"
    return msgspec.structs.replace(counts, written=0, **{field: getattr(counts, field) + counts.written})


def _missed(wave: Wave, found: WaveCounts, devices: int, silent: int, number: int) -> tuple[Event, str, str] | None:
    """Say that all of a wave have answered, but for those that are silent, and too few took it."""
    if not found.told or found.told + found.cancelled < devices or found.under_way > silent:
        return None
    limit = f"{wave.success.count}" if wave.success.count else f"{wave.success.percent:g} %"
    told, more = found.told - silent, f"; {silent} more were told and are silent" if silent else ""
    reason = f"wave {number + 1}: {found.done} of {told} devices took it, expected at least {limit}{more}"
    return Event.PAUSE, "success-missed", reason


def expected(status: RolloutStatus, wave: int) -> int:
    """Return how many devices a wave had when it opened."""
    return status.expected[wave] if wave < len(status.expected) else 0


def is_good(wave: Wave, counts: WaveCounts, devices: int, silent: int) -> bool:
    """Say whether a wave's success condition holds. devices: how many it has (recounted()); silent: of those told, how many have not
    been heard of for too long.

    All of them have to be told first; whose update was cancelled is waited for no longer. A wave without devices is good.
    """
    if counts.told + counts.cancelled < devices:
        return False
    if not counts.told:
        return True
    return wave.success.reached(counts.done, counts.told - min(silent, counts.under_way))


def waits_for_somebody(
    plan: Plan, status: RolloutStatus, counts: Mapping[int, WaveCounts], now_s: float, *, moved: bool
) -> bool:
    """Say whether it is worth looking at the fleet: the wave waits for devices that may have gone, or been silent for too long.

    moved: whether a device has changed since the last look.
    """
    if status.state is State.REVERTING:
        return True
    if status.state is not State.TELLING:
        return False
    found = counts.get(status.wave, NONE)
    overdue = now_s - status.wave_since_s >= plan.waves[status.wave].silent_s
    if found.told + found.cancelled < expected(status, status.wave):
        return moved or overdue
    return overdue and found.under_way + found.written > 0


def recounted(status: RolloutStatus, counts: WaveCounts, untold: int, silent: int) -> RolloutStatus:
    """Return the status with the devices that its wave has now: those that were told, and `untold` ones that are still to be.

    counts: taken after those were counted, so that one that was told meanwhile is counted twice and not left out.
    """
    number = counts.told + counts.cancelled + untold
    padded = (*status.silent, *(0 for _ in range(status.wave)))[: status.wave]
    after = msgspec.structs.replace(
        status, expected=(*status.expected[: status.wave], number), silent=(*padded, silent)
    )
    return after if after != status else status


def _too_bad(plan: Plan, status: RolloutStatus, counts: Mapping[int, WaveCounts]) -> str:
    for number, wave in enumerate(plan.waves[: status.wave + 1]):
        found = _as_answered(plan, status, counts.get(number, NONE))
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


def _with_fewer_forgiven(status: RolloutStatus, counts: Mapping[int, WaveCounts]) -> RolloutStatus:
    """Return the status in which no more are forgiven than are bad now: who came right, and goes wrong again, counts anew."""
    lower = tuple(min(number, counts.get(wave, NONE).bad) for wave, number in enumerate(status.forgiven))
    return status if lower == status.forgiven else msgspec.structs.replace(status, forgiven=lower)


def forgive(status: RolloutStatus, counts: Mapping[int, WaveCounts]) -> RolloutStatus:
    """Return the status of a rollout that a user resumes: what failed so far counts no longer against it."""
    bad = tuple(counts.get(number, NONE).bad for number in range(status.wave + 1))
    return msgspec.structs.replace(status, forgiven=bad)


def _reverted(counts: Mapping[int, WaveCounts]) -> bool:
    """Say whether nobody runs it any longer and nobody is on the way, either way."""
    took = sum(c.done + c.under_way + c.written for number, c in counts.items() if number != REVERT_WAVE)
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
