"""How each change of dfud.api reads as SQL. Runs in the writer's thread, within a savepoint of its own batch."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from dfud.api import (
    TRIMMED_MAX,
    AddCounts,
    Change,
    ConflictError,
    DeleteApp,
    DeleteCounts,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    Deployment,
    ExpectDevice,
    Firmware,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    SetFirmware,
    TrimDocuments,
    UnreadableError,
)
from dfud.api.encoding import decode
from dfud_local.columns import text
from dfud_local.limits import Limits
from dfud_local.many import first_sequence, trim_deployments, trim_history
from dfud_local.purge import DEVICE_TABLES, drop_app

Cursor = sqlite3.Connection
USERS = (
    "SELECT name FROM device WHERE app=?1 AND wants=?2 AND wants<>'' "
    # Where the app firmware is said as well; of devices that ask for anything themselves, and a firmware is deleted seldom.
    "UNION SELECT name FROM device WHERE app=?1 AND wants<>'' AND instr(wants, char(10)) AND ?2<>'' "
    "AND ?2 IN (substr(wants, 1, instr(wants, char(10)) - 1), substr(wants, instr(wants, char(10)) + 1)) "
    "UNION SELECT device FROM deployment WHERE app=?1 AND version=?2 AND open ORDER BY 1 LIMIT 10"
)


class Changes:
    """Applies changes to one database.

    freed: the digests of the images that have lost a record; dropped: deleted apps whose
    devices are still there, for Purge.
    """

    def __init__(self, db: Cursor, blob_exists: Callable[[str], bool], limits: Limits) -> None:
        self._db = db
        self._blob_exists = blob_exists
        self._limits = limits
        self.freed: set[str] = set()
        self.dropped: set[str] = set()

    def blob_needed(self, sha256: str) -> bool:
        """Say whether a firmware record of any app names this image."""
        return blob_needed(self._db, sha256)

    def apply(self, change: Change, bodies: tuple[bytes, ...]) -> None:
        """Apply one change, whose encoded bodies are given; raises ConflictError, NotFoundError, and sqlite3.Error."""
        db = self._db
        match change:
            case PutApp(app, expect):
                _not_dropped(db, app.name)
                _check(expect, _version(db, "SELECT version FROM app WHERE name=?", app.name), f"app {app.name}")
                db.execute(
                    "INSERT INTO app VALUES (?,?,?) ON CONFLICT DO UPDATE SET version=excluded.version, body=excluded.body",
                    (app.name, app.metadata.resource_version, *bodies),
                )
                db.execute("DELETE FROM app_label WHERE app=?", (app.name,))
                db.executemany(
                    "INSERT INTO app_label VALUES (?,?,?)", [(app.name, k, v) for k, v in app.metadata.labels.items()]
                )
            case DeleteApp(name, expect):
                found = _version(db, "SELECT version FROM app WHERE name=?", name)
                _exists(found, f"app {name}")
                _check(expect, found, f"app {name}")
                self.freed.update(text(row[0]) for row in db.execute(_IMAGES_OF_APP, (name,)))
                if not drop_app(db, name):
                    self.dropped.add(name)
            case PutDevice(device, expect):
                _app(db, device.app)
                _put_device(db, change, bodies[0])
            case SetFirmware(app, devices, firmware, version):
                db.execute(
                    "UPDATE device SET firmware=?, wants=?, newer=newer+1, version=? "
                    "WHERE app=? AND name IN (SELECT value FROM json_each(?))",
                    (*bodies, _wants(firmware), version, app, json.dumps(devices)),
                )
            case DeleteDevice(app, name, expect):
                found = _version(db, "SELECT version FROM device WHERE app=? AND name=?", app, name)
                _exists(found, f"device {name}")
                _check(expect, found, f"device {name}")
                db.execute("DELETE FROM device WHERE app=? AND name=?", (app, name))
                for table in DEVICE_TABLES:
                    db.execute(f"DELETE FROM {table} WHERE app=? AND device=?", (app, name))  # noqa: S608 - as above
            case PutFirmware(firmware, create, expect):
                _app(db, firmware.app)
                if expect is not None:
                    _check_firmware(db, expect)
                fresh = create and expect is None
                held = set() if fresh else self._free(firmware.app, firmware.version)
                for sha256 in firmware.digests - held:
                    if not self._blob_exists(sha256):
                        raise NotFoundError(f"no image {sha256} is stored")
                verb = "INSERT" if fresh else "INSERT OR REPLACE"
                try:
                    db.execute(
                        f"{verb} INTO firmware VALUES (?,?,?,?,?)",
                        (firmware.app, firmware.version, firmware.sha256, firmware.sequence, *bodies),
                    )
                except sqlite3.IntegrityError:
                    raise ConflictError(f"firmware {firmware.version} of app {firmware.app} exists already") from None
                further = sorted(firmware.digests - {firmware.sha256})
                db.executemany(
                    "INSERT INTO firmware_image VALUES (?,?,?)",
                    [(firmware.app, firmware.version, sha256) for sha256 in further],
                )
            case DeleteFirmware(app, version, unused):
                if unused and (users := wanted_by(db, app, version)):
                    raise ConflictError(f"firmware {version} of app {app} is wanted by device {users[0]}")
                self._free(app, version)
                if not db.execute("DELETE FROM firmware WHERE app=? AND version=?", (app, version)).rowcount:
                    raise NotFoundError(f"no firmware {version} in app {app}")
            case ExpectDevice(app, name, sequence):
                _device(db, app, name)
                row = db.execute("SELECT sequence FROM actual WHERE app=? AND device=?", (app, name)).fetchone()
                if (0 if row is None else row[0]) != sequence:
                    raise ConflictError(
                        f"device {name} of app {app} has said something since, or its update has gone on"
                    )
            case PutActual(actual):
                _device(db, actual.app, actual.device)
                db.execute(
                    "INSERT INTO actual VALUES (?,?,?,?) "
                    "ON CONFLICT DO UPDATE SET body=excluded.body, sequence=sequence+1",
                    (actual.app, actual.device, *bodies, first_sequence()),
                )
            case PutDeployment(deployment, entry):
                self._put_deployment(deployment, bodies[0])
                if entry is not None:
                    self._append(entry.app, entry.device, bodies[1])
            case PutDocument(collection, key, value, create, expect):
                if expect is not None:
                    row = db.execute(
                        "SELECT value FROM document WHERE collection=? AND key=?", (collection, key)
                    ).fetchone()
                    if row is None or bytes(row[0]) != expect:
                        raise ConflictError(f"{collection} {key} has changed since it was read")
                verb = "INSERT" if create else "INSERT OR REPLACE"
                try:
                    db.execute(f"{verb} INTO document VALUES (?,?,?)", (collection, key, value))
                except sqlite3.IntegrityError:
                    raise ConflictError(f"{collection} {key} exists already") from None
            case DeleteDocument(collection, key):
                if not db.execute("DELETE FROM document WHERE collection=? AND key=?", (collection, key)).rowcount:
                    raise NotFoundError(f"no {collection} {key}")
            case AddCounts(scope, add):
                db.executemany(
                    "INSERT INTO count VALUES (?,?,?) ON CONFLICT DO UPDATE SET number=number+excluded.number",
                    [(scope, name, number) for name, number in add.items()],
                )
                # Counters that have come back to 0 take no room: their names may be of an hour that is over.
                db.executemany(
                    "DELETE FROM count WHERE scope=? AND name=? AND number=0",
                    [(scope, name) for name, number in add.items() if number < 0],
                )
            case DeleteCounts(scope):
                db.execute("DELETE FROM count WHERE scope=?", (scope,))
            case TrimDocuments(collection, keep, below):
                db.execute(
                    "DELETE FROM document WHERE collection=?1 AND key IN (SELECT key FROM document WHERE collection=?1 AND "
                    "(key<?3 OR key<=(SELECT key FROM document WHERE collection=?1 ORDER BY key DESC LIMIT 1 OFFSET ?2)) "
                    "ORDER BY key LIMIT ?4)",
                    (collection, keep, below, TRIMMED_MAX),
                )

    def _free(self, app: str, version: str) -> set[str]:
        """Note and return the images that a record names, and forget which others than its first they are."""
        held = {text(row[0]) for row in self._db.execute(_IMAGES_OF_VERSION, (app, version))}
        self._db.execute("DELETE FROM firmware_image WHERE app=? AND version=?", (app, version))
        self.freed |= held
        return held

    def _put_deployment(self, d: Deployment, body: bytes) -> None:
        db = self._db
        _device(db, d.app, d.device)
        db.execute(
            "INSERT INTO actual VALUES (?,?,x'',?) ON CONFLICT DO UPDATE SET sequence=sequence+1",
            (d.app, d.device, first_sequence()),
        )
        row = (not d.final, d.number, body, d.id)
        if db.execute("UPDATE deployment SET open=?, number=?, body=? WHERE id=?", row).rowcount:
            return
        db.execute(
            "INSERT INTO deployment (id, app, device, version, created, open, number, body) VALUES (?,?,?,?,?,?,?,?)",
            (d.id, d.app, d.device, d.version, d.created_s, not d.final, d.number, body),
        )
        # A device begins an update far more seldom than it reports, so the walk over its index costs nothing that counts.
        trim_deployments(db, d.app, d.device, self._limits.deployments_per_device)

    def _append(self, app: str, device: str, body: bytes) -> None:
        """Append to a device's history. Its entries are counted, so those that have to go are found without a walk.

        Entries from before they were counted have the number 0. A few go with each new one, so that no commit takes long.
        """
        query = "SELECT number FROM history WHERE app=? AND device=? ORDER BY number DESC LIMIT 1"
        newest = self._db.execute(query, (app, device)).fetchone()
        number = 1 if newest is None else newest[0] + 1
        self._db.execute(
            "INSERT INTO history (app, device, number, body) VALUES (?,?,?,?)", (app, device, number, body)
        )
        trim_history(self._db, app, device, number - self._limits.history_per_device)


_IMAGES_OF_APP = "SELECT sha256 FROM firmware WHERE app=?1 UNION ALL SELECT sha256 FROM firmware_image WHERE app=?1"
_IMAGES_OF_VERSION = (
    "SELECT sha256 FROM firmware WHERE app=?1 AND version=?2 "
    "UNION ALL SELECT sha256 FROM firmware_image WHERE app=?1 AND version=?2"
)
_NEEDED = "SELECT 1 FROM firmware WHERE sha256=?1 UNION ALL SELECT 1 FROM firmware_image WHERE sha256=?1 LIMIT 1"


def _put_device(db: Cursor, change: PutDevice, body: bytes) -> None:
    device = change.device
    key = (device.app, device.name)
    found = _version(db, "SELECT version FROM device WHERE app=? AND name=?", *key)
    _check(change.expect, found, f"device {device.name}")
    db.execute(
        "INSERT INTO device (app, name, version, wants, body) VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE "
        "SET version=excluded.version, wants=excluded.wants, body=excluded.body, firmware=NULL, newer=0",
        (*key, device.metadata.resource_version, _wants(device.spec.get("firmware")), body),
    )
    if found is not None:
        db.execute("DELETE FROM device_label WHERE app=? AND device=?", key)
        db.execute("DELETE FROM alias WHERE app=? AND device=?", key)
    db.executemany(
        "INSERT INTO device_label VALUES (?,?,?,?)",
        [(device.app, k, v, device.name) for k, v in device.metadata.labels.items()],
    )
    aliases = device.spec.get("alias")
    for alias in aliases if isinstance(aliases, list) else ():
        if not isinstance(alias, str):
            continue
        try:
            db.execute("INSERT OR FAIL INTO alias VALUES (?,?,?)", (device.app, alias, device.name))
        except sqlite3.IntegrityError:
            (owner,) = db.execute("SELECT device FROM alias WHERE app=? AND alias=?", (device.app, alias)).fetchone()
            if text(owner) != device.name:
                raise ConflictError(f"alias {alias} belongs to device {text(owner)}") from None


def wanted_by(db: Cursor, app: str, version: str) -> list[str]:
    """Return up to 10 devices whose own spec asks for a version, or that have an open deployment of it."""
    return [text(row[0]) for row in db.execute(USERS, (app, version))]


def _check_firmware(db: Cursor, expect: Firmware) -> None:
    what = f"firmware {expect.version} of app {expect.app}"
    row = db.execute("SELECT body FROM firmware WHERE app=? AND version=?", (expect.app, expect.version)).fetchone()
    _exists(None if row is None else "", what)
    try:
        same = decode(what, Firmware, row[0]) == expect
    except UnreadableError:
        same = False
    if not same:
        raise ConflictError(f"{what} has changed since it was read")


def _wants(firmware: Any) -> str:
    """Return what the column `wants` says of a spec.firmware: the version, behind a line feed that of the app firmware, or ""."""
    said = firmware if isinstance(firmware, dict) else {}
    version, app = (v if isinstance(v, str) and "\n" not in v else "" for v in (said.get("version"), said.get("app")))
    return f"{version}\n{app}" if app else version


def _version(db: Cursor, query: str, *key: str) -> str | None:
    row: Any = db.execute(query, key).fetchone()
    return None if row is None else text(row[0])


def _check(expect: str | None, found: str | None, what: str) -> None:
    if expect is None or expect == (found or ""):
        return
    if expect == "":
        raise ConflictError(f"{what} exists already")
    _exists(found, what)
    raise ConflictError(f"{what} has changed since it was read")


def _exists(found: str | None, what: str) -> None:
    if found is None:
        raise NotFoundError(f"no {what}")


def _app(db: Cursor, app: str) -> None:
    _exists(_version(db, "SELECT version FROM app WHERE name=?", app), f"app {app}")


def _not_dropped(db: Cursor, app: str) -> None:
    if db.execute("SELECT 1 FROM dropped WHERE app=?", (app,)).fetchone() is not None:
        raise ConflictError(f"app {app} was deleted, and its devices are still being removed: try again in a moment")


def _device(db: Cursor, app: str, device: str) -> None:
    query = "SELECT '' FROM device WHERE app=? AND name=? AND app NOT IN (SELECT app FROM dropped)"
    _exists(_version(db, query, app, device), f"device {device} in app {app}")


def blob_needed(db: Cursor, sha256: str) -> bool:
    """Say whether a firmware record of any app names this image, as its first or as a further one."""
    return db.execute(_NEEDED, (sha256,)).fetchone() is not None
