"""Statuses of many devices taken together: what they come to is stored in one commit, and who has nothing to store does not wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from dfud.api import AddCounts, Change, ExpectDevice, NotFoundError, RequestError, Store, StoreError
from dfud.controller.alike import Alike
from dfud.controller.keeping import Asked, Keeper, Look
from dfud.controller.likewise import Likewise
from dfud.controller.memory import Hold, Memory
from dfud.controller.sending import Order
from dfud.wire.messages import Command, Status

TOGETHER = 32  # devices between two looks at the rest of the world


class Looks(Protocol):
    def __call__(self, hold: Hold, status: Status, transport: str, *, alike: Alike) -> Awaitable[Look | None]: ...


class Settled(Protocol):
    def __call__(self, hold: Hold, status: Status, transport: str, now_s: float, now: float) -> Look | None: ...


class Taken:
    """What statuses came to. answers: for each its command; or the package that has to be made first, and then nothing is stored of
    it; or None: it has to be asked by itself, because it is held by somebody, gone, or changes.

    pending: numbers of those whose answers come with store(), which has to be called once, or give_up().
    """

    def __init__(self, store: Store, memory: Memory, keeper: Keeper, number: int) -> None:
        self.answers: list[Command | Order | None] = [None] * number
        self._store = store
        self._memory = memory
        self._keeper = keeper
        self._held: list[tuple[int, Hold, Look]] = []

    @property
    def pending(self) -> list[int]:
        return [number for number, _, _ in self._held]

    def looked(self, number: int, hold: Hold, look: Look | None) -> None:
        """Take what a held device's status came to; the hold is this one's from now on."""
        if look is None or (look.order is not None and look.package is None):
            self.answers[number] = look.order if look is not None else None
            self._memory.let_go(hold, failed=True)
        elif look.kept.changes:
            self._held.append((number, hold, look))
        else:
            failed = True
            try:
                self._keeper.done(hold, look.kept)
                self.answers[number] = None if hold.changed else look.command
                failed = False
            finally:
                self._memory.let_go(hold, failed=failed)

    async def store(self) -> None:
        """Store in one commit whatever is to be stored; then all answers are there. What cannot be stored is None."""
        stored = False
        try:
            changes = self._changes()
            if changes:
                try:
                    with self._keeper.committing():
                        await self._store.commit(changes)
                except (RequestError, StoreError):
                    return  # one of them, or the disk: each by itself finds out
            stored = True
            for number, hold, look in self._held:
                self._keeper.done(hold, look.kept)
                self.answers[number] = None if hold.changed else look.command
        finally:
            self.give_up(failed=not stored)

    def _changes(self) -> list[Change]:
        """Return all that is to be stored; what is added to counters is added up first."""
        changes: list[Change] = []
        counted: dict[str, dict[str, int]] = {}
        for _, hold, look in self._held:
            changes.append(ExpectDevice(*hold.key, hold.known.sequence))
            for change in look.kept.changes:
                if type(change) is AddCounts:
                    counts = counted.setdefault(change.scope, {})
                    for name, number in change.add.items():
                        counts[name] = counts.get(name, 0) + number
                else:
                    changes.append(change)
        return [*changes, *(AddCounts(scope, dict(sorted(add.items()))) for scope, add in sorted(counted.items()))]

    def give_up(self, *, failed: bool = True) -> None:
        """Let go of all that is held."""
        held, self._held = self._held, []
        for _, hold, _ in held:
            self._memory.let_go(hold, failed=failed)


class Together:
    """looks: works out what one status comes to; settled: the same, where that is what the last one came to, else None; likewise: the
    same for those that are like another one of the batch; now: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        memory: Memory,
        keeper: Keeper,
        looks: Looks,
        settled: Settled,
        likewise: Likewise,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._memory = memory
        self._keeper = keeper
        self._looks = looks
        self._settled = settled
        self._likewise = likewise
        self._now = now

    async def take(self, asked: Sequence[Asked]) -> Taken:
        """Look at the statuses of devices, each of them once. Those with a view were read just now: nothing was awaited since."""
        taken = Taken(self._store, self._memory, self._keeper, len(asked))
        try:
            holds = await self._memory.take([(one.app, one.device) for one in asked], [one.view for one in asked])
        except StoreError:
            return taken
        alike = Alike(self._now(), trio.current_time())
        try:
            for number, one in enumerate(asked):
                hold = holds[number]
                if hold is None:
                    continue
                try:
                    look = self._settled(hold, one.status, one.transport, alike.now_s, alike.now)
                    if look is None:
                        look = await self._look(hold, one, alike)
                except (NotFoundError, StoreError):
                    continue
                holds[number] = None
                taken.looked(number, hold, look)
                if number % TOGETHER == TOGETHER - 1:
                    await trio.lowlevel.checkpoint()
        except BaseException:
            taken.give_up()
            raise
        finally:
            for hold in holds:
                if hold is not None:
                    self._memory.let_go(hold, failed=True)
        return taken

    async def _look(self, hold: Hold, one: Asked, alike: Alike) -> Look | None:
        situation = self._likewise.situation(hold, one.status, one.transport, alike)
        look = self._likewise.look(hold, situation, alike) if situation is not None else None
        if look is None:
            look = await self._looks(hold, one.status, one.transport, alike=alike)
            if look is not None and situation is not None:
                self._likewise.learn(hold, situation, alike, look)
        return look
