"""Connections that read: so many at a time, each for one statement. What fails with its connection is asked once more."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from dfud.api import StoreError
from dfud_postgres.connection import Connection, Result, Row
from dfud_postgres.errors import DatabaseError, Lost, told
from dfud_postgres.wire import Query

ENCODING_ERRORS = (UnicodeEncodeError, struct.error, TypeError)
AWAY_S = 1.0  # after a failed attempt to connect, others fail at once for so long instead of waiting one by one


class Pool:
    """open_one: makes a connection. waiting and in use are bounded; a read that waits longer than wait_s fails, retryable."""

    def __init__(self, open_one: Callable[[], Awaitable[Connection]], limit: int, wait_s: float) -> None:
        self._open_one = open_one
        self._idle: deque[Connection] = deque()
        self._places = trio.CapacityLimiter(limit)
        self._wait_s = wait_s
        self._away_until = 0.0
        self._away = ""
        self._closed = False

    @property
    def in_use(self) -> int:
        return int(self._places.borrowed_tokens)

    @property
    def away(self) -> str:
        """Why no connection could be made just now, or ""."""
        return self._away

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection. Raises StoreError where there is none in time, Lost where none can be made."""
        who = object()  # one task may hold several
        try:
            with trio.fail_after(self._wait_s):
                await self._places.acquire_on_behalf_of(who)
        except trio.TooSlowError:
            raise StoreError(
                f"no connection to PostgreSQL was free within {self._wait_s:g} s; [store.postgres] connections",
                retryable=True,
            ) from None
        try:
            connection = await self._take()
            try:
                yield connection
                self._away = ""  # whatever an attempt of before says that ends only now
            finally:
                if self._closed:
                    connection.close()
                elif not connection.broken:
                    self._idle.append(connection)
        finally:
            self._places.release_on_behalf_of(who)

    async def _take(self) -> Connection:
        if self._closed:
            raise StoreError("the store is not open")
        while self._idle:
            connection = self._idle.pop()  # the last used first, so that what a burst needed can be seen to be idle
            if not connection.broken:
                return connection
        if self._away and trio.current_time() < self._away_until:
            raise Lost(self._away)
        try:
            connection = await self._open_one()
        except Lost as error:
            self._away, self._away_until = str(error), trio.current_time() + AWAY_S
            raise
        self._away = ""
        return connection

    async def rows(self, query: Query, *values: Any) -> list[Row]:
        """Read. A text that PostgreSQL cannot hold is the key of nothing."""
        if any(isinstance(v, str) and "\0" in v for v in values):
            return []
        try:
            return (await self.run(query, *values)).rows
        except ENCODING_ERRORS:
            return []

    async def row(self, query: Query, *values: Any) -> Row | None:
        found = await self.rows(query, *values)
        return found[0] if found else None

    async def run(self, query: Query, *values: Any) -> Result:
        """Run one statement that may be run twice. Raises StoreError."""
        for last in (False, True):
            try:
                async with self.connection() as connection:
                    return (await connection.run((query, values)))[0]
            except Lost as error:
                self.drop()
                if last:
                    raise told("PostgreSQL is away", error) from error
            except DatabaseError as error:
                raise told("PostgreSQL could not answer", error) from error
        raise AssertionError

    def drop(self) -> None:
        """One connection is gone, so probably all are."""
        while self._idle:
            self._idle.pop().close()

    def close(self) -> None:
        """Close what is idle; what is in use closes itself."""
        self._closed = True
        self.drop()
