"""The store: opened, closed and written. Several processes have one each on the same database."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from dfud.api import (
    TOLD_BYTES_MAX,
    BlobPlace,
    BlobWriter,
    Bus,
    Capability,
    Change,
    Pruned,
    StoreError,
    contained,
    forever,
)
from dfud_postgres.blobs import Blobs
from dfud_postgres.config import PostgresConfig
from dfud_postgres.connection import Connection
from dfud_postgres.directory import DirectoryPlace
from dfud_postgres.errors import Lost, told
from dfud_postgres.fencing import Superseded
from dfud_postgres.housekeeping import drop_some, prune
from dfud_postgres.leading import SILENT_S, Leading
from dfud_postgres.limits import Limits
from dfud_postgres.listening import Listener
from dfud_postgres.notices import CHANNEL, Notices
from dfud_postgres.pool import Pool
from dfud_postgres.reading import ReadingStore
from dfud_postgres.schema import migrate, version_of
from dfud_postgres.wire import Query
from dfud_postgres.writer import Writer

log = logging.getLogger("dfud.store")
PATIENCE_S = 20.0  # how long a commit may take while the database is away, before it is refused
COLLECT_S = 1800.0
DROP_S = 2.0
RETRY_S = 0.5
PROBE_S = 1.0
HOUSEKEEPING = "postgres.housekeeping"
REFUSALS = ("certificate", "authentication failed", "does not exist", "no password supplied", "no pg_hba.conf entry")
_ALIVE = Query("SELECT 1")
_NOTIFY = Query(f"SELECT pg_notify('{CHANNEL}', $1)", "t")


class PostgresStore(ReadingStore):
    """Records in PostgreSQL, images in the place that `config.blobs` names."""

    name = "postgres"
    capabilities = frozenset(
        {Capability.DELETE_FIRMWARE, Capability.SEVERAL_IMAGES, Capability.APP_FIRMWARE, Capability.SHARED}
    )

    def __init__(self, config: PostgresConfig) -> None:
        super().__init__()
        self._config = config
        self._limits = Limits(
            history_per_device=config.history_per_device, deployments_per_device=config.deployments_per_device
        )
        self.blobs = "" if config.blobs == "directory" else config.blobs
        self._place: BlobPlace | None = None if self.blobs else DirectoryPlace(Path(config.blobs_path))
        self._origin = ""
        self._writer: Writer | None = None
        self._leading: Leading | None = None
        self._blobs: Blobs | None = None
        self._listener: Listener | None = None

    def keep_blobs_in(self, place: BlobPlace) -> None:
        self._place = place

    async def check(self) -> None:
        self._config.check()
        await self._placed.check()
        try:
            connection = await Connection.open(self._config, "dfud check")
        except Lost as error:
            if _is_refusal(error):
                raise StoreError(f"[store.postgres]: {error}") from error
            raise told("[store.postgres]", error) from error
        try:
            await version_of(connection)
        finally:
            connection.close()

    @property
    def _placed(self) -> BlobPlace:
        if self._place is None:
            raise StoreError(f"the store postgres has no place {self.blobs} for its images yet")
        return self._place

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._config.check()
        await self._prepare()
        self._origin = secrets.token_hex(8)
        pool = Pool(partial(Connection.open, self._config, "dfud read"), self._config.connections, self._config.wait_s)
        blobs = self._blobs = Blobs(self._placed, pool, self._origin)
        writer = Writer(
            partial(Connection.open, self._config, "dfud write", SILENT_S, by_key=True),
            self._limits,
            self._origin,
            PATIENCE_S,
            blobs.remove,
        )
        self._leading = Leading(
            partial(Connection.open, self._config, "dfud lead", SILENT_S, asks_often=True), self._origin
        )
        self._listener = Listener(partial(Connection.open, self._config, "dfud listen"), self._origin, PATIENCE_S)
        keeping = trio.CancelScope(shield=True)  # what was accepted is written, whoever cancels this
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(_kept, keeping, self._placed)
                    nursery.start_soon(_served, writer)
                    self._open_pool, self._writer = pool, writer
                    async with trio.open_nursery() as working:
                        try:
                            await working.start(self._listener.run, bus)
                        except Lost as error:
                            raise StoreError(f"the store postgres cannot be opened: {error}", retryable=True) from error
                        working.start_soon(self._leading.run)
                        working.start_soon(forever, "store.housekeeping", self._keep_house)
                        working.start_soon(forever, "store.probe", partial(self._probe, pool, writer))
                        task_status.started()
                finally:
                    self._writer = None
                    writer.close()
                    with trio.CancelScope(shield=True):
                        await writer.ended.wait()
                        with trio.move_on_after(self._config.statement_s):
                            await blobs.close()
                    keeping.cancel()
        except BaseExceptionGroup as group:
            raise _only(group) from None
        finally:
            self._open_pool = None
            pool.close()

    async def _prepare(self) -> None:
        """Make the tables. A database that is away may be about to come back, as after both were restarted. Raises StoreError."""
        deadline_s, waits = trio.current_time() + PATIENCE_S, False
        while True:
            try:
                connection = await Connection.open(self._config, "dfud start")
                try:
                    await migrate(connection)
                finally:
                    connection.close()
                return
            except Lost as error:
                if _is_refusal(error) or trio.current_time() >= deadline_s:
                    raise StoreError(
                        f"the store postgres cannot be opened: {error}", retryable=not _is_refusal(error)
                    ) from error
                if not waits:
                    waits = True
                    log.warning("waits for the database", extra={"error": str(error)})
            await trio.sleep(RETRY_S)

    async def _keep_house(self) -> None:
        """Remove images that nobody needs, and what is left of deleted apps: one process of all."""
        while True:
            async with self.lead(HOUSEKEEPING):
                assert self._blobs is not None
                collected_s = float("-inf")
                while True:
                    with contained("store.housekeeping"):
                        if trio.current_time() - collected_s >= COLLECT_S:
                            collected_s = trio.current_time()
                            await self._blobs.collect()
                        while await drop_some(self._pool):
                            pass
                    await trio.sleep(DROP_S)

    async def _probe(self, pool: Pool, writer: Writer) -> None:
        """Find out that a problem is over also when nobody asks: a balancer sends nobody to a process that says it is not ready."""
        while True:
            await trio.sleep(PROBE_S)
            with suppress(StoreError):  # it lasts, and problem() says so
                if writer.problem():
                    await writer.commit(())
                elif pool.away:
                    await pool.run(_ALIVE)

    def problem(self) -> str:
        writer, pool = self._writer, self._open_pool
        if writer is None or pool is None:
            return "the store is not open"
        return writer.problem() or pool.away

    def counters(self) -> Mapping[str, float]:
        found = {"dfud_store_unreadable_records": float(len(self._damage))}
        if self._writer is not None and self._open_pool is not None and self._listener is not None:
            found |= {
                "dfud_postgres_connections_in_use": float(self._open_pool.in_use),
                "dfud_postgres_batches_total": float(self._writer.batches),
                "dfud_postgres_commits_total": float(self._writer.jobs),
                "dfud_postgres_batches_retried_total": float(self._writer.retried),
                "dfud_postgres_changes_heard_total": float(self._listener.heard),
                "dfud_postgres_sessions_missed_total": float(self._listener.missed),
            }
        if self._leading is not None:
            found |= {f'dfud_postgres_leads{{work="{name}"}}': 1.0 for name in self._leading.names}
        return found | dict(self._place.counters() if self._place is not None else {})

    async def commit(self, changes: Sequence[Change]) -> None:
        if self._writer is None or self._leading is None:
            raise StoreError("the store is not open")
        try:
            await self._writer.commit(changes, self._leading.held())
        except Superseded:
            await trio.lowlevel.checkpoint()  # the block of the lead is cancelled, and ends without an error
            raise
        self._damage.mended(changes)

    async def new_blob(self) -> BlobWriter:
        if self._writer is None or self._blobs is None:
            raise StoreError("the store is not open")
        return await self._blobs.new()

    def blob(self, sha256: str) -> AbstractAsyncContextManager[Path | None]:
        if self._writer is None or self._blobs is None:
            raise StoreError("the store is not open")
        return self._blobs.lend(sha256)

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        if self._leading is None:
            raise StoreError("the store is not open")
        async with self._leading.lead(name):
            yield

    def place(self) -> BlobPlace | None:
        return self._placed

    async def prune(self, before_s: float, now_s: float, *, after: str = "", limit: int = 500) -> Pruned:
        return await prune(self._pool, before_s, now_s, after, limit)

    async def tell(self, topic: str, body: bytes) -> None:
        if len(body) > TOLD_BYTES_MAX:
            raise StoreError(f"{len(body)} bytes to tell, expected at most {TOLD_BYTES_MAX}")
        notices = Notices()
        notices.told(topic, body)
        for payload in notices.payloads(self._origin):
            await self._pool.run(_NOTIFY, payload)


def _is_refusal(error: Lost) -> bool:
    """Whether a server is there and takes no session. libpq tells no SQLSTATE then; what it words otherwise counts as being away."""
    return any(words in str(error) for words in REFUSALS)


async def _kept(
    scope: trio.CancelScope, place: BlobPlace, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with scope:
        await place.run(task_status=task_status)


async def _served(writer: Writer) -> None:
    with trio.CancelScope(shield=True):  # close() ends it
        await writer.serve()


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a group of one holds: a StoreError that says why the store has ended, a cancellation; else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
