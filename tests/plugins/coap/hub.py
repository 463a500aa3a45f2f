"""What processes have in common, in one process: values, messages that may be lost, leads that may be taken away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from dfud.api import Shared, StoreError


class Hub:
    """lost: what is told is heard by nobody. away: nothing can be read or written."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.leads: dict[str, trio.Lock] = {}
        self.members: list[Member] = []
        self.lost = False
        self.away = False

    def member(self) -> Member:
        return Member(self)


class Member(Shared):
    secret = b"s" * 32

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._scopes: list[trio.CancelScope] = []
        self.heard: Callable[[bytes], None] = lambda body: None
        self.missed: Callable[[], None] = lambda: None
        hub.members.append(self)

    def listen(self, heard: Callable[[bytes], None], missed: Callable[[], None]) -> None:
        self.heard, self.missed = heard, missed

    def _reach(self) -> None:
        if self._hub.away:
            raise StoreError("away", retryable=True)

    async def tell(self, body: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._reach()
        for member in self._hub.members:
            if member is not self and not self._hub.lost:
                member.heard(body)

    async def get(self, key: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        self._reach()
        return self._hub.values.get(key)

    async def put(self, key: str, value: bytes | None, expect: bytes | None) -> bool:
        await trio.lowlevel.checkpoint()
        self._reach()
        if self._hub.values.get(key) != expect:
            return False
        if value is None:
            self._hub.values.pop(key, None)
        else:
            self._hub.values[key] = value
        await trio.lowlevel.checkpoint()
        return True

    async def all(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[tuple[str, bytes]]:
        await trio.lowlevel.checkpoint()
        return sorted((k, v) for k, v in self._hub.values.items() if k.startswith(prefix) and k > after)[:limit]

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        async with self._hub.leads.setdefault(name, trio.Lock()):
            with trio.CancelScope() as scope:
                self._scopes.append(scope)
                try:
                    yield
                finally:
                    self._scopes.remove(scope)

    def lose_leads(self) -> None:
        """As when its session has ended."""
        for scope in self._scopes:
            scope.cancel()
