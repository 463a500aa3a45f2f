"""Memory of what was read elsewhere: bounded, and never filled with what had changed while it was read.

The one kind of cache that dfud has. Whoever changes the original calls `forget()`; a read that began before that is returned
to its caller and not kept. No locks: everything happens on the trio thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


_MISSING: Any = object()


class Reading:
    """A read under way. `stale` is set once what it reads has changed."""

    __slots__ = ("group", "key", "stale")

    def __init__(self, key: Hashable, group: Hashable) -> None:
        self.key = key
        self.group = group
        self.stale = False


class Cache(Generic[K, V]):
    """Up to `limit` values; the one that was not used for longest goes first.

    group_of: the group that a key belongs to (its app, say), so that `forget_group()` costs nothing per value.
    dropped(key, value): called when a value has to go for another one, not when it is forgotten.
    """

    def __init__(
        self,
        limit: int,
        group_of: Callable[[K], Hashable] | None = None,
        dropped: Callable[[K, V], None] | None = None,
    ) -> None:
        self._limit = limit
        self._dropped = dropped
        self._group_of = group_of
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._epochs: dict[Hashable, int] = {}
        self._readings: dict[Hashable, set[Reading]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K, default: V | None = None) -> V | None:
        """Return what is known of `key`, or `default`."""
        found = self._values.get(key)
        if found is None:
            return default
        # Read for every datagram: where no group was forgotten there is nothing to look up.
        if self._epochs and found[1] != self._epoch(key):
            del self._values[key]
            return default
        self._values.move_to_end(key)
        return found[0]

    def begin(self, key: K) -> Reading:
        """Say that `key` is being read from now on; give the result to `end()`, or the reading to `give_up()`."""
        reading = Reading(key, self._group_of(key) if self._group_of is not None else None)
        self._readings.setdefault(key, set()).add(reading)
        return reading

    def end(self, reading: Reading, value: V) -> bool:
        """Keep what was read unless it changed since `begin()`; return whether it is kept."""
        self.give_up(reading)
        if reading.stale:
            return False
        self._keep(cast(K, reading.key), value)
        return True

    def give_up(self, reading: Reading) -> None:
        """The read failed, or nothing is to be kept of it."""
        group = self._readings.get(reading.key)
        if group is not None:
            group.discard(reading)
            if not group:
                del self._readings[reading.key]

    async def load(self, key: K, read: Callable[[], Awaitable[V]]) -> V:
        """Return what is known of `key`, or read it. What changed while it was read is returned and not kept."""
        found = self.get(key, cast(V, _MISSING))
        if found is not _MISSING:
            return cast(V, found)
        reading = self.begin(key)
        try:
            value = await read()
        except BaseException:
            self.give_up(reading)
            raise
        self.end(reading, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value that is known to be true now (nothing was awaited since); reads under way are stale."""
        if self._readings:
            for reading in self._readings.get(key, ()):
                reading.stale = True
        self._keep(key, value)

    def forget(self, key: K) -> None:
        """`key` has changed: forget it, and whatever is being read of it."""
        self._values.pop(key, None)
        for reading in self._readings.get(key, ()):
            reading.stale = True

    def forget_group(self, group: Hashable) -> None:
        """Everything of a group has changed. Costs the reads under way, not the values."""
        self._epochs[group] = self._epochs.get(group, 0) + 1
        for readings in self._readings.values():
            for reading in readings:
                if reading.group == group:
                    reading.stale = True

    def forget_all(self) -> None:
        """Everything may have changed."""
        self._values.clear()
        for readings in self._readings.values():
            for reading in readings:
                reading.stale = True

    def _keep(self, key: K, value: V) -> None:
        values = self._values
        values[key] = (value, self._epoch(key) if self._epochs else 0)
        values.move_to_end(key)
        while len(values) > self._limit:
            dropped, (value, _) = values.popitem(last=False)
            if self._dropped is not None:
                self._dropped(dropped, value)

    def _epoch(self, key: K) -> int:
        """Return how often the group of a key was forgotten."""
        return self._epochs.get(self._group_of(key), 0) if self._group_of is not None else 0
