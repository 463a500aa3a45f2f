"""Removing what nobody needs any longer, a few records at a time: old history, devices of deleted apps."""

from __future__ import annotations

from dfud.api import Pruned
from dfud_postgres import queries as q
from dfud_postgres.pool import Pool

AHEAD_S = 86400.0  # a clock was wrong where an entry is this far ahead: it says nothing of those behind it
HISTORY, DEPLOYMENTS = "history", "deployment"
DEVICES_AT_ONCE = 200


async def prune(pool: Pool, before_s: float, now_s: float, after: str, limit: int) -> Pruned:
    """Look at up to `limit` records behind the place `after`: first the history, then deployments that have ended."""
    kind, _, place = after.partition(" ")
    if kind != DEPLOYMENTS:
        return await _history(pool, before_s, now_s, int(place or 0), limit)
    created, _, name = place.partition(" ")
    return await _deployments(pool, before_s, float(created or "-inf"), name, limit)


async def _history(pool: Pool, before_s: float, now_s: float, place: int, limit: int) -> Pruned:
    """Entries are nearly in the order of their commits: the first page with one that is too young is the last."""
    rows = await pool.rows(q.OLD_HISTORY, place, limit)
    old = [number for number, at_s in rows if at_s < before_s]
    young = any(before_s <= at_s <= now_s + AHEAD_S for _, at_s in rows)
    removed = (await pool.run(q.DELETE_HISTORY, old)).count if old else 0
    done = young or len(rows) < limit
    return Pruned(DEPLOYMENTS if done else f"{HISTORY} {rows[-1][0]}", removed)


async def _deployments(pool: Pool, before_s: float, created: float, name: str, limit: int) -> Pruned:
    """The newest of each device stays: it says what became of the device."""
    rows = await pool.rows(q.OLD_DEPLOYMENTS, before_s, created, name, limit)
    removed = (await pool.run(q.DELETE_DEPLOYMENTS, [row[1] for row in rows])).count if rows else 0
    if len(rows) < limit:
        return Pruned("", removed)
    return Pruned(f"{DEPLOYMENTS} {rows[-1][0]!r} {rows[-1][1]}", removed)


async def drop_some(pool: Pool) -> bool:
    """Delete some devices of an app that was deleted; return whether there is more to do."""
    row = await pool.row(q.DROPPED)
    if row is None:
        return False
    if not (await pool.run(q.DROP_DEVICES, row[0], DEVICES_AT_ONCE)).count:
        await pool.run(q.DROP_APP, row[0])
    return True
