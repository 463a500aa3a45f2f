"""Compare-and-set on what the store has none for: a document of random bytes, which a commit replaces.

What is judged by reading several records, and then written, takes the guard's change before it reads and commits it with what
it writes. Whoever else does so in between has replaced it: the commit is refused, and everything is read again.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

import trio

from dfud.api import Change, ConflictError, PutDocument, Store

T = TypeVar("T")
COLLECTION = "guard"
TRIES = 8


def touch(name: str) -> Change:
    """Return the change that has every commit refused whose guard of that name was taken before. It is never refused itself."""
    return PutDocument(COLLECTION, name, secrets.token_bytes(16))


def wishes_of(app: str) -> str:
    """Return the guard that is touched by whoever stores a wish that is neither the app's nor a device's: a rollout, a job."""
    return f"wishes {app}"


def deletions_in(app: str) -> str:
    """Return the guard that is touched by whoever deletes a firmware, and held by whoever wants one that must be there."""
    return f"deletions {app}"


async def hold(store: Store, name: str) -> list[Change]:
    """Return the change to commit together with what is judged from now on, beside others who do the same.

    The commit raises ConflictError if somebody touched or took the guard in between. Holders do not refuse each other: what they
    write there is what they found.
    """
    return _holding(name, await store.document(COLLECTION, name))


def _holding(name: str, found: bytes | None) -> list[Change]:
    return [PutDocument(COLLECTION, name, found or secrets.token_bytes(16), create=found is None, expect=found)]


async def held(store: Store, name: str, act: Callable[[Sequence[Change]], Awaitable[T]]) -> T:
    """Call what judges and commits the changes it is given; once more whenever somebody touched the guard in between."""
    for _ in range(TRIES):
        found = await store.document(COLLECTION, name)
        try:
            return await act(_holding(name, found))
        except ConflictError:
            if await store.document(COLLECTION, name) == found:
                raise  # for another reason
    raise ConflictError(f"{name} does not come to rest; try again")


async def take(store: Store, name: str) -> list[Change]:
    """Return the change to commit together with what is judged from now on.

    The commit may then raise ConflictError for the guard's sake. The document is never deleted, and no value comes twice: what
    was created, deleted and created again in between would be taken for what was read.
    """
    found = await store.document(COLLECTION, name)
    return [PutDocument(COLLECTION, name, secrets.token_bytes(16), create=found is None, expect=found)]


class Guarded:
    """Commits what is judged by reading, so that nobody else of the same guard comes in between: in this process or another."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def commit(self, name: str, judged: Callable[[], Awaitable[Sequence[Change]]]) -> None:
        """Commit what `judged()` returns; it reads and judges again whenever somebody else was in between.

        Raises what it raises, and ConflictError if others never stop.
        """
        # One after the other, so that however many come at once, each needs one try. The guard is for other processes.
        turn = self._turns.setdefault(name, trio.Lock())
        async with turn:
            for attempt in range(TRIES):
                guard = await take(self._store, name)
                changes = await judged()
                try:
                    await self._store.commit([*changes, *guard])
                except ConflictError:
                    if attempt == TRIES - 1:
                        raise
                else:
                    return
