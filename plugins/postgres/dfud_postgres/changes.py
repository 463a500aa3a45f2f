"""How the seldom changes of dfud.api read as SQL, one by one. The frequent ones: see batch.py and registering.py."""

from __future__ import annotations

from typing import Any

from dfud.api import (
    TRIMMED_MAX,
    Change,
    ConflictError,
    DeleteApp,
    DeleteCounts,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    Firmware,
    NotFoundError,
    PutApp,
    PutDocument,
    PutFirmware,
    SetFirmware,
    TrimDocuments,
    UnreadableError,
)
from dfud.api.encoding import decode
from dfud_postgres.connection import Connection
from dfud_postgres.notices import Notices
from dfud_postgres.queries import USERS
from dfud_postgres.registering import check, wants
from dfud_postgres.wire import Query

AT_ONCE = 200  # devices that are deleted with their app in one statement; more follow

APP_VERSION = Query("SELECT version, dropped FROM app WHERE name=$1 FOR UPDATE", "t")
APP_THERE = Query("SELECT 1 FROM app WHERE name=$1 AND NOT dropped FOR SHARE", "t")
MAKE_APP = Query("INSERT INTO app (name, version, body) VALUES ($1,$2,$3) ON CONFLICT DO NOTHING", "ttb")
PUT_APP = Query(
    "INSERT INTO app (name, version, body) VALUES ($1,$2,$3) ON CONFLICT (name) "
    "DO UPDATE SET version=excluded.version, body=excluded.body",
    "ttb",
)
APP_UNLABEL = Query("DELETE FROM app_label WHERE app=$1", "t")
APP_LABEL = Query("INSERT INTO app_label SELECT $1, * FROM unnest($2::text[], $3::text[])", "tTT")
APP_IMAGES = Query("SELECT sha256 FROM firmware_image WHERE app=$1", "t")
DROP_FIRMWARE = Query("DELETE FROM firmware WHERE app=$1", "t")
MANY_DEVICES = Query("SELECT 1 FROM device WHERE app=$1 OFFSET $2 LIMIT 1", "ti")
DROP_APP = Query("UPDATE app SET dropped=true WHERE name=$1", "t")
DELETE_APP = Query("DELETE FROM app WHERE name=$1", "t")
DEVICE_VERSION = Query(
    "SELECT d.version FROM device d JOIN app p ON p.name=d.app AND NOT p.dropped WHERE d.app=$1 AND d.name=$2 FOR UPDATE OF d",
    "tt",
)
SET_FIRMWARE = Query(
    "UPDATE device SET firmware=$3, wants=$4, newer=newer+1, version=$5 WHERE app=$1 AND name IN "
    "(SELECT name FROM device WHERE app=$1 AND name=ANY($2) ORDER BY name FOR UPDATE) RETURNING name",
    "tTbtt",
)
DELETE_DEVICE = Query("DELETE FROM device WHERE app=$1 AND name=$2", "tt")
STORED = Query("SELECT sha256 FROM blob WHERE sha256=ANY($1) AND stored ORDER BY sha256 FOR KEY SHARE", "T")
FIRMWARE = Query("SELECT body FROM firmware WHERE app=$1 AND version=$2 FOR UPDATE", "tt")
IMAGES = Query("SELECT sha256 FROM firmware_image WHERE app=$1 AND version=$2", "tt")
MAKE_FIRMWARE = Query("INSERT INTO firmware VALUES ($1,$2,$3,$4) ON CONFLICT DO NOTHING", "ttib")
PUT_FIRMWARE = Query(
    "INSERT INTO firmware VALUES ($1,$2,$3,$4) ON CONFLICT (app, version) DO UPDATE "
    "SET sequence=excluded.sequence, body=excluded.body",
    "ttib",
)
DELETE_IMAGES = Query("DELETE FROM firmware_image WHERE app=$1 AND version=$2", "tt")
PUT_IMAGES = Query("INSERT INTO firmware_image SELECT $1, $2, * FROM unnest($3::text[])", "ttT")
DELETE_FIRMWARE = Query("DELETE FROM firmware WHERE app=$1 AND version=$2", "tt")
VALUE = Query("SELECT value FROM document WHERE collection=$1 AND key=$2 FOR UPDATE", "tt")
MAKE_DOCUMENT = Query("INSERT INTO document VALUES ($1,$2,$3) ON CONFLICT DO NOTHING", "ttb")
PUT_DOCUMENT = Query(
    "INSERT INTO document VALUES ($1,$2,$3) ON CONFLICT (collection, key) DO UPDATE SET value=excluded.value", "ttb"
)
DELETE_DOCUMENT = Query("DELETE FROM document WHERE collection=$1 AND key=$2", "tt")
TRIM_DOCUMENTS = Query(
    "DELETE FROM document WHERE collection=$1 AND key IN (SELECT key FROM document WHERE collection=$1 AND "
    "(key<$3 OR key<=(SELECT key FROM document WHERE collection=$1 ORDER BY key DESC LIMIT 1 OFFSET $2)) ORDER BY key LIMIT $4)",
    "titi",
)
DELETE_COUNTS = Query("DELETE FROM count WHERE scope=$1", "t")


