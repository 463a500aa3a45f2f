"""What counts in every process on one store, so that a limit holds over all of them: wrong guesses, what a rollout told, entries.

It is gathered for a moment, so that a storm becomes a few messages. One that is lost makes the limit milder for that while, never
stricter; and nothing is sent where one process has the store for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
import trio

from dfud.api.events import Bus, Told
from dfud.api.guard import contained
from dfud.api.store import TOLD_BYTES_MAX, Capability, Store

GATHER_S = 0.2
GATHERED_MAX = 10_000
NUMBER_MAX = 1_000_000
Key = tuple[str, ...]


class SharedCounts:
    """topic: apart from other counters'. heard(key, number): count what happened at another process.

    gathered_max: keys that are told of in gather_s; what comes beyond is not told.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        topic: str,
        heard: Callable[[Key, int], None],
        *,
        gather_s: float = GATHER_S,
        gathered_max: int = GATHERED_MAX,
    ) -> None:
        self._store = store
        self._topic = f"counts.{topic}"
        self._heard = heard
        self._gather_s = gather_s
        self._gathered_max = gathered_max
        self._gathered: Counter[Key] = Counter()
        self._news = trio.Event()
        bus.subscribe(Told, self._told)

    def add(self, key: Key, number: int = 1) -> None:
        """It happened here. Never blocks."""
        if Capability.SHARED in self._store.capabilities and (
            key in self._gathered or len(self._gathered) < self._gathered_max
        ):
            self._gathered[key] += number
            self._news.set()

    def _told(self, event: Told) -> None:
        if event.topic == self._topic:
            for key, number in msgspec.msgpack.decode(event.body, type=list[tuple[Key, int]]):
                self._heard(key, min(number, NUMBER_MAX))

    async def run(self) -> None:
        """Tell the others, until cancelled."""
        while True:
            await self._news.wait()
            await trio.sleep(self._gather_s)
            self._news = trio.Event()
            gathered, self._gathered = self._gathered, Counter()
            part: list[tuple[Key, int]] = []
            size = 0
            for key, number in gathered.items():
                one = len(msgspec.msgpack.encode((key, number)))
                if size + one > TOLD_BYTES_MAX - 16:
                    await self._tell(part)
                    part, size = [], 0
                if one <= TOLD_BYTES_MAX - 16:
                    part.append((key, number))
                    size += one
            if part:
                await self._tell(part)

    async def _tell(self, part: list[tuple[Key, int]]) -> None:
        with contained("counts.tell"):
            await self._store.tell(self._topic, msgspec.msgpack.encode(part))
