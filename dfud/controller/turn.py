"""What a rollout that does not speak for a device yet waits for, seen from that device. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dfud.model.policy import Running, wave_of
from dfud.model.rollout import Facts, is_member
from dfud.model.rollout_states import State
from dfud.model.times import time_of


class Failure(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A device of a rollout that failed or went back. wave counts from 0; text: what it said."""

    device: str
    wave: int
    state: str
    code: str
    at_s: float
    text: str = ""
    fingerprint: str = ""
    title: str = ""
    deployment: str = ""


class Turn(msgspec.Struct, frozen=True):
    """code: stable; sentence: for people; values: what it is made of, by name."""

    code: str
    sentence: str
    values: dict[str, Any]


def turns_of(running: Sequence[Running], facts: Facts, failures: Mapping[str, Sequence[Failure]]) -> list[Turn]:
    """Return what each rollout waits for of which the device is a member and which has not come to it. failures: by uid."""
    found = [_turn(one, facts, failures.get(one.uid, ())) for one in running]
    return [turn for turn in found if turn is not None]


def _turn(running: Running, facts: Facts, failures: Sequence[Failure]) -> Turn | None:
    rollout, plan, status = running.rollout, running.plan, running.rollout.status
    if not is_member(plan, running.uid, status.started_s, facts):
        return None
    if plan.runs_on(facts.actual):
        return None
    values: dict[str, Any] = {"rollout": rollout.name, "to": plan.title, "state": str(status.state)}
    head = f"Rollout {rollout.name} to {plan.title}"
    if not status.started_s:
        return _not_begun(running, head, values)
    wave = wave_of(plan, running.uid, running.shares, facts)
    if wave is None:
        return None
    now = status.wave
    values |= {"wave": wave + 1, "of": len(plan.waves), "now": now + 1}
    its = f"{head}: it is in wave {wave + 1} of {len(plan.waves)}"
    if status.state is State.PAUSED:
        who = f" by {status.by}" if status.by else ""
        why = f": {status.reason}" if status.reason else ""
        blocked = ""
        if failures and status.code in ("error-threshold", "success-missed"):
            first = failures[0]
            values |= {"blockedBy": [f.device for f in failures], "pause": status.code}
            said = f" ({first.title})" if first.title else ""
            blocked = f" It is blocked by a failure on {first.device}{said}."
        return Turn("paused", f"{its}, and the rollout is paused{who}{why}.{blocked}", values)
    if wave <= now:
        return None  # it speaks for the device; decide() says the rest
    if status.state is State.SOAKING:
        until_s = status.since_s + plan.waves[now].soak_s
        values["until"] = time_of(until_s)
        return Turn("soaking", f"{its}; wave {now + 1} is good and soaks till {time_of(until_s)}.", values)
    if status.state is State.WAVE_APPROVAL:
        return Turn("approval", f"{its}; somebody has to open wave {now + 2}.", values)
    return Turn("wave", f"{its}; the rollout is in wave {now + 1}.", values)


def _not_begun(running: Running, head: str, values: dict[str, Any]) -> Turn | None:
    status, plan = running.rollout.status, running.plan
    if status.state is State.APPROVAL:
        values["author"] = status.author
        return Turn("approval", f"{head} waits for an approval by somebody else than {status.author}.", values)
    if status.state is State.SCHEDULED and plan.start_s:
        values["until"] = time_of(plan.start_s)
        return Turn("scheduled", f"{head} starts at {time_of(plan.start_s)}.", values)
    if status.state is State.PAUSED:
        return Turn("paused", f"{head} is paused: {status.reason or status.code}.", values)
    return None  # a draft, or one that starts at once


TODO = {
    "approval": "To approve: dfuctl rollout approve {rollout}.",
    "paused": "Look at it: dfuctl rollout show {rollout}; then resume, revert or abort it.",
    "wave": "To open the next wave now: dfuctl rollout next {rollout}.",
    "soaking": "To open the next wave now: dfuctl rollout next {rollout}.",
}
