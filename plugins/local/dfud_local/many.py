"""What devices say, of many of them in a few statements: a statement a device costs ten times as much as its rows.

The interpreter is let go at every step of a statement, so a writer with a statement a device waits once for each of them while
the trio thread is busy. Runs in the writer's thread, within a savepoint of its own.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from dfud.api import AddCounts, Change, Deployment, PutActual, PutDeployment
from dfud_local.limits import Limits

KINDS = (PutActual, PutDeployment, AddCounts)
SIZES = (256, 64, 16, 4, 1)  # rows in one statement, so that few different statements are prepared
TRIMMED_AT_ONCE = 64  # more than come, so that a lower limit is reached
Encoded = tuple[Change, tuple[bytes, ...]]

_KNOWN = (
    "SELECT COUNT(*) FROM ({values}) v CROSS JOIN device d ON d.app=v.column1 AND d.name=v.column2",
    "(?,?)",
)
_ACTUAL = ("INSERT INTO actual {values} ON CONFLICT DO UPDATE SET body=excluded.body", "(?,?,?)")
_DEPLOYMENT = (
    "INSERT INTO deployment (id, app, device, version, created, open, number, body) {values} "
    "ON CONFLICT DO UPDATE SET open=excluded.open, number=excluded.number, body=excluded.body",
    "(?,?,?,?,?,?,?,?)",
)
_HISTORY = (
    "INSERT INTO history (app, device, number, body) SELECT column1, column2, column3 + "
    "COALESCE((SELECT MAX(number) FROM history WHERE app=column1 AND device=column2), 0), column4 FROM ({values})",
    "(?,?,?,?)",
)
_LONG = (
    "SELECT column1, column2, n FROM (SELECT column1, column2, "
    "(SELECT MAX(number) FROM history WHERE app=column1 AND device=column2) AS n FROM ({values})) WHERE n>?",
    "(?,?)",
)
_COUNT = "INSERT INTO count VALUES (?,?,?) ON CONFLICT DO UPDATE SET number=number+excluded.number"


def is_hot(changes: Sequence[Encoded]) -> bool:
    """Say whether a commit is one of those that devices cause again and again."""
    return bool(changes) and all(isinstance(change, KINDS) for change, _ in changes)


class Many:
    """Rows of several commits, in their order: of each record the last one counts."""

    def __init__(self) -> None:
        self._devices: set[tuple[str, str]] = set()
        self._actual: dict[tuple[str, str], bytes] = {}
        self._deployments: dict[str, tuple[Deployment, bytes]] = {}
        self._history: list[tuple[str, str, bytes]] = []
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, changes: Iterable[Encoded]) -> None:
        """Take the changes of one commit, all of them of KINDS."""
        for change, bodies in changes:
            match change:
                case PutActual(actual):
                    key = (actual.app, actual.device)
                    self._devices.add(key)
                    self._actual[key] = bodies[0]
                case PutDeployment(deployment, entry):
                    self._devices.add((deployment.app, deployment.device))
                    self._deployments[deployment.id] = (deployment, bodies[0])
                    if entry is not None:
                        self._history.append((entry.app, entry.device, bodies[1]))
                case AddCounts(scope, add):
                    for name, more in add.items():
                        self._counts[scope, name] = self._counts.get((scope, name), 0) + more

    def write(self, db: sqlite3.Connection, limits: Limits) -> bool:
        """Write all of it; False: a device is gone, so each commit has to be written by itself. Raises sqlite3.Error."""
        known = sum(row[0] for row in _rows(db, *_KNOWN, sorted(self._devices)))
        if known != len(self._devices):
            return False
        _run(db, *_ACTUAL, sorted((*key, body) for key, body in self._actual.items()))
        many = limits.deployments_per_device
        # Numbers count a device's deployments, so whoever is below the limit has nothing to trim; 0: they were not counted yet.
        over = [d for d, _ in self._deployments.values() if not 0 < d.number <= many and not _is_there(db, d.id)]
        _run(
            db,
            *_DEPLOYMENT,
            [
                (d.id, d.app, d.device, d.version, d.created_s, not d.final, d.number, body)
                for d, body in self._deployments.values()
            ],
        )
        for deployment in over:
            trim_deployments(db, deployment.app, deployment.device, many)
        for piece in _pieces(self._history):
            # A statement numbers its entries of a device behind those that were there before it.
            entries: Counter[tuple[str, str]] = Counter()
            numbered = []
            for app, device, body in piece:
                entries[app, device] += 1
                numbered.append((app, device, entries[app, device], body))
            _run(db, *_HISTORY, numbered)
        entered = sorted({(app, device) for app, device, _ in self._history})
        for app, device, number in list(_rows(db, *_LONG, entered, limits.history_per_device)):
            trim_history(db, app, device, number - limits.history_per_device)
        if self._counts:
            db.executemany(_COUNT, [(*key, number) for key, number in self._counts.items()])
        return True


def trim_deployments(db: sqlite3.Connection, app: Any, device: Any, many: int) -> None:
    """Delete a device's oldest finished deployments beyond `many`."""
    db.execute(
        "DELETE FROM deployment WHERE NOT open AND id IN (SELECT id FROM deployment WHERE app=? AND device=? "
        "ORDER BY number DESC, created DESC LIMIT -1 OFFSET ?)",
        (app, device, many),
    )


def trim_history(db: sqlite3.Connection, app: Any, device: Any, upto: int) -> None:
    """Delete a device's oldest entries up to the number `upto`; a few of them, so that no commit takes long."""
    db.execute(
        "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE app=? AND device=? AND number<=? "
        "ORDER BY number, id LIMIT ?)",
        (app, device, upto, TRIMMED_AT_ONCE),
    )


def _is_there(db: sqlite3.Connection, deployment_id: str) -> bool:
    return db.execute("SELECT 1 FROM deployment WHERE id=?", (deployment_id,)).fetchone() is not None


@lru_cache(maxsize=64)
def _statement(query: str, row: str, size: int) -> str:
    return query.format(values="VALUES " + ",".join([row] * size))


def _pieces(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    at = 0
    for size in SIZES:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size


def _rows(
    db: sqlite3.Connection, query: str, row: str, rows: Sequence[tuple[Any, ...]], *more: Any
) -> Iterator[tuple[Any, ...]]:
    for piece in _pieces(rows):
        values = [value for one in piece for value in one]
        yield from db.execute(_statement(query, row, len(piece)), [*values, *more])


def _run(db: sqlite3.Connection, query: str, row: str, rows: Sequence[tuple[Any, ...]]) -> None:
    for piece in _pieces(rows):
        db.execute(_statement(query, row, len(piece)), [value for one in piece for value in one])
