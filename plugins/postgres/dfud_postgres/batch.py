"""What devices have stored, all of a batch at once: five statements however many reports there are.

A job qualifies if it is made of what comes with every report: ExpectDevice, PutActual, PutDeployment, AddCounts and PutDocument
without a condition. The devices' rows are locked first, in one order, so that two processes never wait for each other; then the
conditions are judged here, job by job; then what the accepted jobs come to is written.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from dfud.api import (
    AddCounts,
    Change,
    ConflictError,
    Deployment,
    ExpectDevice,
    NotFoundError,
    PutActual,
    PutDeployment,
    PutDocument,
)
from dfud_postgres.limits import Limits
from dfud_postgres.notices import Notices
from dfud_postgres.wire import Query

# A look by the key for each, whatever the planner thinks of a table that it has no statistics of; in the order that is given.
LOCK = Query(
    "SELECT k.app, k.device, l.sequence, l.entries FROM unnest($1::text[], $2::text[]) k(app, device) CROSS JOIN LATERAL "
    "(SELECT a.sequence, a.entries FROM actual a WHERE a.app=k.app AND a.device=k.device "
    "AND EXISTS (SELECT 1 FROM app p WHERE p.name=k.app AND NOT p.dropped) FOR UPDATE OF a) l",
    "TT",
)
_ACTUALS = Query(
    "UPDATE actual a SET body=coalesce(k.body, a.body), sequence=k.sequence, entries=k.entries "
    "FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::bigint[]) k(app, device, body, sequence, entries) "
    "WHERE a.app=k.app AND a.device=k.device",
    "TTBII",
)
_DEPLOYMENTS = Query(
    "INSERT INTO deployment (id, app, device, version, created, open, number, body) SELECT * FROM "
    "unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::float8[], $6::bool[], $7::bigint[], $8::bytea[]) "
    "ON CONFLICT (id) DO UPDATE SET open=excluded.open, number=excluded.number, body=excluded.body",
    "TTTTFOIB",
)
_TRIM_DEPLOYMENTS = Query(
    "DELETE FROM deployment d USING unnest($1::text[], $2::text[], $3::bigint[]) k(app, device, number) "
    "WHERE d.app=k.app AND d.device=k.device AND d.number<=k.number AND NOT d.open",
    "TTI",
)
_HISTORY = Query(
    "INSERT INTO history (app, device, number, body, at_s) "
    "SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[], $5::float8[])",
    "TTIBF",
)
_TRIM_HISTORY = Query(
    "DELETE FROM history h USING unnest($1::text[], $2::text[], $3::bigint[]) k(app, device, number) "
    "WHERE h.app=k.app AND h.device=k.device AND h.number<=k.number",
    "TTI",
)
_COUNTS = Query(
    "INSERT INTO count SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) "
    "ON CONFLICT (scope, name) DO UPDATE SET number=count.number+excluded.number",
    "TTI",
)
_FORGET_COUNTS = Query(
    "DELETE FROM count c USING unnest($1::text[], $2::text[]) k(scope, name) "
    "WHERE c.scope=k.scope AND c.name=k.name AND c.number=0",
    "TT",
)
_DOCUMENTS = Query(
    "INSERT INTO document SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[]) "
    "ON CONFLICT (collection, key) DO UPDATE SET value=excluded.value",
    "TTB",
)
SEQUENCE_BITS = 52  # exact as a float, too, for whoever reads JSON
Key = tuple[str, str]
Statement = tuple[Query, Sequence[Any]]


def qualifies(change: Change) -> bool:
    if isinstance(change, PutDocument):
        return not change.create and change.expect is None
    return isinstance(change, (ExpectDevice, PutActual, PutDeployment, AddCounts))


def device_of(change: Change) -> Key | None:
    """Return the device whose row a change needs."""
    match change:
        case ExpectDevice(app, device):
            return app, device
        case PutActual(actual):
            return actual.app, actual.device
        case PutDeployment(deployment):
            return deployment.app, deployment.device
    return None


def locked(keys: Sequence[Key]) -> Statement:
    """Return the statement whose rows a Batch needs."""
    return LOCK, ([app for app, _ in keys], [device for _, device in keys])


def following(sequence: int) -> int:
    """Return the next sequence of a device. The first is one that an earlier device of this name did not have."""
    return sequence + 1 if sequence else secrets.randbits(SEQUENCE_BITS) + 1


def expected(found: tuple[int, int] | None, app: str, device: str, sequence: int) -> None:
    """Hold ExpectDevice against what is stored."""
    if found is None:
        raise NotFoundError(f"no device {device} in app {app}")
    if found[0] != sequence:
        raise ConflictError(f"device {device} of app {app} has said something since, or its update has gone on")


class Batch:
    """The rows as they will be. `rows`: what LOCK has found."""

    def __init__(self, rows: list[tuple[Any, ...]], limits: Limits) -> None:
        self._limits = limits
        self.notices = Notices()
        self._devices: dict[Key, tuple[int, int]] = {(app, device): (s, e) for app, device, s, e in rows}
        self._bodies: dict[Key, bytes | None] = {}
        self._deployments: dict[str, tuple[Deployment, bytes]] = {}
        self._entries: list[tuple[str, str, int, bytes, float]] = []
        self._counts: dict[Key, int] = {}
        self._documents: dict[Key, bytes] = {}

    def take(self, changes: Sequence[tuple[Change, tuple[bytes, ...]]]) -> None:
        """Take a job's changes, all or none. Raises ConflictError, NotFoundError."""
        devices: dict[Key, tuple[int, int]] = {}
        for change, _ in changes:
            key = device_of(change)
            if key is None:
                continue
            found = devices.get(key) or self._devices.get(key)
            if found is None:
                raise NotFoundError(f"no device {key[1]} in app {key[0]}")
            if isinstance(change, ExpectDevice):
                expected(found, *key, change.sequence)
                continue
            entries = found[1] + (isinstance(change, PutDeployment) and change.entry is not None)
            devices[key] = (following(found[0]), entries)
        numbers = {key: self._devices[key][1] for key in devices}
        self._devices.update(devices)
        for change, bodies in changes:
            self._take(change, bodies, numbers)

    def _take(self, change: Change, bodies: tuple[bytes, ...], numbers: dict[Key, int]) -> None:
        match change:
            case PutActual(actual, tell):
                self._bodies[actual.app, actual.device] = bodies[0]
                if tell:
                    self.notices.state(actual.app, actual.device)
            case PutDeployment(d, entry):
                key = (d.app, d.device)
                self._bodies.setdefault(key, None)
                self._deployments[d.id] = (d, bodies[0])
                if entry is not None:
                    numbers[key] += 1
                    self._entries.append((*key, numbers[key], bodies[1], entry.at_s))
                self.notices.state(*key)
            case AddCounts(scope, add):
                for name, number in add.items():
                    self._counts[scope, name] = self._counts.get((scope, name), 0) + number
            case PutDocument(collection, key_, value):
                self._documents[collection, key_] = value
                if change.tell:
                    self.notices.document(collection, key_)

    def statements(self) -> list[Statement]:
        """Return what is to be written; rows that others may lock, too, in one order."""
        found: list[Statement] = []
        if self._bodies:
            rows = [(*key, body, *self._devices[key]) for key, body in sorted(self._bodies.items(), key=lambda i: i[0])]
            found.append((_ACTUALS, _columns(rows)))
        if self._deployments:
            ds = [
                (d.id, d.app, d.device, d.version, d.created_s, not d.final, d.number, body)
                for d, body in sorted(self._deployments.values(), key=lambda v: v[0].id)
            ]
            found.append((_DEPLOYMENTS, _columns(ds)))
            # Deployments are numbered, so the highest tells which are too many; those from before have 0.
            highest: dict[Key, int] = {}
            for d, _ in self._deployments.values():
                highest[d.app, d.device] = max(d.number, highest.get((d.app, d.device), 0))
            keep = self._limits.deployments_per_device
            if old := [(*key, number - keep) for key, number in sorted(highest.items()) if number > keep]:
                found.append((_TRIM_DEPLOYMENTS, _columns(old)))
        if self._entries:
            found.append((_HISTORY, _columns(self._entries)))
            keep = self._limits.history_per_device
            last = {(app, device): number for app, device, number, *_ in self._entries}
            if old := [(*key, number - keep) for key, number in sorted(last.items()) if number > keep]:
                found.append((_TRIM_HISTORY, _columns(old)))
        if self._counts:
            found.append((_COUNTS, _columns([(*key, number) for key, number in sorted(self._counts.items())])))
            if less := sorted(key for key, number in self._counts.items() if number <= 0):
                found.append((_FORGET_COUNTS, _columns(less)))
        if self._documents:
            found.append((_DOCUMENTS, _columns([(*key, value) for key, value in sorted(self._documents.items())])))
        return found


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
