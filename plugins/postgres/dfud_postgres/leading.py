"""Who leads: session locks on one connection of their own. The lock ends with the session, however that ends.

A leader that cannot reach the database for CHECK_S + ANSWER_S stops leading. The server ends the session of a client that is gone
without a word after SILENT_S, a second less if it was asked just before, and gives the lock to the next one no sooner; a killed
process' sessions end at once. So two never lead at a time, unless a clock of the kernel stands still.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from dfud_postgres.connection import Connection
from dfud_postgres.errors import DatabaseError, Lost
from dfud_postgres.wire import Query

log = logging.getLogger("dfud.store")
LOOK_S = 0.5  # how often it is tried to become the leader
CHECK_S = 0.5
ANSWER_S = 2.0
SILENT_S = 4  # more than CHECK_S + ANSWER_S, and one
_TRY = Query("SELECT pg_try_advisory_lock($1)", "i")
_LEAVE = Query("SELECT pg_advisory_unlock($1)", "i")
_ALIVE = Query("SELECT 1")


def number_of(name: str) -> int:
    """Return the lock of a name: 63 bits of a hash, apart from the migrations' own."""
    return int.from_bytes(hashlib.sha256(b"dfud.lead:" + name.encode()).digest()[:8], "big") >> 1


class Leading:
    """Every lead of this process. open_one: makes a connection."""

    def __init__(self, open_one: Callable[[], Awaitable[Connection]]) -> None:
        self._open_one = open_one
        self._connection: Connection | None = None
        self._turn = trio.Lock()
        self._leads: dict[str, trio.CancelScope] = {}
        self._waiting: dict[str, trio.Lock] = {}

    @property
    def names(self) -> list[str]:
        return sorted(self._leads)

    async def run(self) -> None:
        """Look whether the session still lives, until cancelled. Then all leads end."""
        try:
            while True:
                await trio.sleep(CHECK_S)
                if self._leads:
                    await self._ask(_ALIVE)
        finally:
            leads, self._leads = self._leads, {}
            for scope in leads.values():
                scope.cancel()
            self._lose("the store is closed")

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        # One of this process at a time: the lock of a session may be taken twice by it.
        lock = self._waiting.setdefault(name, trio.Lock())
        async with lock:
            number = number_of(name)
            while not await self._ask(_TRY, number):  # noqa: ASYNC110 - nobody tells when a lock is free
                await trio.sleep(LOOK_S)
            with trio.CancelScope() as scope:
                self._leads[name] = scope
                log.info("leads", extra={"work": name})
                try:
                    yield
                finally:
                    held = self._leads.pop(name, None) is not None
                    if held:
                        with trio.CancelScope(shield=True):
                            await self._ask(_LEAVE, number)

    async def _ask(self, query: Query, *values: int) -> bool:
        """Ask on the session of the leads; False where it is gone, with all leads lost."""
        async with self._turn:
            try:
                if self._connection is None or self._connection.broken:
                    self._connection = await self._open_one()
                with trio.fail_after(ANSWER_S):
                    row = (await self._connection.run((query, values)))[0].row
                return bool(row and row[0])
            except (Lost, DatabaseError, trio.TooSlowError) as error:
                self._lose(str(error) or f"no answer within {ANSWER_S:g} s")
                return False
            except BaseException:
                self._lose("a question was cut short")
                raise

    def _lose(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close()
        leads, self._leads = self._leads, {}
        for name, scope in leads.items():
            log.warning("no longer leads", extra={"work": name, "error": why})
            scope.cancel()
