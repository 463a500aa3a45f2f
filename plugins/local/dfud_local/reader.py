"""Reading: point reads on the trio thread (a page cache away), lists in threads; each row that cannot be read by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import trio

from dfud.api import StoreError

Row = tuple[Any, ...]
Number = Callable[[str, tuple[Any, ...]], int]


class Reader:
    """Owns the reading connections. A text that SQLite cannot hold (a lone surrogate) is the key of nothing."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._points: sqlite3.Connection | None = connect()
        self._idle: list[sqlite3.Connection] = []

    def row(self, query: str, *key: Any) -> Row | None:
        """Read one row. A few microseconds, so a thread would cost more than it saves."""
        if self._points is None:
            raise StoreError("the store is not open")
        try:
            found: Row | None = self._points.execute(query, key).fetchone()
            return found
        except (UnicodeError, OverflowError):
            return None
        except sqlite3.Error as error:
            raise _read_error(error) from error

    def few(self, query: str, *key: Any) -> list[Row]:
        """Read a few hundred rows by their keys: a millisecond, so a thread would cost more than it saves."""
        if self._points is None:
            raise StoreError("the store is not open")
        try:
            return self._points.execute(query, key).fetchall()
        except (UnicodeError, OverflowError):
            return []
        except sqlite3.Error as error:
            raise _read_error(error) from error

    async def rows(self, query: str, *key: Any) -> list[Row]:
        if self._points is None:
            raise StoreError("the store is not open")
        return await trio.to_thread.run_sync(self._rows, query, key)

    async def planned(self, plan: Callable[[Number], tuple[str, Sequence[Any]]]) -> list[Row]:
        """Read the rows of a query that `plan` makes of what it counts first, in one thread."""
        if self._points is None:
            raise StoreError("the store is not open")
        return await trio.to_thread.run_sync(self._rows, "", (), plan)

    def _rows(
        self, query: str, key: Sequence[Any], plan: Callable[[Number], tuple[str, Sequence[Any]]] | None = None
    ) -> list[Row]:
        try:
            reader = self._idle.pop() if self._idle else self._connect()
            try:
                if plan is not None:
                    query, key = plan(lambda asked, values: int(reader.execute(asked, values).fetchone()[0]))
                return reader.execute(query, key).fetchall()
            finally:
                if self._points is None:
                    reader.close()
                else:
                    self._idle.append(reader)
        except (UnicodeError, OverflowError):
            return []
        except sqlite3.Error as error:
            raise _read_error(error) from error

    def close(self) -> None:
        """Close what is idle; a list that is being read closes its own."""
        points, self._points = self._points, None
        if points is not None:
            points.close()
        while self._idle:
            self._idle.pop().close()


def _read_error(error: sqlite3.Error) -> StoreError:
    return StoreError(f"the database could not be read: {error}", retryable=True)
