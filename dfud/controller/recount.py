"""Who a rollout still waits for, from what is stored of its app's devices. Pure.

Its counters say what became of the devices that were told. Who was not told yet is not counted anywhere, and may have gone: deleted,
brought to the version by hand, given a firmware of its own, or silent. So now and then the fleet is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.model.deployment import Deployment
from dfud.model.deployment import State as Deployed
from dfud.model.policy import Policy
from dfud.model.rollout import Facts, Mode, Plan, Rollout
from dfud.model.rollout_states import State
from dfud.wire.messages import Code

# Trying again comes to the same while neither the board nor the firmware changes.
HOPELESS = frozenset({Code.HARDWARE, Code.TOO_LARGE})


class Tally(msgspec.Struct):
    """untold: devices of the wave that are still to be told, and those of all open waves that are to be tried again; silent: that
    were told in the wave and were not heard of for too long. back: devices that have to go back yet; lost: of those, the silent."""

    untold: int = 0
    silent: int = 0
    back: int = 0
    lost: int = 0


def tally(
    found: Tally,
    policy: Policy,
    rollout: Rollout,
    plan: Plan,
    spec: Mapping[str, Any],
    facts: Facts,
    deployment: Deployment | None,
    now_s: float,
) -> None:
    """Count one device of the app."""
    said = policy.wanted(spec, facts, deployment, now_s)
    both = (said, said.other) if said.other is not None else (said,)
    mine = [desired for desired in both if desired.rollout == rollout.metadata.uid]
    if not mine:
        return
    wanted = mine[0]
    deployment = deployment.in_rollout(wanted.rollout) if deployment is not None else None
    status, actual = rollout.status, facts.actual
    silent_s = plan.waves[status.wave].silent_s
    since_s = status.since_s if status.state is State.REVERTING else status.wave_since_s
    is_silent = now_s - max(actual.seen_s if actual is not None else 0.0, since_s) >= silent_s
    told = deployment is not None
    runs = actual is not None and all(actual.runs(desired.kind) == desired.version for desired in mine)
    goes_on = told and deployment is not None and (not deployment.final or deployment.is_between)
    if status.state is State.REVERTING:
        if not goes_on and (runs or (deployment is not None and deployment.back)):
            return
        found.back += 1
        found.lost += is_silent
    elif goes_on and deployment is not None:
        written = plan.mode is Mode.DOWNLOAD and not status.activated_s and deployment.state is Deployed.WRITTEN
        found.silent += is_silent and not written and deployment.wave == status.wave
    elif told and deployment is not None:
        again = any(_is_tried_again(d, wanted.retries) for d in deployment.both if d.rollout == wanted.rollout)
        found.untold += again and not runs and not is_silent
    elif wanted.wave == status.wave:
        found.untold += not runs and not is_silent


def _is_tried_again(deployment: Deployment, retries: int) -> bool:
    """Say whether a user had the rollout try again what came to nothing with this, and that may come to something."""
    if not deployment.blocks or deployment.state is Deployed.CANCELLED or deployment.code in HOPELESS:
        return False
    return retries > deployment.retry
