"""The states of a rollout and the only ways from one to the next. The table's owner is dfud.controller.rollouts."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    DRAFT = "draft"  # made, and not to be started yet
    APPROVAL = "waiting-for-approval"  # somebody else than its author has to agree before it starts
    SCHEDULED = "scheduled"  # starts at its time
    TELLING = "telling"  # devices of the wave are being told
    SOAKING = "soaking"  # the wave is good; it has to stay so for a while
    WAVE_APPROVAL = "wave-waiting-for-approval"  # the wave was good long enough; somebody has to open the next
    STORED = "waiting-for-activation"  # all have written it; somebody has to say that they switch
    PAUSED = "paused"  # by a user, or by a threshold
    REVERTING = "reverting"  # devices that took it go back to what they ran
    FINISHED = "finished"
    ABORTED = "aborted"


FINAL = frozenset({State.FINISHED, State.ABORTED})
# A device of an open wave may be told, and keeps what it was told.
ACTIVE = frozenset({State.TELLING, State.SOAKING, State.WAVE_APPROVAL, State.STORED})


class Event(StrEnum):
    SUBMIT = "submit"  # a user wants it to start, and it needs approval
    SCHEDULE = "schedule"  # the same, and it does not
    APPROVE = "approve"
    DENY = "deny"
    START = "start"  # its time has come
    GOOD = "good"  # the wave's success condition holds
    WORSE = "worse"  # it no longer does, while the wave soaks
    NEXT = "next"  # the next wave opens
    ASK = "ask"  # the wave was good long enough, and the next one needs approval
    PAUSE = "pause"
    STORE = "store"  # the last wave was good long enough, at writing
    ACTIVATE = "activate"  # whoever has written it switches, wave by wave
    RESUME = "resume"
    RETRY = "retry"  # what failed may be tried again
    REVERT = "revert"
    FINISH = "finish"
    ABORT = "abort"


TABLE: dict[tuple[State, Event], State] = {
    (State.DRAFT, Event.SUBMIT): State.APPROVAL,
    (State.DRAFT, Event.SCHEDULE): State.SCHEDULED,
    (State.APPROVAL, Event.APPROVE): State.SCHEDULED,
    (State.APPROVAL, Event.DENY): State.DRAFT,
    (State.SCHEDULED, Event.START): State.TELLING,
    (State.TELLING, Event.GOOD): State.SOAKING,
    (State.SOAKING, Event.WORSE): State.TELLING,
    (State.SOAKING, Event.ASK): State.WAVE_APPROVAL,
    (State.WAVE_APPROVAL, Event.DENY): State.PAUSED,
    (State.WAVE_APPROVAL, Event.WORSE): State.TELLING,
    # "next wave now" of a user counts as an approval.
    **{(s, Event.NEXT): State.TELLING for s in (State.TELLING, State.SOAKING, State.WAVE_APPROVAL)},
    (State.SOAKING, Event.FINISH): State.FINISHED,
    (State.SOAKING, Event.STORE): State.STORED,
    (State.STORED, Event.WORSE): State.TELLING,
    # From the first wave again, and this time they run it.
    **{(s, Event.ACTIVATE): State.TELLING for s in ACTIVE},
    **{(s, Event.PAUSE): State.PAUSED for s in (State.SCHEDULED, *ACTIVE)},
    # Whatever was good before has to be found good again.
    (State.PAUSED, Event.RESUME): State.TELLING,
    **{(s, Event.RETRY): State.TELLING for s in (State.PAUSED, State.FINISHED, *ACTIVE)},
    **{(s, Event.REVERT): State.REVERTING for s in (State.PAUSED, State.FINISHED, *ACTIVE)},
    (State.REVERTING, Event.FINISH): State.ABORTED,
    **{(s, Event.ABORT): State.ABORTED for s in State if s not in FINAL},
}


# What users call the events that they cause; start submits where approval is needed, approve opens a wave where one waits.
ACTIONS = {
    "start": Event.SCHEDULE,
    "approve": Event.APPROVE,
    "deny": Event.DENY,
    "pause": Event.PAUSE,
    "resume": Event.RESUME,
    "next": Event.NEXT,
    "retry": Event.RETRY,
    "activate": Event.ACTIVATE,
    "revert": Event.REVERT,
    "abort": Event.ABORT,
}
EXPLAINED = frozenset({Event.PAUSE, Event.REVERT, Event.ABORT, Event.DENY})


def possible(state: State) -> list[str]:
    """Return what users may do with a rollout that is so."""
    waits = state is State.WAVE_APPROVAL
    return [a for a, event in ACTIONS.items() if (state, event) in TABLE or (waits and a == "approve")]


def advance(state: State, event: Event) -> State | None:
    """Return the state after `event`, or None where the table has no such step."""
    return TABLE.get((state, event))
