"""Whether a change of an app concerns what is remembered of its devices: most do not, and a fleet is dear to judge anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from dfud.api import App, Store
from dfud.model.resources import is_disabled

APPS_MAX = 10_000
UNCONCERNED = frozenset({"core", "trustAnchors"})  # of the spec: they say who may ask, and not what is answered


def access_of(app: App) -> object:
    """Return what the log-ins of an app's devices rest on."""
    return [app.metadata.uid, is_disabled(app.spec), app.spec.get("trustAnchors")]


def policy_of(app: App) -> object:
    """Return what answers to an app's devices rest on."""
    return [app.metadata.uid, {key: value for key, value in app.spec.items() if key not in UNCONCERNED}]


class Concern:
    """One part of apps, of which a digest is kept. of: the part; forget: has everything of an app forgotten that rests on it.

    An app that has changed is `unsure`: nothing that is remembered of its devices counts until sure() has looked at it.
    """

    def __init__(self, store: Store, of: Callable[[App], object], forget: Callable[[str], None]) -> None:
        self._store = store
        self._of = of
        self._forget = forget
        self._digests: dict[str, bytes] = {}
        self._changes = 0
        self.unsure: set[str] = set()

    def changed(self, app: str, *, deleted: bool = False) -> None:
        self._changes += 1
        if deleted or app not in self._digests:
            self._drop(app)
        else:
            self.unsure.add(app)

    def all_changed(self) -> None:
        """Any app may have changed."""
        for app in list(self._digests):
            self.changed(app)

    def _drop(self, app: str) -> None:
        self._digests.pop(app, None)
        self.unsure.discard(app)
        self._forget(app)

    def is_sure(self, app: str) -> bool:
        """Say whether what is remembered of an app's devices counts, as far as is known without looking."""
        return app in self._digests and app not in self.unsure

    async def sure(self, app: str) -> None:
        """Look at an app that is unsure, or of which nothing is known. Where it changes meanwhile, it stays so. Raises StoreError."""
        if self.is_sure(app):
            return
        changes = self._changes
        found = await self._store.app(app)
        if self._changes != changes:
            return
        if found is None:
            self._drop(app)
            return
        digest = hashlib.blake2b(msgspec.msgpack.encode(self._of(found)), digest_size=16).digest()
        if app in self.unsure and self._digests.get(app) != digest:
            self._drop(app)
        if len(self._digests) < APPS_MAX or app in self._digests:
            self._digests[app] = digest
        self.unsure.discard(app)
