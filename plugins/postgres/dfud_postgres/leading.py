"""Who leads: session locks on one connection of their own. The lock ends with the session, however that ends.

A leader that cannot reach the database for CHECK_S + ANSWER_S stops leading, and one whose session is ended stops at once. The server
ends the session of a client that is gone without a word after SILENT_S, a second less if it was asked just before, and gives the lock
to the next one no sooner; a killed process' sessions end at once. From PostgreSQL 14 on it ends that of a process that stands still,
too; before, such a one leads until it is killed. A server that was started anew, or took over from another, knows nothing of the
sessions before: whoever gets the lock there waits until those who had it before must have noticed.

So two never lead at a time, unless a process stands still: then its commits are refused (see fencing.py).
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from dfud_postgres.connection import Connection, Result
from dfud_postgres.errors import LOCKED, DatabaseError, Lost
from dfud_postgres.fencing import HELD, Fence, held
from dfud_postgres.wire import Query

log = logging.getLogger("dfud.store")
LOOK_S = 0.5  # how often it is tried to become the leader
CHECK_S = 0.5
ANSWER_S = 2.0
SILENT_S = 4  # more than CHECK_S + ANSWER_S, and one
_SERVER = "extract(epoch from pg_postmaster_start_time())::text || pg_is_in_recovery()::text"
_TRY = Query(f"SELECT pg_try_advisory_lock($1), {_SERVER}", "i")
_UNLOCK = Query("SELECT pg_advisory_unlock($1)", "i")
_ALIVE = Query("SELECT 1")
# A crash of the server forgets such a commit only together with the session, and with all that it was held against.
_LAZY = Query("SELECT set_config('synchronous_commit', 'off', true)")
_BEFORE = Query("SELECT token, holder, server FROM lead WHERE name=$1 FOR UPDATE NOWAIT", "t")
_TAKE = Query(
    "INSERT INTO lead (name, token, holder, server) VALUES ($1,$2,$3,$4) ON CONFLICT (name) "
    "DO UPDATE SET token=excluded.token, holder=excluded.holder, server=excluded.server",
    "tttt",
)
_LEAVE = Query("UPDATE lead SET token='' WHERE name=$1 AND token=$2", "tt")


def number_of(name: str) -> int:
    """Return the lock of a name: 63 bits of a hash, apart from the migrations' own."""
    return int.from_bytes(hashlib.sha256(b"dfud.lead:" + name.encode()).digest()[:8], "big") >> 1


async def ended(connection: Connection) -> None:
    """Raise Lost when the server has ended the session."""
    while True:
        await connection.wait_for_input()


