"""The one writer of the database: a thread that commits what has gathered while it wrote the last batch.

There is no timer: an idle store commits at once, a busy one shares one sync among everybody who waits. Whatever one job
raises fails that job alone. If the thread ends all the same, or makes no progress for `stuck_s`, every job that waits and every
later one fails with StoreError. A second thread looks at the first one: it needs neither trio nor the disk.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import trio

from dfud.api import Change, DfudError, Pruned, StoreError, contained, note
from dfud.api.encoding import encode_all
from dfud_local.blobs import Blobs
from dfud_local.changes import Changes, blob_needed
from dfud_local.limits import Limits
from dfud_local.many import Many, is_hot
from dfud_local.prune import prune
from dfud_local.purge import Purge

log = logging.getLogger("dfud.store")
BATCH_MAX = 1000  # transactions that share one sync
FEW = 8  # changes for which a statement each is as good as statements for many
PROBE_S = 5.0  # how often it is looked whether a disk that was full has room
PROBE_BYTES = 65536


class _Job:
    """One commit; or, without changes: with `freed`, a look whether somebody still needs these images; or some other `work`."""

    __slots__ = ("changes", "error", "freed", "result", "task", "work")

    def __init__(
        self,
        changes: Sequence[tuple[Change, tuple[bytes, ...]]] = (),
        freed: frozenset[str] = frozenset(),
        work: Callable[[sqlite3.Connection], Any] | None = None,
    ) -> None:
        self.changes = changes
        self.work = work
        self.result: Any = None
        self.freed = freed
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()  # None: it was woken
        self.error: DfudError | None = None


class Writer:
    """Owns the writing connection; `commit()` from the trio thread, everything else in its own thread.

    stuck_s: how long one batch may take: it takes milliseconds, and a checkpoint on a slow disk a second.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        blobs: Blobs,
        limits: Limits,
        purge: Purge,
        *,
        stuck_s: float = 30.0,
    ) -> None:
        self._connect = connect
        self._blobs = blobs
        self._limits = limits
        self._purge = purge
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is put into the queue once it was emptied for ever
        self._closed = ""
        self._stuck_s = stuck_s
        self._began_s = 0.0  # what is being written since when; 0: nothing is
        self._batch: list[_Job] = []
        self._fault = ""  # why the last commit could not be written, until a probe can be
        self._probe_s = 0.0
        self._ended = trio.Event()
        self._death: BaseException | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._over = threading.Event()  # nobody waits for the thread any more
        threading.Thread(target=self._run, name="dfud-store", daemon=True).start()
        threading.Thread(target=self._watch, name="dfud-store-watch", daemon=True).start()

    async def commit(self, changes: Sequence[Change]) -> None:
        await self._do(_Job(encode_all(changes)))

    async def release(self, sha256: str) -> None:
        """Remove an image unless a record names it. A writer that has ended leaves that to the next start."""
        with contextlib.suppress(StoreError):
            await self._do(_Job(freed=frozenset({sha256})))

    async def prune(self, before_s: float, now_s: float, after: str, limit: int) -> Pruned:
        job = _Job(work=lambda database: prune(database, before_s, now_s, after, limit))
        await self._do(job)
        found: Pruned = job.result
        return found

    async def _do(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise StoreError(self._closed)
            self._queue.put(job)
        # It will be done, so nobody goes away without knowing: who was cancelled here would tell no one of what is stored.
        await trio.lowlevel.wait_task_rescheduled(_not_aborted)
        if job.error is not None:
            raise job.error

    def problem(self) -> str:
        """Return why nothing is written, or ""."""
        if self._death is not None:
            return self._closed
        return self._stuck() or self._fault

    def _stuck(self) -> str:
        began_s = self._began_s
        waited_s = time.monotonic() - began_s if began_s else 0.0
        return f"the store has been writing for {waited_s:.0f} s" if waited_s > self._stuck_s else ""

    async def serve(self) -> None:
        """Return when the thread has ended by itself, or is stuck; raises StoreError that says why."""
        await self._ended.wait()
        raise StoreError(self._closed) from self._death

    async def close(self) -> None:
        """Write what was accepted, bring it all into the database file, then end the thread.

        One that is stuck is left behind. Raises StoreError where the thread has not come to its end.
        """
        with self._lock:
            self._closed = self._closed or "the store is closed"
            self._queue.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._over.wait)
        if self._death is not None:
            raise StoreError(self._closed) from self._death

    # The thread

    def _run(self) -> None:
        try:
            self._write_all()
        except BaseException as error:
            self._die(error)
        finally:
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._stuck_s / 4):
            if problem := self._stuck():
                # What it writes may be stored yet: whoever waits for it is told that nobody knows.
                self._die(StoreError(problem), self._batch)
                self._over.set()

    def _write_all(self) -> None:
        database = self._connect()
        database.execute(
            "PRAGMA temp_store=MEMORY"
        )  # else each statement for many devices makes a file, and removes it
        try:
            while True:
                job = self._next(database)
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
                    self._batch = batch
                    self._began_s = time.monotonic()
                    try:
                        self._write(database, batch)
                    except BaseException as error:
                        _fail(batch, StoreError(f"the writer of the database has ended: {error!r}"))
                        raise
                    finally:
                        self._wake(batch)
                    self._began_s = 0.0
                if job is None:
                    self._batch = []
                    self._began_s = time.monotonic()
                    _checkpoint(database)
                    self._began_s = 0.0
                    return
        finally:
            database.close()

    def _next(self, database: sqlite3.Connection) -> _Job | None:
        """Return the next job; with nothing to do, remove what is left of deleted apps.

        While commits fail, look now and then whether that is over, for perhaps nobody commits.
        """
        while self._fault or self._purge.hidden:
            if not self._fault:
                self._remove_some(database)
                with contextlib.suppress(queue.Empty):
                    return self._queue.get_nowait()
                continue
            wait_s = self._probe_s - time.monotonic()
            if wait_s <= 0:
                self._batch = []
                self._began_s = time.monotonic()
                self._probe(database)
                self._began_s = 0.0
                continue
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=wait_s)
        return self._queue.get()

    def _remove_some(self, database: sqlite3.Connection) -> None:
        self._batch = []
        self._began_s = time.monotonic()
        try:
            self._purge.step(database)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        self._began_s = 0.0

    def _failed(self, error: Exception) -> StoreError:
        """Note that the disk or the database took no commit; the caller is told the same."""
        problem = f"the database could not be written: {error}"
        if not self._fault:
            log.error("the database cannot be written", extra={"error": str(error)})
            self._probe_s = time.monotonic() + PROBE_S
        self._fault = problem
        return StoreError(problem, retryable=True)

    def _probe(self, database: sqlite3.Connection) -> None:
        self._probe_s = time.monotonic() + PROBE_S
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE probe (bytes BLOB)")
            database.execute("INSERT INTO probe VALUES (zeroblob(?))", (PROBE_BYTES,))
            database.execute("DROP TABLE probe")
            database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._fault = f"the database could not be written: {error}"
            if database.in_transaction:
                database.execute("ROLLBACK")
            return
        self._fault = ""
        log.info("the database can be written again")

    def _write(self, database: sqlite3.Connection, batch: list[_Job]) -> None:
        """Write the batch in one transaction; if the whole cannot be written, none of it is."""
        changes = Changes(database, lambda sha256: self._blobs.find(sha256) is not None, self._limits)
        try:
            if any(job.changes or job.work for job in batch):
                database.execute("BEGIN IMMEDIATE")
                for hot, jobs in groupby(batch, lambda job: is_hot(job.changes)):
                    together = list(jobs)
                    if not (
                        hot
                        and sum(len(job.changes) for job in together) > FEW
                        and self._write_together(database, together)
                    ):
                        for job in together:
                            self._write_one(database, changes, job)
                database.execute("COMMIT")
        except Exception as error:
            failed = StoreError(f"the database could not be written: {error}", retryable=True)
            if isinstance(error, (sqlite3.Error, OSError)):
                failed = self._failed(error)
            else:
                note("store.commit", error)
            if database.in_transaction:
                database.execute("ROLLBACK")
            _fail(batch, failed)
            return
        if changes.dropped:
            self._purge.hide(changes.dropped)
        with contained("store.images"):  # the records are stored; what is not removed now is left for the next start
            freed = changes.freed.union(*(job.freed for job in batch))
            # Nobody else writes records: what none names here, none will, unless its writer is still open.
            self._blobs.remove([sha256 for sha256 in freed if not blob_needed(database, sha256)])

    def _write_together(self, database: sqlite3.Connection, jobs: list[_Job]) -> bool:
        """Write what devices said, many of them in each statement. If one cannot be written, none of them is: return False."""
        database.execute("SAVEPOINT jobs")
        try:
            many = Many()
            for job in jobs:
                many.add(job.changes)
            done = many.write(database, self._limits)
        except Exception as error:
            if not database.in_transaction:
                raise  # a full disk ends the whole transaction, and the savepoint with it
            if not isinstance(error, (sqlite3.Error, OverflowError, UnicodeError)):
                note("store.together", error)  # whose it is comes out when each is written by itself
            done = False
        if not done:
            database.execute("ROLLBACK TO jobs")
        database.execute("RELEASE jobs")
        return done

    def _write_one(self, database: sqlite3.Connection, changes: Changes, job: _Job) -> None:
        """Write one job. Raises only if the whole batch is lost with it."""
        database.execute("SAVEPOINT job")
        try:
            for change, bodies in job.changes:
                changes.apply(change, bodies)
            if job.work is not None:
                job.result = job.work(database)
        except Exception as error:
            if not database.in_transaction:
                raise  # a full disk ends the whole transaction, and the savepoint with it
            environment = isinstance(error, (sqlite3.OperationalError, OSError))
            job.error = self._failed(error) if environment else _of_one(error)
            database.execute("ROLLBACK TO job")
        database.execute("RELEASE job")

    def _wake(self, batch: list[_Job]) -> None:
        try:
            self._token.run_sync_soon(_set, batch)
        except trio.RunFinishedError:
            return  # nobody is left who could wait

    def _die(self, error: BaseException, batch: Sequence[_Job] = ()) -> None:
        """Fail all that waits, and whatever comes. batch: what is being written."""
        reason = f"the writer of the database has ended: {error!r}"
        log.critical("the writer of the database has ended", exc_info=error)
        rest = list(batch)
        with self._lock:
            if self._death is not None:
                return
            self._death = error
            self._closed = reason
            while True:
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
                if job is not None:
                    rest.append(job)
        _fail(rest, StoreError(reason))
        self._wake(rest)
        try:
            self._token.run_sync_soon(self._ended.set)
        except trio.RunFinishedError:
            return


def _not_aborted(raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _set(batch: list[_Job]) -> None:
    """Wake who waits; once: a writer that was given up as stuck may come to its end after all."""
    for job in batch:
        task, job.task = job.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


def _fail(batch: list[_Job], error: StoreError) -> None:
    for job in batch:
        job.error = job.error or error


def _of_one(error: Exception) -> DfudError:
    """What the one job is told whose change raised."""
    if isinstance(error, DfudError):
        return error
    if not isinstance(error, (OverflowError, UnicodeError, sqlite3.Error)):
        note("store.change", error)
    return StoreError(f"this cannot be stored: {error}".encode("utf-8", "backslashreplace").decode())


def _checkpoint(database: sqlite3.Connection) -> None:
    """Bring everything into the database file, so that the file alone is a copy of what was stored."""
    try:
        busy, _, _ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        log.warning("the write-ahead log stays beside the database", extra={"error": str(error)})
        return
    if busy:
        log.warning("the write-ahead log stays beside the database", extra={"error": "somebody still reads"})
