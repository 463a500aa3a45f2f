"""What was proven of devices, as long as it is true: a cache whose entries end with the records they were judged by.

A judgement names every record that it is about to read, before it reads it. So a change that comes while it is read, or
while a slow hash runs, is never missed: what was judged by the old record is not kept, and its maker knows.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from dfud.api import Cache, Reading

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Name = tuple[str, str]  # app, device


class Judgement(Generic[K, V]):
    """One that is under way. Give it `keep()` at its end, or `give_up()`."""

    __slots__ = ("_names", "_owner", "_reading", "_since", "key")

    def __init__(self, owner: Remembered[K, V], key: K, reading: Reading, since: int) -> None:
        self._owner = owner
        self._reading = reading
        self._since = since
        self._names: set[Name] = set()
        self.key = key

    @property
    def stale(self) -> bool:
        """Whether what it was judged by has changed since."""
        return self._reading.stale

    def asks(self) -> None:
        """What a name means is asked next."""
        self._since = self._owner.changes

    def found(self, app: str, device: str) -> None:
        """The name that was asked for means this device, whose record is read next.

        Until then any change could have been one of what it means; if there was one, the judgement is stale.
        """
        if self._owner.changes != self._since:
            self._reading.stale = True
        self.reads(app, device)

    def reads(self, app: str, device: str) -> None:
        """The record of this device is read next."""
        self._names.add((app, device))
        self._owner._under_way.setdefault(app, {}).setdefault(device, set()).add(self._reading)

    def keep(self, value: V) -> bool:
        """Remember `value` unless something changed; return whether nothing has."""
        self._leave()
        kept = self._owner._cache.end(self._reading, (value, frozenset(self._names)))
        if kept:
            for app, device in self._names:
                self._owner._keys.setdefault(app, {}).setdefault(device, set()).add(self.key)
        return kept

    def holds(self) -> bool:
        """End it, with nothing remembered here; return whether what it was judged by has not changed."""
        self.give_up()
        return not self._reading.stale

    def give_up(self) -> None:
        self._leave()
        self._owner._cache.give_up(self._reading)

    def _leave(self) -> None:
        for app, device in self._names:
            _discard(self._owner._under_way, app, device, self._reading)


class Remembered(Generic[K, V]):
    """Up to `limit` values; the one that was not used for longest goes first."""

    def __init__(self, limit: int) -> None:
        self._cache: Cache[K, tuple[V, frozenset[Name]]] = Cache(limit, dropped=self._dropped)
        self.look_up = self._cache.get  # (value, names) or None: for what is asked with every poll
        self._keys: dict[str, dict[str, set[K]]] = {}
        self._under_way: dict[str, dict[str, set[Reading]]] = {}
        self.changes = 0

    def __len__(self) -> int:
        return len(self._cache)

    def get(self, key: K) -> V | None:
        found = self._cache.get(key)
        return found[0] if found is not None else None

    def begin(self, key: K) -> Judgement[K, V]:
        return Judgement(self, key, self._cache.begin(key), self.changes)

    def forget(self, key: K) -> None:
        found = self._cache.get(key)
        self._cache.forget(key)
        if found is not None:
            self._dropped(key, found)

    def device_changed(self, app: str, device: str) -> None:
        self.changes += 1
        for reading in self._under_way.get(app, {}).get(device, ()):
            reading.stale = True
        self._forget(self._keys.get(app, {}).pop(device, set()))

    def app_changed(self, app: str) -> None:
        self.changes += 1
        for readings in self._under_way.get(app, {}).values():
            for reading in readings:
                reading.stale = True
        for keys in self._keys.pop(app, {}).values():
            self._forget(keys)

    def all_changed(self) -> None:
        """Anything may have changed."""
        self.changes += 1
        for devices in self._under_way.values():
            for readings in devices.values():
                for reading in readings:
                    reading.stale = True
        self._keys.clear()
        self._cache.forget_all()

    def _forget(self, keys: set[K]) -> None:
        for key in keys:
            self._cache.forget(key)

    def _dropped(self, key: K, value: tuple[V, frozenset[Name]]) -> None:
        for app, device in value[1]:
            _discard(self._keys, app, device, key)


T = TypeVar("T")


def _discard(index: dict[str, dict[str, set[T]]], app: str, device: str, what: T) -> None:
    devices = index.get(app)
    found = devices.get(device) if devices is not None else None
    if devices is None or found is None:
        return
    found.discard(what)
    if not found:
        del devices[device]
        if not devices:
            del index[app]