class Leading:
    """Every lead of this process. open_one: makes a connection; holder: this process."""

    def __init__(self, open_one: Callable[[], Awaitable[Connection]], holder: str) -> None:
        self._open_one = open_one
        self._holder = holder
        self._connection: Connection | None = None
        self._turn = trio.Lock()
        self._watch = trio.CancelScope()
        self._answered_s = 0.0
        self._refused = ""
        self._server = ""
        self._server_since_s = 0.0
        self._leads: dict[str, tuple[Fence, trio.CancelScope]] = {}
        self._waiting: dict[str, trio.Lock] = {}

    @property
    def names(self) -> list[str]:
        return sorted(self._leads)

    def held(self) -> tuple[Fence, ...]:
        """Return the leads that what this task commits belongs to."""
        return held(self)

    async def run(self) -> None:
        """Look whether the session still lives, until cancelled. Then all leads end."""
        try:
            while True:
                due_s = self._answered_s + CHECK_S
                if self._leads and trio.current_time() >= due_s:
                    await self._ask((_ALIVE, ()))
                await self._watched(due_s if self._leads else trio.current_time() + CHECK_S)
        finally:
            self._lose("the store is closed")

    async def _watched(self, until_s: float) -> None:
        """Return at that time, when somebody wants to ask, or the session has ended."""
        async with self._turn:
            if self._turn.statistics().tasks_waiting:
                return  # who asks comes first, also who has asked before this began to watch
            connection = self._connection
            with trio.move_on_at(until_s) as self._watch:
                if connection is None or connection.broken:
                    await trio.sleep(CHECK_S)
                    return
                try:
                    await ended(connection)
                except (Lost, OSError) as error:
                    self._lose(f"the session was ended: {error}")

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        # One of this process at a time: the lock of a session may be taken twice by it.
        async with self._waiting.setdefault(name, trio.Lock()):
            while (fence := await self._taken(name)) is None:  # noqa: ASYNC110 - nobody tells when a lock is free
                await trio.sleep(LOOK_S)
            with trio.CancelScope() as scope:
                self._leads[name] = fence, scope
                log.info("leads", extra={"work": name})
                before = HELD.set((*HELD.get(), fence))
                try:
                    yield
                finally:
                    fence.over = True
                    HELD.reset(before)
                    await self._left(fence)

    async def _taken(self, name: str) -> Fence | None:
        """Try once to have the lead of a name, and wait until whoever had it before has stopped; None where that was lost."""
        token = secrets.token_hex(8)
        fence = Fence(self, name, token, partial(self._lost, name, token))
        with trio.CancelScope() as scope:
            found = await self._ask((_TRY, (number_of(name),)))
            if found is None or not found[0].rows[0][0]:
                return None
            server = found[0].rows[0][1]
            if server != self._server:
                self._server, self._server_since_s = server, trio.current_time()
            self._leads[name] = fence, scope
            ready = False
            try:
                values = (name, token, self._holder, server)
                done = await self._ask((_BEFORE, (name,)), (_LAZY, ()), (_TAKE, values))
                if done is not None:
                    before = done[0].row
                    # Who left has no token there; who was here on this server has lost its session, and knows.
                    if before is not None and before[0] and before[1] != self._holder and before[2] != server:
                        await trio.sleep_until(self._server_since_s + CHECK_S + ANSWER_S)
                    await trio.lowlevel.checkpoint()
                    ready = True
            finally:
                if not ready:
                    await self._left(fence)
        return fence if ready else None

    async def _left(self, fence: Fence) -> None:
        """Let go of a lead, if it was not lost before."""
        if fence.name not in self._leads or self._leads[fence.name][0] is not fence:
            return
        del self._leads[fence.name]
        with trio.CancelScope(shield=True):
            await self._ask((_LAZY, ()), (_LEAVE, (fence.name, fence.token)))
            await self._ask((_UNLOCK, (number_of(fence.name),)))

    async def _ask(self, *statements: tuple[Query, Sequence[Any]]) -> list[Result] | None:
        """Ask on the session of the leads; None where it refuses, or is gone, with all leads lost."""
        self._watch.cancel()
        async with self._turn:
            try:
                if self._connection is None or self._connection.broken:
                    self._lose("the session was ended")
                    self._connection = await self._open_one()
                with trio.fail_after(
                    ANSWER_S, shield=True
                ):  # whoever is cancelled does not cost the others their leads
                    found = await self._connection.run(*statements)
            except (Lost, trio.TooSlowError) as error:
                self._lose(str(error) or f"no answer within {ANSWER_S:g} s")
                return None
            except DatabaseError as error:  # it lives
                if error.state != LOCKED and str(error) != self._refused:
                    log.warning("the database lets nobody lead", extra={"error": str(error), "state": error.state})
                    self._refused = str(error)
                found = None
            self._answered_s = trio.current_time()
            return found

    def _lost(self, name: str, token: str) -> None:
        """One lead turned out to be another's."""
        fence, scope = self._leads.get(name, (None, None))
        if fence is not None and scope is not None and fence.token == token:
            del self._leads[name]
            log.warning("no longer leads", extra={"work": name, "error": "another process does"})
            scope.cancel()

    def _lose(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close()
        leads, self._leads = self._leads, {}
        for name, (_, scope) in leads.items():
            log.warning("no longer leads", extra={"work": name, "error": why})
            scope.cancel()
