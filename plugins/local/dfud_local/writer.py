"""The one writer of the database: a thread that commits what has gathered while it wrote the last batch.

There is no timer: an idle store commits at once, a busy one shares one sync among everybody who waits.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from dfud.api import Change, DfudError, StoreError
from dfud_local.changes import apply

BATCH_MAX = 1000  # transactions that share one sync


class _Job:
    __slots__ = ("changes", "done", "error")

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.done = trio.Event()
        self.error: DfudError | None = None


class Writer:
    """Owns the writing connection; `commit()` from the trio thread, everything else in its own thread."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], blobs: Path) -> None:
        self._connect = connect
        self._blobs = blobs
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, name="dfud-store", daemon=True)
        self._closed = False
        self._thread.start()

    async def commit(self, changes: Sequence[Change]) -> None:
        if self._closed:
            raise StoreError("the store is closed")
        job = _Job(changes)
        self._queue.put(job)
        await job.done.wait()
        if job.error is not None:
            raise job.error

    async def close(self) -> None:
        """Write what was accepted, then end the thread."""
        self._closed = True
        self._queue.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join)

    def _run(self) -> None:
        database = self._connect()
        try:
            while True:
                job = self._queue.get()
                batch: list[_Job] = []
                while job is not None:
                    batch.append(job)
                    if len(batch) >= BATCH_MAX:
                        break
                    try:
                        job = self._queue.get_nowait()
                    except queue.Empty:
                        break
                if batch:
                    self._write(database, batch)
                    self._token.run_sync_soon(_wake, batch)
                if job is None:
                    return
        finally:
            database.close()

    def _write(self, database: sqlite3.Connection, batch: list[_Job]) -> None:
        """Write the batch in one transaction; if the whole cannot be written, none of it is."""
        try:
            database.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._write_one(database, job)
            database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            for job in batch:
                job.error = job.error or _store_error(error)

    def _write_one(self, database: sqlite3.Connection, job: _Job) -> None:
        database.execute("SAVEPOINT job")
        try:
            for change in job.changes:
                apply(database, change, self._blob_exists)
        except DfudError as error:
            job.error = error
            database.execute("ROLLBACK TO job")
        database.execute("RELEASE job")

    def _blob_exists(self, sha256: str) -> bool:
        return (self._blobs / sha256[:2] / sha256).exists()


def _wake(batch: list[_Job]) -> None:
    for job in batch:
        job.done.set()


def _store_error(error: Exception) -> StoreError:
    return StoreError(f"the database could not be written: {error}", retryable=True)
