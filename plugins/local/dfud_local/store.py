"""The store: point reads on the trio thread (a page cache away), lists and writes in threads."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
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
)
from dfud_local.blobs import Blobs
from dfud_local.schema import migrate
from dfud_local.writer import Writer

T = TypeVar("T")
EVERYTHING = Selector()
BUSY_TIMEOUT_MS = 5000


class LocalStore(Store):
    """Records in `directory`/dfud.sqlite3, blobs in `directory`/blobs."""

    name = "local"
    capabilities = frozenset({Capability.DELETE_FIRMWARE, Capability.APP_FIRMWARE})

    def __init__(self, directory: Path, *, database_max_bytes: int = 0) -> None:
        self._directory = directory
        self._database_max_bytes = database_max_bytes
        self._blobs = Blobs(directory / "blobs")
        self._writer: Writer | None = None
        self._reader: sqlite3.Connection | None = None
        self._list_readers: list[sqlite3.Connection] = []

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._blobs.open()
            database = self._connect()
            migrate(database)
            database.close()
            self._reader = self._connect(readonly=True)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the local store in {self._directory} cannot be opened: {error}") from error
        self._writer = Writer(self._connect, self._blobs.directory)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            await self._writer.close()
            for reader in (self._reader, *self._list_readers):
                reader.close()
            self._reader = self._writer = None
            self._list_readers.clear()

    def _connect(self, *, readonly: bool = False) -> sqlite3.Connection:
        path = self._directory / "dfud.sqlite3"
        database = sqlite3.connect(
            f"file:{path}?mode={'ro' if readonly else 'rwc'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        database.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        if not readonly:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            if self._database_max_bytes:
                (page,) = database.execute("PRAGMA page_size").fetchone()
                database.execute(f"PRAGMA max_page_count={max(1, self._database_max_bytes // page)}")
        return database

    async def commit(self, changes: Sequence[Change]) -> None:
        if self._writer is None:
            raise StoreError("the store is not open")
        await self._writer.commit(changes)

    # Point reads: a few microseconds each, so a thread would cost more than it saves.

    def _row(self, query: str, *key: Any) -> tuple[Any, ...] | None:
        if self._reader is None:
            raise StoreError("the store is not open")
        try:
            return self._reader.execute(query, key).fetchone()  # type: ignore[no-any-return]  # sqlite3 says Any
        except sqlite3.Error as error:
            raise StoreError(f"the database could not be read: {error}", retryable=True) from error

    def _get(self, kind: type[T], query: str, *key: Any) -> T | None:
        row = self._row(query, *key)
        return None if row is None else msgspec.msgpack.decode(row[0], type=kind)

    async def _list(self, query: str, *key: Any) -> list[tuple[Any, ...]]:
        def read() -> list[tuple[Any, ...]]:
            reader = self._list_readers.pop() if self._list_readers else self._connect(readonly=True)
            try:
                return reader.execute(query, key).fetchall()
            finally:
                self._list_readers.append(reader)

        try:
            return await trio.to_thread.run_sync(read)
        except sqlite3.Error as error:
            raise StoreError(f"the database could not be read: {error}", retryable=True) from error

    async def app(self, name: str) -> App | None:
        return self._get(App, "SELECT body FROM app WHERE name=?", name)

    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        where, values = _where(selector, "SELECT 1 FROM app_label WHERE app=a.name")
        rows = await self._list(
            f"SELECT body FROM app a WHERE {where} ORDER BY name LIMIT ? OFFSET ?",  # noqa: S608 - values are bound
            *values,
            limit,
            offset,
        )
        return [msgspec.msgpack.decode(row[0], type=App) for row in rows]

    async def device(self, app: str, device: str) -> DeviceView | None:
        row = self._row(_VIEW + "WHERE d.app=? AND d.name=?", app, device)
        return None if row is None else _view(row)

    async def devices(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        where, values = _where(selector, "SELECT 1 FROM device_label WHERE app=d.app AND device=d.name")
        rows = await self._list(
            f"{_VIEW} WHERE d.app=? AND d.name>? AND {where} ORDER BY d.name LIMIT ? OFFSET ?",
            app,
            after,
            *values,
            limit,
            offset,
        )
        return [_view(row) for row in rows]

    async def find_alias(self, app: str, alias: str) -> str | None:
        row = self._row("SELECT name FROM device WHERE app=? AND name=?", app, alias) or self._row(
            "SELECT device FROM alias WHERE app=? AND alias=?", app, alias
        )
        return None if row is None else str(row[0])

    async def firmware(self, app: str, version: str) -> Firmware | None:
        return self._get(Firmware, "SELECT body FROM firmware WHERE app=? AND version=?", app, version)

    async def firmwares(self, app: str) -> list[Firmware]:
        rows = await self._list("SELECT body FROM firmware WHERE app=? ORDER BY sequence DESC, version DESC", app)
        return [msgspec.msgpack.decode(row[0], type=Firmware) for row in rows]

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        return self._get(
            Firmware,
            "SELECT body FROM firmware WHERE app=? AND sha256=? ORDER BY sequence DESC LIMIT 1",
            app,
            sha256,
        )

    async def deployment(self, deployment_id: str) -> Deployment | None:
        return self._get(Deployment, "SELECT body FROM deployment WHERE id=?", deployment_id)

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        rows = await self._list(
            "SELECT body FROM deployment WHERE app=? AND device=? ORDER BY created DESC LIMIT ?", app, device, limit
        )
        return [msgspec.msgpack.decode(row[0], type=Deployment) for row in rows]

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        rows = await self._list(
            "SELECT body FROM history WHERE app=? AND device=? ORDER BY id DESC LIMIT ?", app, device, limit
        )
        return [msgspec.msgpack.decode(row[0], type=HistoryEntry) for row in rows]

    async def users_of(self, app: str, version: str) -> list[str]:
        rows = await self._list(
            "SELECT name FROM device WHERE app=?1 AND wants=?2 AND wants<>'' "
            "UNION SELECT device FROM deployment WHERE app=?1 AND version=?2 AND open ORDER BY 1 LIMIT 10",
            app,
            version,
        )
        return [row[0] for row in rows]

    async def document(self, collection: str, key: str) -> bytes | None:
        row = self._row("SELECT value FROM document WHERE collection=? AND key=?", collection, key)
        return None if row is None else bytes(row[0])

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        rows = await self._list(
            "SELECT key, value FROM document WHERE collection=? AND key>? AND substr(key, 1, ?)=? ORDER BY key LIMIT ?",
            collection,
            after,
            len(prefix),
            prefix,
            limit,
        )
        return [(row[0], bytes(row[1])) for row in rows]

    async def new_blob(self) -> BlobWriter:
        return await self._blobs.new()

    async def blob(self, sha256: str) -> Path | None:
        path = self._blobs.path(sha256)
        return path if len(sha256) == 64 and path.exists() else None

    async def delete_blob(self, sha256: str) -> None:
        self._blobs.path(sha256).unlink(missing_ok=True)

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


_VIEW = """SELECT d.body, a.body, (SELECT body FROM deployment p WHERE p.app=d.app AND p.device=d.name
    ORDER BY p.created DESC LIMIT 1) FROM device d LEFT JOIN actual a ON a.app=d.app AND a.device=d.name """


def _view(row: tuple[Any, ...]) -> DeviceView:
    def read(body: bytes | None, kind: type[T]) -> T | None:
        return None if body is None else msgspec.msgpack.decode(body, type=kind)

    return DeviceView(
        msgspec.msgpack.decode(row[0], type=Device),
        read(row[1], Actual),
        read(row[2], Deployment),
    )


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
