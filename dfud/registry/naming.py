"""Names that only one may have: a device's names in its app, a trust anchor among all apps.

A name is held from before it is looked up until it is stored, so that of two who take it at the same time one is refused. That
holds within this process; the store itself guards aliases against aliases, and every record against its own name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from dfud.api import App, ConflictError, Store
from dfud.model.anchors import subjects_of

APPS_AT_ONCE = 100


class Naming:
    """Which names are being taken at this moment."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def names(self, app: str, device: str, names: Iterable[str]) -> AsyncIterator[None]:
        """Hold `names` for a device while they are stored. Raises ConflictError if another is known by one of them."""
        wanted = sorted(names)
        with self._holding(app, wanted):
            for name in wanted:
                other = await self._store.find_alias(app, name)
                if other is not None and other != device:
                    raise ConflictError(self.problem(app, name, other))
            yield

    async def taken(self, app: str, names: Sequence[str]) -> dict[str, str]:
        """Return which of `names` devices of the app are known by, and which devices."""
        return await self._store.find_aliases(app, names)

    @staticmethod
    def problem(app: str, name: str, other: str) -> str:
        return f"{name!r} is the name or an alias of device {other} of app {app} already"

    @contextmanager
    def held_by_others(self, app: str, wanted: Mapping[str, Iterable[str]]) -> Iterator[dict[str, str]]:
        """Hold the names of many devices while they are looked up and stored.

        Yields the devices of which a name is being taken at this moment, with a sentence; of them nothing is held.
        """
        refused: dict[str, str] = {}
        mine: set[tuple[str, str]] = set()
        for device, names in wanted.items():
            theirs = {(app, name) for name in names}
            if taken := theirs & self._held:
                refused[device] = _being_taken(min(taken)[1])
            else:
                mine |= theirs
        self._held |= mine
        try:
            yield refused
        finally:
            self._held -= mine

    @asynccontextmanager
    async def anchors(self, app: App) -> AsyncIterator[None]:
        """Hold the app's anchors while it is stored.

        Raises ConflictError if another app has one of the same name: its devices would be taken for this app's.
        """
        wanted = subjects_of(app.spec)
        with self._holding("", wanted):
            offset = 0
            while wanted and (apps := await self._store.apps(limit=APPS_AT_ONCE, offset=offset)):
                offset += len(apps)
                for other in apps:
                    taken = wanted & subjects_of(other.spec) if other.name != app.name else ()
                    if taken:
                        raise ConflictError(f"spec.trustAnchors: {min(taken)} is the anchor of another app already")
            yield

    @contextmanager
    def _holding(self, app: str, names: Iterable[str]) -> Iterator[None]:
        wanted = {(app, name) for name in names}
        if taken := wanted & self._held:
            raise ConflictError(_being_taken(min(taken)[1]))
        self._held |= wanted
        try:
            yield
        finally:
            self._held -= wanted


def aliases_of(spec: Mapping[str, Any]) -> set[str]:
    """Return the other names of a device."""
    found = spec.get("alias")
    return {alias for alias in found if isinstance(alias, str)} if isinstance(found, list) else set()


def _being_taken(name: str) -> str:
    return f"{name!r} is being given to another at this moment; try again"
