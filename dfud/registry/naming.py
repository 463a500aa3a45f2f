"""Names that only one may have: a device's names in its app, a trust anchor among all apps.

A name is held from before it is looked up until it is stored, so that of two who take it at the same time one is refused. That
holds within this process; the store itself guards aliases against aliases, and every record against its own name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

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
                if other not in (None, device):
                    raise ConflictError(f"{name!r} is the name or an alias of device {other} of app {app} already")
            yield

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
            raise ConflictError(f"{min(taken)[1]!r} is being given to another at this moment; try again")
        self._held |= wanted
        try:
            yield
        finally:
            self._held -= wanted
