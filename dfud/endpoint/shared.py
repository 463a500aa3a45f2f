"""What a transport's processes have in common, out of what the store offers: documents, notifications, leads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from dfud.api import Bus, Change, ConflictError, DeleteDocument, Missed, NotFoundError, PutDocument, Shared, Store, Told


class StoreShared(Shared):
    def __init__(self, store: Store, bus: Bus, transport: str, secret: bytes) -> None:
        self.secret = secret
        self._store = store
        self._name = f"transport.{transport}"
        self._heard: Callable[[bytes], None] = lambda body: None
        self._missed: Callable[[], None] = lambda: None
        bus.subscribe(Told, lambda e: self._heard(e.body) if e.topic == self._name else None)
        bus.subscribe(Missed, lambda e: None if e.app else self._missed())

    def listen(self, heard: Callable[[bytes], None], missed: Callable[[], None]) -> None:
        self._heard, self._missed = heard, missed

    async def tell(self, body: bytes) -> None:
        await self._store.tell(self._name, body)

    async def get(self, key: str) -> bytes | None:
        return await self._store.document(self._name, key)

    async def put(self, key: str, value: bytes | None, expect: bytes | None) -> bool:
        if value is None and expect is None:
            return await self.get(key) is None
        put = PutDocument(self._name, key, value or b"", create=expect is None, expect=expect)
        # A deletion knows no `expect`, so the change before it in the commit has it.
        changes: list[Change] = [put] if value is not None else [put, DeleteDocument(self._name, key)]
        try:
            await self._store.commit(changes)
        except (ConflictError, NotFoundError):
            return False
        return True

    async def all(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[tuple[str, bytes]]:
        return await self._store.documents(self._name, prefix=prefix, after=after, limit=limit)

    def lead(self, name: str) -> AbstractAsyncContextManager[None]:
        return self._store.lead(f"{self._name}.{name}")
