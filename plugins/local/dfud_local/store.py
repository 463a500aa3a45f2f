"""The store: what is asked of it as SQL, and rows as the model's structs. A record that cannot be read costs itself only."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import trio

from dfud.api import (
    Actual,
    App,
    BlobWriter,
    Bus,
    Capability,
    Change,
    Deployment,
    Device,
    DeviceView,
    Firmware,
    HistoryEntry,
    Selector,
    Store,
    StoreError,
    UnreadableError,
)
from dfud_local.blobs import Blobs
from dfud_local.changes import blob_needed
from dfud_local.check import check_directory
from dfud_local.damage import Damage
from dfud_local.encoding import decode, unreadable
from dfud_local.limits import Limits
from dfud_local.lock import DirectoryLock
from dfud_local.reader import Reader, Row
from dfud_local.schema import migrate
from dfud_local.writer import Writer

log = logging.getLogger("dfud.store")
T = TypeVar("T")
EVERYTHING = Selector()
BUSY_TIMEOUT_MS = 5000


class LocalStore(Store):
    """Records in `directory`/dfud.sqlite3, blobs in `directory`/blobs."""

    name = "local"
    capabilities = frozenset({Capability.DELETE_FIRMWARE, Capability.APP_FIRMWARE})

    def __init__(self, directory: Path, *, database_max_bytes: int = 0, limits: Limits | None = None) -> None:
        self._directory = directory
        self._database_max_bytes = database_max_bytes
        self._limits = limits or Limits()
        self._blobs = Blobs(directory / "blobs", self._release)
        self._damage = Damage()
        self._writer: Writer | None = None
        self._open_reader: Reader | None = None

    async def check(self) -> None:
        await trio.to_thread.run_sync(check_directory, self._directory)

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with contextlib.ExitStack() as opened:
            try:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
                opened.callback(DirectoryLock(self._directory).release)
                self._blobs.open()
                database = opened.enter_context(contextlib.closing(self._connect()))
                migrate(database)
                self._collect(database)
                database.close()
                self._open_reader = Reader(lambda: self._connect(readonly=True))
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"the local store in {self._directory} cannot be opened: {error}") from error
            self._writer = Writer(self._connect, self._blobs, self._limits)
            task_status.started()
            try:
                await self._writer.serve()
            finally:
                reader, self._open_reader = self._open_reader, None
                reader.close()  # first, for an open reader keeps the log from being brought into the database
                await self._writer.close()
                self._writer = None

    def _collect(self, database: sqlite3.Connection) -> None:
        """Remove images without a record. Not where there is no record at all: then it is the database that is missing."""
        if database.execute("SELECT 1 FROM firmware LIMIT 1").fetchone() is None:
            return
        removed = self._blobs.collect(lambda sha256: blob_needed(database, sha256))
        if removed:
            log.info("images without a record were removed", extra={"images": removed})

    def _connect(self, *, readonly: bool = False) -> sqlite3.Connection:
        path = self._directory / "dfud.sqlite3"
        database = sqlite3.connect(
            f"file:{quote(str(path))}?mode={'ro' if readonly else 'rwc'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        database.text_factory = lambda data: data.decode("utf-8", "replace")
        database.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        if not readonly:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            if self._database_max_bytes:
                (page,) = database.execute("PRAGMA page_size").fetchone()
                database.execute(f"PRAGMA max_page_count={max(1, self._database_max_bytes // page)}")
        return database

    def problem(self) -> str:
        return "the store is not open" if self._writer is None else self._writer.problem()

    def counters(self) -> Mapping[str, float]:
        return {"dfud_store_unreadable_records": float(len(self._damage))}

    async def commit(self, changes: Sequence[Change]) -> None:
        if self._writer is None:
            raise StoreError("the store is not open")
        await self._writer.commit(changes)
        self._damage.mended(changes)

    @property
    def _reader(self) -> Reader:
        if self._open_reader is None:
            raise StoreError("the store is not open")
        return self._open_reader

    # Reading

    async def app(self, name: str) -> App | None:
        row = self._reader.row("SELECT body FROM app WHERE name=?", name)
        return None if row is None else self._app(name, row[0])

    def _app(self, name: str, body: bytes) -> App:
        try:
            app = decode(f"app {name}", App, body)
            if app.name != name:
                raise unreadable(f"app {name}", "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, "app", name)
            raise
        return app

    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        where, values = _where(selector, "SELECT 1 FROM app_label WHERE app=a.name")
        query = f"""SELECT name, body FROM app a WHERE name NOT IN (SELECT value FROM json_each(?)) AND {where}
            ORDER BY name LIMIT ? OFFSET ?"""  # noqa: S608 - values are bound
        return await self._whole(
            ("app",), lambda bad: self._reader.rows(query, bad, *values, limit, offset), lambda row: self._app(*row)
        )

    async def _whole(
        self, kind: tuple[str, ...], read: Callable[[str], Awaitable[list[Row]]], decoded: Callable[[Row], T]
    ) -> list[T]:
        """Read a page of records that can be read, as many as were asked for: a short page means that it was the last.

        read: given the names to leave out, as JSON.
        """
        while True:
            known = self._damage.names(*kind)
            found: list[T] = []
            for row in await read(json.dumps(known)):
                with contextlib.suppress(UnreadableError):
                    found.append(decoded(row))
            if len(self._damage.names(*kind)) <= len(known):
                return found

    async def device(self, app: str, device: str) -> DeviceView | None:
        row = self._reader.row(_VIEW + "WHERE d.app=? AND d.name=?", app, device)
        return None if row is None else self._view(app, row)

    def _view(self, app: str, row: Row) -> DeviceView:
        name, body, actual, newest_id, newest = row
        what = f"device {name} of app {app}"
        try:
            device = decode(what, Device, body)
            if (device.app, device.name) != (app, name):
                raise unreadable(what, "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, "device", app, name)
            raise
        return DeviceView(device, self._actual(app, name, actual), self._newest(app, name, newest_id, newest))

    def _actual(self, app: str, device: str, body: bytes | None) -> Actual | None:
        """What cannot be read was not said: the device says it again."""
        try:
            return None if body is None else decode(f"what device {device} of app {app} said", Actual, body)
        except UnreadableError as error:
            self._damage.found(error, "actual", app, device)
            return None

    def _newest(self, app: str, device: str, newest_id: str, body: bytes | None) -> Deployment | None:
        """Return the newest deployment that can be read, which is most probably the one given."""
        row: Row | None = (newest_id, app, device, body) if body is not None else None
        passed = 0
        while row is not None:
            with contextlib.suppress(UnreadableError):
                return self._deployment(row)
            passed += 1
            row = self._reader.row(_DEPLOYMENTS + _NEWEST + "LIMIT 1 OFFSET ?", app, device, passed)
        return None

    async def devices(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        where, values = _where(selector, "SELECT 1 FROM device_label WHERE app=d.app AND device=d.name")
        query = f"""{_VIEW} WHERE d.app=? AND d.name>? AND d.name NOT IN (SELECT value FROM json_each(?)) AND {where}
            ORDER BY d.name LIMIT ? OFFSET ?"""  # noqa: S608 - values are bound
        return await self._whole(
            ("device", app),
            lambda bad: self._reader.rows(query, app, after, bad, *values, limit, offset),
            lambda row: self._view(app, row),
        )

    async def find_alias(self, app: str, alias: str) -> str | None:
        row = self._reader.row("SELECT name FROM device WHERE app=? AND name=?", app, alias) or self._reader.row(
            "SELECT device FROM alias WHERE app=? AND alias=?", app, alias
        )
        return None if row is None else str(row[0])

    async def firmware(self, app: str, version: str) -> Firmware | None:
        row = self._reader.row("SELECT version, body FROM firmware WHERE app=? AND version=?", app, version)
        return None if row is None else self._firmware(app, row)

    def _firmware(self, app: str, row: Row) -> Firmware:
        version, body = row
        what = f"firmware {version} of app {app}"
        try:
            firmware = decode(what, Firmware, body)
            if (firmware.app, firmware.version) != (app, version):
                raise unreadable(what, "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, "firmware", app, version)
            raise
        return firmware

    async def firmwares(self, app: str) -> list[Firmware]:
        query = "SELECT version, body FROM firmware WHERE app=? ORDER BY sequence DESC, version DESC"
        found: list[Firmware] = []
        for row in await self._reader.rows(query, app):
            with contextlib.suppress(UnreadableError):
                found.append(self._firmware(app, row))
        return found

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        query = "SELECT version, body FROM firmware WHERE app=? AND sha256=? ORDER BY sequence DESC LIMIT 1"
        row = self._reader.row(query, app, sha256)
        return None if row is None else self._firmware(app, row)

    async def deployment(self, deployment_id: str) -> Deployment | None:
        row = self._reader.row("SELECT id, app, device, body FROM deployment WHERE id=?", deployment_id)
        return None if row is None else self._deployment(row)

    def _deployment(self, row: Row) -> Deployment:
        deployment_id, app, device, body = row
        try:
            return decode(f"deployment {deployment_id} of device {device} of app {app}", Deployment, body)
        except UnreadableError as error:
            self._damage.found(error, "deployment", app, device, deployment_id)
            raise

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        query = f"{_DEPLOYMENTS} AND id NOT IN (SELECT value FROM json_each(?)) {_NEWEST} LIMIT ?"  # noqa: S608
        return await self._whole(
            ("deployment", app, device), lambda bad: self._reader.rows(query, app, device, bad, limit), self._deployment
        )

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        query = "SELECT number, body FROM history WHERE app=? AND device=? ORDER BY number DESC LIMIT ?"
        found: list[HistoryEntry] = []
        for number, body in await self._reader.rows(query, app, device, limit):
            try:
                found.append(
                    decode(f"entry {number} in the history of device {device} of app {app}", HistoryEntry, body)
                )
            except UnreadableError as error:
                self._damage.found(error, "history", app, device, str(number))
        return found

    async def users_of(self, app: str, version: str) -> list[str]:
        rows = await self._reader.rows(
            "SELECT name FROM device WHERE app=?1 AND wants=?2 AND wants<>'' "
            "UNION SELECT device FROM deployment WHERE app=?1 AND version=?2 AND open ORDER BY 1 LIMIT 10",
            app,
            version,
        )
        return [row[0] for row in rows]

    async def document(self, collection: str, key: str) -> bytes | None:
        row = self._reader.row("SELECT value FROM document WHERE collection=? AND key=?", collection, key)
        return None if row is None else bytes(row[0])

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        rows = await self._reader.rows(
            "SELECT key, value FROM document WHERE collection=? AND key>? AND substr(key, 1, ?)=? ORDER BY key LIMIT ?",
            collection,
            after,
            len(prefix),
            prefix,
            limit,
        )
        return [(row[0], bytes(row[1])) for row in rows]

    async def new_blob(self) -> BlobWriter:
        if self._writer is None:
            raise StoreError("the store is not open")
        return await self._blobs.new()

    async def _release(self, sha256: str) -> None:
        if self._writer is not None:
            await self._writer.release(sha256)

    async def blob(self, sha256: str) -> Path | None:
        return self._blobs.find(sha256)

    async def backup(self) -> AsyncIterator[bytes]:
        """Yield a SQLite database file."""
        target = self._directory / ".backup.sqlite3"

        def copy() -> None:
            target.unlink(missing_ok=True)
            source = self._connect(readonly=True)
            try:
                source.execute("VACUUM INTO ?", (str(target),))
            finally:
                source.close()

        try:
            await trio.to_thread.run_sync(copy)
            async with await trio.open_file(target, "rb") as file:
                while block := await file.read(1 << 18):
                    yield block
        except sqlite3.Error as error:
            raise StoreError(f"the database could not be copied: {error}", retryable=True) from error
        finally:
            target.unlink(missing_ok=True)


_DEPLOYMENTS = "SELECT id, app, device, body FROM deployment WHERE app=? AND device=? "
_NEWEST = "ORDER BY number DESC, created DESC, id DESC "
_VIEW = """SELECT d.name, d.body, a.body, p.id, p.body FROM device d LEFT JOIN actual a ON a.app=d.app AND a.device=d.name
    LEFT JOIN deployment p ON p.id=(SELECT id FROM deployment WHERE app=d.app AND device=d.name
    ORDER BY number DESC, created DESC, id DESC LIMIT 1) """


def _where(selector: Selector, labels: str) -> tuple[str, list[str]]:
    """Return the SQL condition of a selector, given the query of the labels of one row, and the values to bind."""
    clauses = ["1"]
    values: list[str] = []
    for r in selector.requirements:
        test = f"EXISTS ({labels} AND key=?"
        values.append(r.key)
        if r.operator in ("in", "notin"):
            test += " AND value IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(r.values))
        clauses.append(f"{'NOT ' if r.operator in ('notin', 'absent') else ''}{test})")
    return " AND ".join(clauses), values
