"""Putting devices, many at once: a handful of statements however many they are.

Rows are locked and made in the order of their keys, so that two processes never wait for each other. What is in the way raises what
it would for each device by itself; then nothing is left of the others either, as the caller has a savepoint around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dfud.api import ConflictError, NotFoundError, PutDevice
from dfud_postgres.connection import Connection
from dfud_postgres.notices import Notices
from dfud_postgres.wire import Query

Put = tuple[PutDevice, bytes]
APPS_THERE = Query("SELECT name FROM app WHERE name=ANY($1) AND NOT dropped ORDER BY name FOR SHARE", "T")
VERSIONS = Query(
    "SELECT k.app, k.name, l.version FROM unnest($1::text[], $2::text[]) k(app, name) CROSS JOIN LATERAL "
    "(SELECT d.version FROM device d WHERE d.app=k.app AND d.name=k.name FOR UPDATE) l",
    "TT",
)
MAKE_DEVICES = Query(
    "INSERT INTO device (app, name, version, wants, body) "
    "SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[]) ON CONFLICT DO NOTHING",
    "TTTTB",
)
MAKE_ACTUALS = Query(
    "INSERT INTO actual (app, device) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING", "TT"
)
CHANGE_DEVICES = Query(
    "UPDATE device d SET version=k.version, wants=k.wants, body=k.body, firmware=NULL, newer=0 "
    "FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[]) k(app, name, version, wants, body) "
    "WHERE d.app=k.app AND d.name=k.name",
    "TTTTB",
)
UNLABEL = Query(
    "DELETE FROM device_label l USING unnest($1::text[], $2::text[]) k(app, name) WHERE l.app=k.app AND l.device=k.name",
    "TT",
)
LABEL = Query(
    "INSERT INTO device_label (app, device, key, value) "
    "SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) "
    "ON CONFLICT DO NOTHING",  # where Raced is raised
    "TTTT",
)
UNALIAS = Query(
    "DELETE FROM alias a USING unnest($1::text[], $2::text[]) k(app, name) WHERE a.app=k.app AND a.device=k.name",
    "TT",
)
ALIAS = Query(
    "INSERT INTO alias (app, device, alias) SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING",
    "TTT",
)
OWNER = Query(
    "SELECT a.alias, a.device FROM unnest($1::text[], $2::text[], $3::text[]) k(app, device, alias) "
    "JOIN alias a ON a.app=k.app AND a.alias=k.alias WHERE a.device<>k.device LIMIT 1",
    "TTT",
)


class Raced(Exception):
    """Another process made one of the devices since it was looked for; the same again finds it."""


async def put_devices(connection: Connection, notices: Notices, puts: Sequence[Put]) -> None:
    """Put devices, of which none comes twice. Raises ConflictError, NotFoundError, Raced, DatabaseError, Lost."""
    ordered = sorted(puts, key=lambda put: _key(put[0]))
    keys = [_key(put) for put, _ in ordered]
    apps, found = await connection.run((APPS_THERE, (sorted({app for app, _ in keys}),)), (VERSIONS, _columns(keys, 2)))
    there = {row[0] for row in apps.rows}
    versions: dict[tuple[str, str], str] = {(app, name): version for app, name, version in found.rows}
    for put, _ in puts:
        app, name = _key(put)
        if app not in there:
            raise NotFoundError(f"no app {app}")
        check(put.expect, versions.get((app, name)), f"device {name}")
    new = [_row(*put) for put in ordered if _key(put[0]) not in versions]
    old = [_row(*put) for put in ordered if _key(put[0]) in versions]
    labels = [(*_key(p), k, v) for p, _ in ordered for k, v in p.device.metadata.labels.items()]
    aliases = [(*_key(put), alias) for put, _ in ordered for alias in _aliases(put)]
    statements: list[tuple[Query, Sequence[Any]]] = []
    if new:
        made = _columns([row[:2] for row in new], 2)
        statements += [(MAKE_DEVICES, _columns(new, 5)), (MAKE_ACTUALS, made)]
    if old:
        changed = _columns([row[:2] for row in old], 2)
        statements += [(CHANGE_DEVICES, _columns(old, 5)), (UNLABEL, changed), (UNALIAS, changed)]
    if labels:
        statements.append((LABEL, _columns(labels, 4)))
    if aliases:
        statements.append((ALIAS, _columns(aliases, 3)))
    done = await connection.run(*statements)
    if new and done[0].count < len(new):
        raise Raced
    if aliases and done[-1].count < len(aliases):
        row = (await connection.run((OWNER, _columns(aliases, 3))))[0].row
        raise ConflictError(
            f"alias {row[0]} belongs to device {row[1]}" if row else "an alias belongs to another device"
        )
    for app, name in keys:
        notices.device(app, name)


def check(expect: str | None, version: str | None, what: str) -> None:
    """Hold `expect` of a change against the version that is stored, None where there is nothing."""
    if expect is None or expect == (version or ""):
        return
    if expect == "":
        raise ConflictError(f"{what} exists already")
    if version is None:
        raise NotFoundError(f"no {what}")
    raise ConflictError(f"{what} has changed since it was read")


def wants(firmware: Any) -> str:
    """Return what the column `wants` says of a spec.firmware: the version, behind a line feed that of the app firmware, or ""."""
    said = firmware if isinstance(firmware, dict) else {}
    version, app = (v if isinstance(v, str) and "\n" not in v else "" for v in (said.get("version"), said.get("app")))
    return f"{version}\n{app}" if app else version


def _key(put: PutDevice) -> tuple[str, str]:
    return put.device.app, put.device.name


def _row(put: PutDevice, body: bytes) -> tuple[Any, ...]:
    device = put.device
    return device.app, device.name, device.metadata.resource_version, wants(device.spec.get("firmware")), body


def _aliases(put: PutDevice) -> list[str]:
    aliases = put.device.spec.get("alias")
    return list(dict.fromkeys(a for a in aliases if isinstance(a, str))) if isinstance(aliases, list) else []


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[n] for row in rows] for n in range(width)]
