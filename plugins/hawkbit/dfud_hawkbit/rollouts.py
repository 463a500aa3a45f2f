"""hawkBit's own rollouts, to be shown: those whose distribution set is a firmware of the app. They are steered in hawkBit."""

from __future__ import annotations

from contextlib import aclosing

from dfud.api import OwnRollout, OwnWave, Store, StoreError
from dfud_hawkbit import records
from dfud_hawkbit.answers import RolloutRow
from dfud_hawkbit.client import Client
from dfud_hawkbit.http import Refused
from dfud_hawkbit.names import quoted
from dfud_hawkbit.records import SETS, FirmwareSet

ROWS_MAX = 2000  # rollouts of the tenant that are looked through
SHOWN_MAX = 50  # of an app, the newest
GROUPS_MAX = 50
# hawkBit's words (Management API, "status" of a rollout and of a group) in dfud's (docs/rollouts.md, "States").
STATES = {
    "creating": "draft",
    "ready": "draft",
    "waiting_for_approval": "waiting-for-approval",
    "approval_denied": "draft",
    "starting": "scheduled",
    "scheduled": "scheduled",
    "running": "telling",
    "paused": "paused",
    "finished": "finished",
    "stopping": "aborted",
    "stopped": "aborted",
    "deleting": "aborted",
    "deleted": "aborted",
    "error": "paused",
    "error_creating": "paused",
    "error_starting": "paused",
}


async def listed(store: Store, client: Client, url: str, app: str) -> list[OwnRollout]:
    """Return an app's rollouts, the newest first, up to SHOWN_MAX. Raises StoreError while hawkBit is away."""
    versions = await _versions(store, app)
    found: list[RolloutRow] = []
    seen = 0
    try:
        async with aclosing(client.pages("rollouts", "/rollouts", RolloutRow, sort="id:ASC")) as pages:
            async for rows in pages:
                seen += len(rows)
                found += [row for row in rows if row.distribution_set_id in versions and not row.deleted]
                del found[:-SHOWN_MAX]
                if seen >= ROWS_MAX:
                    break
    except Refused as refused:
        raise StoreError(f"hawkBit does not list its rollouts: it answered {refused.status}") from refused
    return [_rollout(row, versions, url) for row in reversed(found)]


async def found(store: Store, client: Client, url: str, app: str, name: str) -> OwnRollout | None:
    """Return a rollout by its name with its groups, or None. Raises StoreError while hawkBit is away."""
    versions = await _versions(store, app)
    try:
        row = await _named(client, name)
        if row is None or row.distribution_set_id not in versions:
            return None
        groups: list[RolloutRow] = []
        path = f"/rollouts/{row.id}/deploygroups"
        async with aclosing(client.pages("rollout groups", path, RolloutRow, sort="id:ASC")) as pages:
            async for rows in pages:
                groups += rows
                if len(groups) >= GROUPS_MAX:
                    break
        waves = [await _wave(client, path, group) for group in groups[:GROUPS_MAX]]
    except Refused as refused:
        raise StoreError(f"hawkBit does not show rollout {name[:64]}: it answered {refused.status}") from refused
    return _rollout(row, versions, url, tuple(waves))


async def _named(client: Client, name: str) -> RolloutRow | None:
    """Return the rollout of exactly this name: a `*` in it is a wildcard to hawkBit."""
    query = f"name=={quoted(name)}"
    async with aclosing(client.pages("rollouts", "/rollouts", RolloutRow, q=query, sort="id:ASC")) as pages:
        async for rows in pages:
            for row in rows:
                if row.name == name and not row.deleted:
                    return row
    return None


async def _wave(client: Client, path: str, group: RolloutRow) -> OwnWave:
    answer = await client.mgmt("rollout group", "GET", f"{path}/{group.id}")
    row: RolloutRow = answer.read(RolloutRow, "rollout group")
    totals = row.totals
    waiting = totals.get("notstarted", 0) + totals.get("scheduled", 0)
    return OwnWave(
        name=row.name,
        state=STATES.get(row.status, row.status),
        devices=row.total_targets,
        told=max(0, row.total_targets - waiting - totals.get("cancelled", 0)),
        under_way=totals.get("running", 0),
        done=totals.get("finished", 0),
        failed=totals.get("error", 0),
    )


def _rollout(row: RolloutRow, versions: dict[int, str], url: str, waves: tuple[OwnWave, ...] = ()) -> OwnRollout:
    return OwnRollout(
        name=row.name,
        firmware=versions[row.distribution_set_id],
        state=STATES.get(row.status, row.status),
        said=row.status,
        devices=row.total_targets,
        by=row.created_by,
        waves=waves,
        link=f"{url.rstrip('/')}/rest/v1/rollouts/{row.id}",
    )


async def _versions(store: Store, app: str) -> dict[int, str]:
    """Return the app's distribution sets: number to version."""
    out: dict[int, str] = {}
    async for key, raw in records.every(store, SETS, f"{app}/"):
        known = records.decoded(SETS, key, raw, FirmwareSet)
        if known is not None and known.set_id:
            out[known.set_id] = records.split(key)[1]
    return out
