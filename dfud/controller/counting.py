"""What a commit of deployments adds to the counters of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dfud.api import AddCounts, Change, Deployment, Store
from dfud.controller.rollout_rules import scope_of
from dfud.model.counts import counter_of, difference


async def counted_of(
    store: Store, leads: Callable[[str], bool], before: Deployment | None, steps: Sequence[Deployment]
) -> dict[str, int]:
    """Return what is added, by counter, when a device's newest deployment `before` is followed by `steps`, one behind the other.

    leads: whether there is such a rollout; for one that is deleted nothing is counted any more.
    """
    found: dict[str, int] = {}
    lasts = {before.rollout: before} if before is not None else {}
    for after in steps:
        uid = after.rollout
        if not uid or not leads(uid):
            continue
        if uid not in lasts:
            # Perhaps it was in this rollout before; then it is counted there already.
            earlier = await store.deployments(after.app, after.device)
            last = next((d for d in earlier if d.rollout == uid), None)
        else:
            last = lasts[uid]
        if last is not None and after.number < last.number:
            continue  # the other kind's: the rollout's newest is what counts, and it knows this one
        lasts[uid] = after
        for name, number in difference(counter_of(last) if last is not None else "", counter_of(after)).items():
            found[name] = found.get(name, 0) + number
    return {name: number for name, number in found.items() if number}


def counting(counted: dict[str, int]) -> list[Change]:
    """Return the changes that add to the counters: each rollout has a scope of its own."""
    by_rollout: dict[str, dict[str, int]] = {}
    for name, number in counted.items():
        by_rollout.setdefault(name.partition("/")[0], {})[name] = number
    return [AddCounts(scope_of(uid), add) for uid, add in by_rollout.items()]
