"""A result that comes late: about a deployment that another one has followed."""

from __future__ import annotations

from dfud.api import Deployment, HistoryEntry, Store
from dfud.controller.hear import explained
from dfud.wire.messages import Outcome, Status

OLDER_MAX = 5  # deployments among which the one is looked for that a late result is about


async def older_told(
    store: Store, newest: Deployment | None, status: Status, now_s: float
) -> list[tuple[Deployment, HistoryEntry]]:
    """Return what a result says about a deployment that is not the newest any more: kept for people, and judged no more."""
    result = status.result
    if result is None or newest is None or result.outcome == Outcome.CONFIRMED:
        return []
    if result.digest.hex() == newest.sha256:
        return []
    for found in await store.deployments(newest.app, newest.device, limit=OLDER_MAX):
        if found.sha256 == result.digest.hex() and found.final:
            after = explained(found, result, now_s)
            return [after] if after is not None else []
    return []
