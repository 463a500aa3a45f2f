"""How many devices of each wave of a rollout were told, and what became of them: kept exact by the difference of each step. Pure.

A counter is named `<rollout uid>/<wave>/<field>`. A device counts where its last deployment of that rollout stands, so counters
are equal to a recount over those, whatever the order in which devices answered. One that is deleted stays where it failed, and
counts as cancelled elsewhere: nobody waits for it. Of a rollout that brings both kinds of firmware it is done when both are, and
failed when one is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from dfud.model.deployment import Deployment, State

_WAVE = re.compile("-1|[0-9]{1,4}", re.ASCII)
REVERT_WAVE = -1  # devices on their way back
_FIELD = {State.DONE: "done", State.FAILED: "failed", State.ROLLED_BACK: "left", State.CANCELLED: "cancelled"}


class WaveCounts(msgspec.Struct, frozen=True):
    """under_way: told and not answered yet. written: told to write it only, and it has. left: ran the image and went back."""

    under_way: int = 0
    written: int = 0
    done: int = 0
    failed: int = 0
    left: int = 0
    cancelled: int = 0

    @property
    def told(self) -> int:
        """Whom it was decided to tell; those whose update was cancelled no longer count."""
        return self.under_way + self.written + self.done + self.failed + self.left

    @property
    def answered(self) -> int:
        return self.done + self.failed + self.left

    @property
    def bad(self) -> int:
        return self.failed + self.left


def counter_of(deployment: Deployment) -> str:
    """Return the name of the counter that a deployment is counted by, "" if it is no rollout's."""
    if not deployment.rollout:
        return ""
    wave = REVERT_WAVE if deployment.back else deployment.wave
    if deployment.counted:
        return f"{deployment.rollout}/{deployment.wave}/{deployment.counted}"
    other = deployment.other
    if other is not None and (other.rollout, other.back) == (deployment.rollout, deployment.back) and is_bad(other):
        return f"{deployment.rollout}/{wave}/{field_of(other)}"
    field = field_of(deployment)
    if deployment.is_between:
        field = "under_way"  # the target is what counts
    elif deployment.download_only and deployment.state is State.WRITTEN:
        field = "written"
    return f"{deployment.rollout}/{wave}/{field}"


def field_of(deployment: Deployment) -> str:
    return _FIELD.get(deployment.state, "under_way")


def is_bad(deployment: Deployment) -> bool:
    """Say whether it failed and nobody has forgiven that: a user's retry ends what blocks."""
    return deployment.state in (State.FAILED, State.ROLLED_BACK) and deployment.blocks


def difference(old: str, new: str) -> dict[str, int]:
    """Return what changes when a device was counted by one counter of a rollout and is by another: counter to what is added."""
    return {} if old == new else {name: n for name, n in ((old, -1), (new, 1)) if name}


def departed(deployments: Iterable[Deployment]) -> dict[str, int]:
    """Return what changes when a device with these deployments, newest first, is deleted: counter to what is added."""
    found: dict[str, int] = {}
    seen = {""}
    for deployment in deployments:
        if deployment.rollout not in seen:
            seen.add(deployment.rollout)
            owner, _, field = counter_of(deployment).rpartition("/")
            if field in ("under_way", "written", "done"):
                found |= {f"{owner}/{field}": -1, f"{owner}/cancelled": 1}
    return found


def read_counts(counters: Mapping[str, int], uid: str) -> dict[int, WaveCounts]:
    """Return the counts of a rollout by wave, from all counters of its app or of it. What is no counter's name counts nowhere."""
    found: dict[int, dict[str, int]] = {}
    for name, number in counters.items():
        owner, _, rest = name.partition("/")
        wave, _, field = rest.partition("/")
        if owner == uid and field in WaveCounts.__struct_fields__ and _WAVE.fullmatch(wave):
            found.setdefault(int(wave), {})[field] = number
    return {wave: WaveCounts(**fields) for wave, fields in found.items()}
