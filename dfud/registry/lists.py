"""Long answers in little memory: lists are read, encoded and sent a page at a time, and only so many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec
import trio
from quart import Response, g

from dfud.api import note
from dfud.registry.boundary import at_end
from dfud.registry.config import RegistryConfig
from dfud.registry.paging import Paging
from dfud.registry.web import Busy

T = TypeVar("T")

Page = Callable[[T | None, int], Awaitable[Sequence[T]]]
"""Reads up to so many rows behind the given one (None: from the start)."""


class Lists:
    """The budget of all lists. A list waits for its turn before anything is read for it."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._sent: Counter[str] = Counter()
        self._changed = trio.lowlevel.ParkingLot()
        self._making = trio.CapacityLimiter(config.lists_made)

    async def _take_turn(self) -> None:
        """Wait until one more list may be sent; the end of the request gives the place back. Raises Busy."""
        who = g.user.token or g.user.name
        with trio.move_on_after(self._config.list_wait_s) as scope:
            while self._sent.total() >= self._config.lists or self._sent[who] >= self._config.lists_per_user:
                await self._changed.park()
        if scope.cancelled_caught:
            raise Busy(
                f"{self._sent.total()} lists are being sent, {self._sent[who]} of them with this token; try again later"
            )
        self._sent[who] += 1
        at_end(lambda: self._leave(who))

    def _leave(self, who: str) -> None:
        self._sent[who] -= 1
        if not self._sent[who]:
            del self._sent[who]
        self._changed.unpark_all()

    async def answer(
        self, page: Page[T], encode: Callable[[T], Awaitable[bytes]], limit: int, name: Callable[[T], str]
    ) -> Response:
        """Return the JSON list of up to `limit` rows. Errors of the first page are raised, later ones break the answer off.

        encode: one row as JSON; a row for which that raises is left out and named by `name` in the list's place for it.
        """
        await self._take_turn()
        pages = self._pages(page, encode, limit, name)
        first = await anext(pages, b"")

        async def body() -> AsyncIterator[bytes]:
            async with aclosing(pages):
                yield b"[" + first
                async for data in pages:
                    yield b"," + data
                yield b"]"

        return Response(body(), 200, content_type="application/json")

    async def _pages(
        self, page: Page[T], encode: Callable[[T], Awaitable[bytes]], limit: int, name: Callable[[T], str]
    ) -> AsyncGenerator[bytes, None]:
        last: T | None = None
        paging = Paging(self._config.list_page_bytes)
        left = limit
        while left > 0:
            asked = min(paging.rows, left)
            async with self._making:
                rows = await page(last, asked)
                parts = [await self._part(row, encode, name) for row in rows]
            if not rows:
                return
            left -= len(rows)
            paging.read(len(rows), sum(map(len, parts)))
            last = rows[-1]
            done = len(rows) < asked
            data = b",".join(parts)
            del rows, parts
            yield data
            del data
            if done:
                return

    async def _part(self, row: T, encode: Callable[[T], Awaitable[bytes]], name: Callable[[T], str]) -> bytes:
        try:
            return await encode(row)
        except Exception as error:  # a record from before a rule, or a damaged one, must not cost the others
            note("users.list", error, record=name(row))
            return unreadable(name(row), str(error) or type(error).__name__)


def unreadable(name: str, why: str) -> bytes:
    """Return what stands in a list for a record that cannot be shown; it can be replaced and deleted by its name."""
    message = f"the record cannot be read ({why[:120]}): replace it (PUT) or delete it"
    return msgspec.json.encode({"metadata": {"name": name}, "spec": {}, "status": {"unreadable": message}})