class Changes:
    """Applies changes, one after the other. freed: digests of images that have lost a record; notices: what others are told."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self.freed: set[str] = set()
        self.notices = Notices()

    async def _row(self, query: Query, *values: Any) -> Any:
        return (await self._c.run((query, values)))[0].row

    async def _count(self, query: Query, *values: Any) -> int:
        return (await self._c.run((query, values)))[0].count

    async def apply(self, change: Change, bodies: tuple[bytes, ...]) -> None:
        """Apply one change, whose encoded bodies are given; raises ConflictError, NotFoundError, DatabaseError, Lost."""
        run, notices = self._c.run, self.notices
        match change:
            case PutApp(app, expect):
                await self._put_app(change, bodies[0])
            case DeleteApp(name, expect):
                row = await self._row(APP_VERSION, name)
                _exists(row, f"app {name}")
                _check(expect, row, f"app {name}")
                if row[1]:
                    raise NotFoundError(f"no app {name}")
                images, *_, many = await run(
                    (APP_IMAGES, (name,)),
                    (DROP_FIRMWARE, (name,)),
                    (APP_UNLABEL, (name,)),
                    (MANY_DEVICES, (name, AT_ONCE)),
                )
                self.freed.update(row[0] for row in images.rows)
                await run((DELETE_APP if many.row is None else DROP_APP, (name,)))
                notices.app(name, deleted=True)
            case SetFirmware(app, devices, firmware, version):
                if devices:
                    (done,) = await run((SET_FIRMWARE, (app, list(devices), *bodies, wants(firmware), version)))
                    notices.devices(app, [row[0] for row in done.rows])
            case DeleteDevice(app, name, expect):
                row = await self._row(DEVICE_VERSION, app, name)
                _exists(row, f"device {name}")
                _check(expect, row, f"device {name}")
                await run((DELETE_DEVICE, (app, name)))
                notices.device(app, name, deleted=True)
            case PutFirmware():
                await self._put_firmware(change, bodies[0])
            case DeleteFirmware(app, version, unused):
                if unused:
                    # Who puts a device has the app's row shared, so nobody asks for the version from here on.
                    _, users = await run((APP_VERSION, (app,)), (USERS, (app, version)))
                    if users.row is not None:
                        raise ConflictError(f"firmware {version} of app {app} is wanted by device {users.row[0]}")
                found, images = await run((FIRMWARE, (app, version)), (IMAGES, (app, version)))
                if found.row is None:
                    raise NotFoundError(f"no firmware {version} in app {app}")
                self.freed.update(row[0] for row in images.rows)
                await run((DELETE_FIRMWARE, (app, version)))
                try:
                    notices.firmware(decode("", Firmware, found.row[0]), deleted=True)
                except UnreadableError:
                    notices.missed(app)
            case PutDocument(collection, key, value, create, expect_value, tell):
                if expect_value is not None:
                    row = await self._row(VALUE, collection, key)
                    if row is None or row[0] != expect_value:
                        raise ConflictError(f"{collection} {key} has changed since it was read")
                if not await self._count(MAKE_DOCUMENT if create else PUT_DOCUMENT, collection, key, value):
                    raise ConflictError(f"{collection} {key} exists already")
                if tell:
                    notices.document(collection, key)
            case DeleteDocument(collection, key, tell):
                if not await self._count(DELETE_DOCUMENT, collection, key):
                    raise NotFoundError(f"no {collection} {key}")
                if tell:
                    notices.document(collection, key)
            case DeleteCounts(scope):
                await run((DELETE_COUNTS, (scope,)))
            case TrimDocuments(collection, keep, below):
                await run((TRIM_DOCUMENTS, (collection, keep, below, TRIMMED_MAX)))
            case _:
                raise NotImplementedError(f"the store postgres does not know {type(change).__name__}")

    async def _put_app(self, change: PutApp, body: bytes) -> None:
        app = change.app
        row = await self._row(APP_VERSION, app.name)
        if row is not None and row[1]:
            raise ConflictError(
                f"app {app.name} was deleted, and its devices are still being removed: try again in a moment"
            )
        _check(change.expect, row, f"app {app.name}")
        made = await self._count(
            MAKE_APP if change.expect == "" else PUT_APP, app.name, app.metadata.resource_version, body
        )
        if not made:
            raise ConflictError(f"app {app.name} exists already")
        labels = app.metadata.labels
        await self._c.run((APP_UNLABEL, (app.name,)), (APP_LABEL, (app.name, list(labels), list(labels.values()))))
        self.notices.app(app.name)

    async def _put_firmware(self, change: PutFirmware, body: bytes) -> None:
        firmware, expect = change.firmware, change.expect
        create = change.create and expect is None
        key = (firmware.app, firmware.version)
        digests = sorted(firmware.digests)
        there, stored, record, before = await self._c.run(
            (APP_THERE, (firmware.app,)), (STORED, (digests,)), (FIRMWARE, key), (IMAGES, key)
        )
        _exists(there.row, f"app {firmware.app}")
        if expect is not None:
            _check_firmware(record.row, expect)
        held = set() if create else {row[0] for row in before.rows}
        missing = set(digests) - {row[0] for row in stored.rows} - held
        if missing:
            raise NotFoundError(f"no image {min(missing)} is stored")
        if not await self._count(MAKE_FIRMWARE if create else PUT_FIRMWARE, *key, firmware.sequence, body):
            raise ConflictError(f"firmware {firmware.version} of app {firmware.app} exists already")
        await self._c.run((DELETE_IMAGES, key), (PUT_IMAGES, (*key, digests)))
        self.freed |= held - set(digests)
        self.notices.firmware(firmware)


def _check(expect: str | None, found: Any, what: str) -> None:
    check(expect, found[0] if found is not None else None, what)


def _check_firmware(row: Any, expect: Firmware) -> None:
    what = f"firmware {expect.version} of app {expect.app}"
    _exists(row, what)
    try:
        same = decode(what, Firmware, row[0]) == expect
    except UnreadableError:
        same = False
    if not same:
        raise ConflictError(f"{what} has changed since it was read")


def _exists(found: Any, what: str) -> None:
    if found is None:
        raise NotFoundError(f"no {what}")
