"""Writing: one connection commits what has gathered while it wrote the last batch.

There is no timer: an idle store commits at once, a busy one shares one sync among everybody who waits. Whatever one job raises
fails that job alone: if a whole batch cannot be written for a reason of one job's, its jobs are written one by one.

A connection that is lost before COMMIT is sent has stored nothing, and the batch is written again on another one. If it is lost
after that, the server is asked by the transaction's number what became of it, so a job is told what is true, as long as the server
can be reached within `patience_s`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from dfud.api import Change, DfudError, PutDevice, StoreError, contained, note
from dfud.api.encoding import encode_all
from dfud_postgres.applying import Applying
from dfud_postgres.batch import Batch, Statement, device_of, locked, qualifies
from dfud_postgres.changes import Changes
from dfud_postgres.connection import BEGIN, COMMIT, ROLLBACK, Connection
from dfud_postgres.errors import DEADLOCK, READ_ONLY, DatabaseError, Lost, told
from dfud_postgres.fencing import TOKENS, Fence, judge
from dfud_postgres.limits import Limits
from dfud_postgres.notices import CHANNEL, Notices
from dfud_postgres.pool import ENCODING_ERRORS
from dfud_postgres.registering import Put, Raced, put_devices
from dfud_postgres.wire import Query

log = logging.getLogger("dfud.store")
BATCH_MAX = 500  # transactions that share one sync
QUEUED_MAX = 20_000  # beyond it a commit is refused at once: whoever waits longer has given up
TRIES = 8
RETRY_S = 0.2

_NUMBER = Query("SELECT pg_current_xact_id()")
_FATE = Query("SELECT pg_xact_status($1::text::xid8)", "t")
_NOTIFY = Query(f"SELECT pg_notify('{CHANNEL}', p) FROM unnest($1::text[]) p", "T")  # noqa: S608 - a constant
SAVEPOINT, RELEASE, BACK = Query("SAVEPOINT job"), Query("RELEASE job"), Query("ROLLBACK TO job")


class _Job:
    __slots__ = ("changes", "done", "error", "fences", "quick")

    def __init__(self, changes: Sequence[tuple[Change, tuple[bytes, ...]]], fences: Sequence[Fence]) -> None:
        self.changes = changes
        self.fences = fences
        self.quick = all(qualifies(change) for change, _ in changes)
        self.done = trio.Event()
        self.error: DfudError | None = None


class _InDoubt(Exception):
    """The connection was lost while COMMIT was under way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Writer:
    """open_one: makes a connection; origin: this process, in what it tells the others; freed: takes images that lost a record."""

    def __init__(
        self,
        open_one: Callable[[], Awaitable[Connection]],
        limits: Limits,
        origin: str,
        patience_s: float,
        freed: Callable[[set[str]], Awaitable[None]],
    ) -> None:
        self._open_one = open_one
        self._limits = limits
        self._origin = origin
        self._patience_s = patience_s
        self._freed = freed
        self._queue: deque[_Job] = deque()
        self._news = trio.Event()
        self._connection: Connection | None = None
        self._closing = False
        self._closed = False
        self.ended = trio.Event()
        self._fault = ""
        self.batches = 0
        self.jobs = 0
        self.retried = 0

    def problem(self) -> str:
        """Return why nothing is written, or ""."""
        return self._fault

    async def commit(self, changes: Sequence[Change], fences: Sequence[Fence] = ()) -> None:
        """fences: the leads that this is done for; raises Superseded where one of them is another process' by now."""
        job = _Job(encode_all(changes), fences)
        if self._closed or self._closing:
            raise StoreError("the store is closed")
        if len(self._queue) >= QUEUED_MAX:
            raise StoreError(f"{len(self._queue)} commits wait for the database already", retryable=True)
        self._queue.append(job)
        self._news.set()
        # It will be done, so nobody goes away without knowing: who was cancelled here would tell no one of what is stored.
        with trio.CancelScope(shield=True):
            await job.done.wait()
        if job.error is not None:
            raise job.error

    async def serve(self) -> None:
        """Write until close(); never raises but for cancellation, which close() makes unnecessary."""
        try:
            while True:
                while not self._queue:
                    if self._closing:
                        return
                    self._news = trio.Event()
                    await self._news.wait()
                batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
                try:
                    with contained("store.writer") as guard:
                        await self._write(batch)
                    if guard.error is not None:
                        _fail(batch, StoreError(f"an unforeseen fault of the store: {guard.error!r}", retryable=True))
                finally:
                    _fail([job for job in batch if not job.done.is_set()], None)
        finally:
            self._closed = True
            _fail(list(self._queue), StoreError("the store is closed"))
            if self._connection is not None:
                self._connection.close()
            self.ended.set()

    def close(self) -> None:
        """Write what was accepted, then end."""
        self._closing = True
        self._news.set()

    # One batch

    async def _write(self, batch: list[_Job]) -> None:
        deadline = trio.current_time() + self._patience_s
        self.batches += 1
        self.jobs += len(batch)
        error: StoreError | None = None
        for number in range(TRIES):
            try:
                await self._attempt(batch)
                self._fault = ""
                return
            except Lost as lost:
                error = told("PostgreSQL is away", lost)
            except _InDoubt as doubt:
                fate = await self._fate(doubt.number, deadline)
                if fate == "committed":
                    self._fault = ""
                    for job in batch:
                        job.done.set()
                    return
                if fate != "aborted":
                    error = StoreError(
                        "PostgreSQL was lost while it stored this, and cannot say whether it has; look, then try again",
                        retryable=True,
                    )
                    break
                error = StoreError("PostgreSQL was lost while it stored this, and has not", retryable=True)
            except DatabaseError as refused:
                self._drop_if_read_only(refused)
                if refused.state not in DEADLOCK:
                    error = told("PostgreSQL could not store this", refused)
                    break
                error = told("others changed the same", refused)
            self.retried += 1
            for job in batch:
                job.error = None
            if trio.current_time() + RETRY_S * number >= deadline:
                break
            await trio.sleep(RETRY_S * number)
        assert error is not None
        if not self._fault:
            log.error("the database cannot be written", extra={"error": str(error)})
        self._fault = str(error)
        _fail(batch, error)

    async def _attempt(self, batch: list[_Job]) -> None:
        """Write the batch in one transaction. Raises Lost, _InDoubt, DatabaseError: then it is as if it had not been tried."""
        connection = await self._connected()
        leads = sorted({fence.name for job in batch for fence in job.fences})
        fenced = [(TOKENS, (leads,))] if leads else []
        quick = [job for job in batch if job.quick]
        slow = [job for job in batch if not job.quick]
        keys = sorted({key for job in quick for change, _ in job.changes if (key := device_of(change)) is not None})
        try:
            *found, rows, number = await connection.run((BEGIN, ()), *fenced, locked(keys), (_NUMBER, ()))
            if leads:
                tokens: dict[str, str] = dict(found[-1].rows)
                for job in batch:
                    job.error = judge(job.fences, tokens)
            together = Batch(rows.rows, self._limits)
            for job in quick:
                if job.error is not None:
                    continue
                try:
                    together.take(job.changes)
                except DfudError as error:
                    job.error = error
            changes = Changes(connection)
            statements: list[Statement] = together.statements()
            if slow and statements:
                await connection.run(*statements)
                statements = []
            for job in await self._registered(connection, changes, [job for job in slow if job.error is None]):
                await self._one(connection, changes, job)
            changes.notices.merge(together.notices)
            if payloads := changes.notices.payloads(self._origin):
                statements.append((_NOTIFY, (payloads,)))
            if statements:
                await connection.run(*statements)
        except (DatabaseError, *ENCODING_ERRORS) as error:
            await self._roll_back(connection)
            if isinstance(error, DatabaseError) and not error.of_value:
                raise
            # One of the quick ones has what PostgreSQL cannot hold: find out which.
            if not any(job.quick for job in batch):
                raise
            for job in batch:
                job.quick, job.error = False, None
            await self._attempt(batch)
            return
        try:
            await connection.run((COMMIT, ()))
        except Lost as lost:
            raise _InDoubt(number.rows[0][0]) from lost
        except DatabaseError:  # it refused to commit
            await self._roll_back(connection)
            raise
        if changes.freed:
            _finish([job for job in batch if job not in slow])
            with contained("store.images"):  # the records are stored; what is not removed now is left for later
                await self._freed(changes.freed)
        _finish(batch)

    async def _registered(self, connection: Connection, changes: Changes, jobs: list[_Job]) -> list[_Job]:
        """Write the jobs that put devices and nothing that has a condition, all in one savepoint; return the others.

        If one of them cannot be written, it returns all: then each is written by itself.
        """
        taken: dict[tuple[str, str], Put] = {}
        documents = Batch([], self._limits)
        chosen: set[_Job] = set()
        for job in jobs:
            puts = _devices(job)
            if puts and taken.keys().isdisjoint(puts):
                chosen.add(job)
                taken |= puts
                documents.take(
                    [(change, bodies) for change, bodies in job.changes if not isinstance(change, PutDevice)]
                )
        if len(chosen) < 2:
            return jobs
        notices = Notices()
        await connection.run((SAVEPOINT, ()))
        try:
            await put_devices(connection, notices, list(taken.values()))
            await connection.run(*documents.statements(), (RELEASE, ()))
        except (DfudError, DatabaseError, Raced, *ENCODING_ERRORS) as error:
            if isinstance(error, DatabaseError) and not error.of_value:
                raise
            await connection.run((BACK, ()), (RELEASE, ()))
            return jobs
        changes.notices.merge(notices)
        changes.notices.merge(documents.notices)
        return [job for job in jobs if job not in chosen]

    async def _one(self, connection: Connection, changes: Changes, job: _Job) -> None:
        """Write one job in a savepoint. Raises only if the whole batch is lost with it."""
        before, notices = set(changes.freed), changes.notices
        await connection.run((SAVEPOINT, ()))
        for number in range(TRIES):
            changes.notices = Notices()
            try:
                await Applying(connection, changes, self._limits).apply(job.changes)
                break
            except (DfudError, DatabaseError, Raced, NotImplementedError, *ENCODING_ERRORS) as error:
                if isinstance(error, DatabaseError) and not error.of_value:
                    raise  # of the database's, so the whole batch is tried again or told so
                changes.freed = set(before)
                if isinstance(error, Raced) and number + 1 < TRIES:
                    await connection.run((BACK, ()))
                    continue
                job.error = _of_one(error)
                changes.notices = notices
                await connection.run((BACK, ()), (RELEASE, ()))
                return
        await connection.run((RELEASE, ()))
        notices.merge(changes.notices)
        changes.notices = notices

    async def _roll_back(self, connection: Connection) -> None:
        try:
            await connection.run((ROLLBACK, ()))
        except (DatabaseError, Lost):
            connection.close()

    def _drop_if_read_only(self, error: DatabaseError) -> None:
        if error.state == READ_ONLY and self._connection is not None:
            self._connection.close()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.broken:
            self._connection = await self._open_one()
        return self._connection

    async def _fate(self, number: int, deadline: float) -> str:
        """Ask what became of a transaction: committed, aborted; anything else: nobody knows."""
        while True:
            try:
                connection = await self._connected()
                row = (await connection.run((_FATE, (str(number),))))[0].row
                fate = str(row[0]) if row is not None else ""
                if fate != "in progress":
                    return fate
            except Lost:
                fate = "away"
            except DatabaseError as error:
                note("store.fate", error)  # another database, as after a restore
                return "unknown"
            if trio.current_time() >= deadline:
                return fate
            await trio.sleep(RETRY_S)


def _devices(job: _Job) -> dict[tuple[str, str], Put]:
    """Return the devices that a job puts, by key; none if it does anything that may be refused besides, or puts one twice."""
    found: dict[tuple[str, str], Put] = {}
    for change, bodies in job.changes:
        if isinstance(change, PutDevice):
            key = (change.device.app, change.device.name)
            if key in found:
                return {}
            found[key] = change, bodies[0]
        elif not qualifies(change) or device_of(change) is not None:
            return {}
    return found


def _finish(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.done.set()


def _fail(jobs: Sequence[_Job], error: StoreError | None) -> None:
    for job in jobs:
        if not job.done.is_set():
            job.error = job.error or error or StoreError("the store has ended", retryable=True)
            job.done.set()


def _of_one(error: Exception) -> DfudError:
    """What the one job is told whose change raised."""
    if isinstance(error, DfudError):
        return error
    if isinstance(error, Raced):
        return StoreError("other processes put the same devices at the same time", retryable=True)
    if isinstance(error, DatabaseError):
        return told("this cannot be stored", error)
    if not isinstance(error, ENCODING_ERRORS):
        note("store.change", error)
    return StoreError(f"this cannot be stored: {error}".encode("utf-8", "backslashreplace").decode())
