"""Removing what has ended long ago, a few records at a time. Runs in the writer's thread."""

from __future__ import annotations

import json
import sqlite3

import msgspec

from dfud.api import UNDECODABLE, Pruned
from dfud_local.columns import text

AHEAD_S = 86400.0  # a clock was wrong where an entry is this far ahead: it says nothing of those behind it
HISTORY, DEPLOYMENTS = "history", "deployment"


class _Dated(msgspec.Struct, rename="camel"):
    at_s: float


_DECODER = msgspec.msgpack.Decoder(_Dated)


def prune(database: sqlite3.Connection, before_s: float, now_s: float, after: str, limit: int) -> Pruned:
    """Look at up to `limit` records behind the place `after`: first the history, then deployments that have ended."""
    kind, _, place = after.partition(" ")
    if kind != DEPLOYMENTS:
        return _history(database, before_s, now_s, int(place or 0), limit)
    created, _, name = place.partition(" ")
    return _deployments(database, before_s, float(created or "-inf"), name, limit)


def _history(database: sqlite3.Connection, before_s: float, now_s: float, place: int, limit: int) -> Pruned:
    """Entries are in the order of their commits: the first page with one that is too young is the last."""
    rows = database.execute("SELECT id, body FROM history WHERE id>? ORDER BY id LIMIT ?", (place, limit)).fetchall()
    old, young = [], False
    for number, body in rows:
        try:
            at_s = _DECODER.decode(body).at_s
        except UNDECODABLE:
            continue  # it goes with its device, or as the oldest of too many
        if at_s < before_s:
            old.append(number)
        elif at_s <= now_s + AHEAD_S:
            young = True
    database.execute("DELETE FROM history WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(old),))
    done = young or len(rows) < limit
    return Pruned(DEPLOYMENTS if done else f"{HISTORY} {rows[-1][0]}", len(old))


def _deployments(database: sqlite3.Connection, before_s: float, created: float, name: str, limit: int) -> Pruned:
    """The newest of each device stays: it says what became of the device."""
    rows = database.execute(
        "SELECT created, id FROM deployment WHERE NOT open AND created<? AND (created, id)>(?, ?) ORDER BY created, id LIMIT ?",
        (before_s, created, name, limit),
    ).fetchall()
    removed = database.execute(
        "DELETE FROM deployment AS d WHERE id IN (SELECT value FROM json_each(?)) AND EXISTS (SELECT 1 FROM deployment n "
        "WHERE n.app=d.app AND n.device=d.device AND (n.number, n.created, n.id)>(d.number, d.created, d.id))",
        (json.dumps([text(row[1]) for row in rows]),),
    ).rowcount
    if len(rows) < limit:
        return Pruned("", removed)
    return Pruned(f"{DEPLOYMENTS} {rows[-1][0]!r} {text(rows[-1][1])}", removed)
