"""The store: opened, closed, written and copied."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import trio

from dfud.api import (
    BlobWriter,
    Bus,
    Capability,
    Change,
    Pruned,
    StoreError,
)
from dfud_local.blobs import Blobs
from dfud_local.changes import blob_needed
from dfud_local.check import check_directory, peek
from dfud_local.limits import Limits
from dfud_local.lock import DirectoryLock
from dfud_local.reader import Reader
from dfud_local.reading import ReadingStore
from dfud_local.schema import migrate
from dfud_local.writer import Writer

log = logging.getLogger("dfud.store")
BUSY_TIMEOUT_MS = 5000


class LocalStore(ReadingStore):
    """Records in `directory`/dfud.sqlite3, blobs in `directory`/blobs."""

    name = "local"
    capabilities = frozenset(
        {Capability.DELETE_FIRMWARE, Capability.SEVERAL_IMAGES, Capability.APP_FIRMWARE, Capability.BACKUP}
    )

    def __init__(
        self, directory: Path, *, database_max_bytes: int = 0, limits: Limits | None = None, stuck_s: float = 30.0
    ) -> None:
        super().__init__()
        self._directory = directory
        self._database_max_bytes = database_max_bytes
        self._limits = limits or Limits()
        self._blobs = Blobs(directory / "blobs", self._release)
        self._stuck_s = stuck_s
        self._writer: Writer | None = None

    async def check(self) -> None:
        await trio.to_thread.run_sync(check_directory, self._directory)

    async def peek(self, collection: str, key: str) -> bytes | None:
        return await trio.to_thread.run_sync(peek, self._directory, collection, key)

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with contextlib.ExitStack() as opened:
            try:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
                opened.callback(DirectoryLock(self._directory).release)
                self._blobs.open()
                database = opened.enter_context(contextlib.closing(self._connect()))
                migrate(database)
                self._purge.load(database)
                self._collect(database)
                database.close()
                self._open_reader = Reader(lambda: self._connect(readonly=True))
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"the local store in {self._directory} cannot be opened: {error}") from error
            self._writer = Writer(self._connect, self._blobs, self._limits, self._purge, stuck_s=self._stuck_s)
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
        database.text_factory = bytes  # decoded by text(), which takes wrong bytes, too
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

    async def prune(self, before_s: float, now_s: float, *, after: str = "", limit: int = 500) -> Pruned:
        if self._writer is None:
            raise StoreError("the store is not open")
        return await self._writer.prune(before_s, now_s, after, limit)

    async def new_blob(self) -> BlobWriter:
        if self._writer is None:
            raise StoreError("the store is not open")
        return await self._blobs.new()

    async def _release(self, sha256: str) -> None:
        if self._writer is not None:
            await self._writer.release(sha256)

    @asynccontextmanager
    async def blob(self, sha256: str) -> AsyncIterator[Path | None]:
        await trio.lowlevel.checkpoint()
        yield self._blobs.find(sha256)

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
