"""What devices say, of many of them in a few statements: a statement a device costs ten times as much as its rows.

The interpreter is let go at every step of a statement, so a writer with a statement a device waits once for each of them while
the trio thread is busy. Runs in the writer's thread, within a savepoint of its own.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from dfud.api import AddCounts, Change, Deployment, ExpectDevice, PutActual, PutDeployment, PutDocument
from dfud_local.limits import Limits

KINDS = frozenset({PutActual, PutDeployment, AddCounts, ExpectDevice})
SIZES = (
    1,
    4,
    16,
    64,
    256,
)  # rows in one statement, so that few different statements are prepared; empty rows fill it up
SEQUENCE_BITS = 52  # exact as a float, too, for whoever reads JSON
TRIMMED_AT_ONCE = 64  # more than come, so that a lower limit is reached
Encoded = tuple[Change, tuple[bytes, ...]]
Key = tuple[str, str]  # app, device

_KNOWN = (
    "SELECT COUNT(*) FROM ({values}) v CROSS JOIN device d ON d.app=v.column1 AND d.name=v.column2 "
    "WHERE d.app NOT IN (SELECT app FROM dropped)",
    "(?,?)",
)
# A row without a body: nothing was said yet, but there are deployments. Raised: by how much the device's sequence is.
_GIVEN = "SELECT * FROM ({{values}}) WHERE column1 IS NOT NULL ON CONFLICT DO UPDATE SET"
_ACTUAL = f"INSERT INTO actual {_GIVEN} body=excluded.body, sequence=sequence+{{raised}}"
_UNSAID = f"INSERT INTO actual {_GIVEN} sequence=sequence+{{raised}}"
_EXPECTED = (
    "UPDATE actual SET body=COALESCE(v.column3, body), sequence=sequence+v.column4 FROM ({values}) v "
    "WHERE app=v.column1 AND device=v.column2 AND sequence=v.column5 AND app NOT IN (SELECT app FROM dropped)",
    "(?,?,?,?,?)",
)
_HAS_SEQUENCE = (
    "SELECT a.sequence FROM ({values}) v CROSS JOIN actual a ON a.app=v.column1 AND a.device=v.column2",
    "(?,?)",
)
_DEPLOYMENT = (
    "INSERT INTO deployment (id, app, device, version, created, open, number, body) "
    "SELECT * FROM ({values}) WHERE column1 IS NOT NULL ON CONFLICT DO UPDATE "
    "SET open=excluded.open, number=excluded.number, body=excluded.body",
    "(?,?,?,?,?,?,?,?)",
)
_HISTORY = (
    "INSERT INTO history (app, device, number, body) SELECT * FROM ({values}) WHERE column1 IS NOT NULL",
    "(?,?,?,?)",
)
# How far the history of each goes, by its place among the rows.
_LAST = (
    "SELECT column3, (SELECT MAX(number) FROM history WHERE app=column1 AND device=column2) "
    "FROM ({values}) WHERE column1 IS NOT NULL",
    "(?,?,?)",
)
_COUNT = "INSERT INTO count VALUES (?,?,?) ON CONFLICT DO UPDATE SET number=number+excluded.number"
# Counters that have come back to 0 take no room: their names may be of an hour that is over.
_EMPTY = "DELETE FROM count WHERE scope=? AND name=? AND number=0"
_DOCUMENT = ("INSERT OR REPLACE INTO document SELECT * FROM ({values}) WHERE column1 IS NOT NULL", "(?,?,?)")


def is_hot(changes: Sequence[Encoded]) -> bool:
    """Say whether a commit is one of those that devices cause again and again."""
    kinds = {type(change) for change, _ in changes}
    if not kinds or kinds <= KINDS:
        return bool(kinds)
    return all(type(change) in KINDS or _is_plain(change) for change, _ in changes)


def _is_plain(change: Change) -> bool:
    """Say whether a document is put whatever is there: what waits for an event sink, the record of a crash."""
    return type(change) is PutDocument and not change.create and change.expect is None


class Many:
    """Rows of several commits, in their order: of each record the last one counts."""

    def __init__(self) -> None:
        self._raised: dict[Key, int] = {}
        self._expected: dict[Key, int] = {}
        self._odd = False
        self._actual: dict[Key, bytes] = {}
        self._deployments: dict[str, tuple[Deployment, bytes]] = {}
        self._history: list[tuple[Key, bytes]] = []
        self._counts: dict[Key, int] = {}
        self._documents: dict[Key, bytes] = {}

    def add(self, changes: Iterable[Encoded]) -> None:
        """Take the changes of one commit, of which is_hot() is true."""
        raised, expected = self._raised, self._expected
        for change, bodies in changes:
            # Not match: this is what a report costs.
            if type(change) is ExpectDevice:
                key = (change.app, change.device)
                # An earlier one of these commits may have raised it; the first one of a device sets it to anything.
                before = change.sequence - raised.get(key, 0)
                self._odd = self._odd or expected.setdefault(key, before) != before
            elif type(change) is PutActual:
                actual = change.actual
                key = (actual.app, actual.device)
                raised[key] = raised.get(key, 0) + 1
                self._actual[key] = bodies[0]
            elif type(change) is PutDeployment:
                deployment, entry = change.deployment, change.entry
                key = (deployment.app, deployment.device)
                raised[key] = raised.get(key, 0) + 1
                self._deployments[deployment.id] = (deployment, bodies[0])
                if entry is not None:
                    self._history.append(((entry.app, entry.device), bodies[1]))
            elif type(change) is PutDocument:
                self._documents[change.collection, change.key] = change.value
            elif type(change) is AddCounts:
                for name, more in change.add.items():
                    self._counts[change.scope, name] = self._counts.get((change.scope, name), 0) + more

    def write(self, db: sqlite3.Connection, limits: Limits) -> bool:
        """Write all of it; False: a device is gone, or not as it is expected, so each commit has to be written by itself.

        Raises sqlite3.Error.
        """
        if self._odd or not self._write_known(db) or not self._write_others(db):
            return False
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
        self._write_history(db, limits.history_per_device)
        if self._counts:
            db.executemany(_COUNT, [(*key, number) for key, number in self._counts.items()])
            db.executemany(_EMPTY, [key for key, number in self._counts.items() if number < 0])
        _run(db, *_DOCUMENT, [(*key, value) for key, value in self._documents.items()])
        return True

    def _write_known(self, db: sqlite3.Connection) -> bool:
        """Write what is expected of devices that have a sequence: one that is as expected is the row of a device that is there."""
        actual, raised = self._actual, self._raised
        rows = [
            (*key, actual.get(key), raised.get(key, 0), sequence)
            for key, sequence in self._expected.items()
            if sequence
        ]
        rows.sort(key=_key)
        return sum(_run(db, *_EXPECTED, rows)) == len(rows)

    def _write_others(self, db: sqlite3.Connection) -> bool:
        """Write what is said by devices of which nothing is stored, or nothing is expected."""
        expected = self._expected
        devices = sorted(key for key in self._raised if not expected.get(key))
        unsaid = [key for key, sequence in expected.items() if not sequence]
        known = [*devices, *(key for key in unsaid if key not in self._raised)]
        if sum(row[0] for row in _rows(db, *_KNOWN, known)) != len(known):
            return False
        if any(row[0] for row in _rows(db, *_HAS_SEQUENCE, unsaid)):
            return False
        groups: dict[str, list[tuple[str, str, bytes, int]]] = {}
        for key in devices:
            body, raised = self._actual.get(key), self._raised[key]
            query = (_UNSAID if body is None else _ACTUAL).format(raised=raised)
            groups.setdefault(query, []).append((*key, body or b"", first_sequence()))
        for query, rows in groups.items():
            _run(db, query, "(?,?,?,?)", rows)
        return True

    def _write_history(self, db: sqlite3.Connection, many: int) -> None:
        """Number entries behind those of their device that are there, and append them. The oldest beyond `many` of a device go."""
        devices = sorted({key for key, _ in self._history})
        asked = [(*key, place) for place, key in enumerate(devices)]
        last = {devices[place]: number or 0 for place, number in _rows(db, *_LAST, asked)}
        numbered = []
        for key, body in self._history:
            last[key] += 1
            numbered.append((*key, last[key], body))
        _run(db, *_HISTORY, numbered)
        for (app, device), number in last.items():
            if number > many:
                trim_history(db, app, device, number - many)


def first_sequence() -> int:
    """Return the first sequence of a device: one that an earlier device of this name did not have."""
    return secrets.randbits(SEQUENCE_BITS) + 1


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


def _key(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row[:2]


def _is_there(db: sqlite3.Connection, deployment_id: str) -> bool:
    return db.execute("SELECT 1 FROM deployment WHERE id=?", (deployment_id,)).fetchone() is not None


@lru_cache(maxsize=64)
def _statement(query: str, row: str, size: int) -> str:
    return query.format(values="VALUES " + ",".join([row] * size))


def _pieces(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    for at in range(0, len(rows), SIZES[-1]):
        yield rows[at : at + SIZES[-1]]


def _filled(query: str, row: str, piece: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """Return a statement for these rows and what to bind: as many rows as the next of SIZES, those beyond of NULL."""
    size = next(size for size in SIZES if size >= len(piece))
    values = list(chain.from_iterable(piece))
    return _statement(query, row, size), values + [None] * (row.count("?") * (size - len(piece)))


def _rows(
    db: sqlite3.Connection, query: str, row: str, rows: Sequence[tuple[Any, ...]], *more: Any
) -> Iterator[tuple[Any, ...]]:
    for piece in _pieces(rows):
        statement, values = _filled(query, row, piece)
        yield from db.execute(statement, [*values, *more])


def _run(db: sqlite3.Connection, query: str, row: str, rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Return how many rows each statement has written."""
    return [db.execute(*_filled(query, row, piece)).rowcount for piece in _pieces(rows)]
