"""The registry's parts on a real local store without HTTP, and a store in which somebody else comes in between."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from dfud_local.store import LocalStore

from dfud.api import Bus, Change
from dfud.registry.claims import Claims
from dfud.registry.firmware import FirmwareRegistry
from dfud.registry.registry import Registry
from dfud.registry.users import User, Users

KEY = bytes(32)
T0 = 1_800_000_000.0
ADMIN = User("admin", {"*": "admin"})


class InterruptedStore(LocalStore):
    """before: awaited once, ahead of the next commit. chance: waits a random number of steps ahead of every call."""

    before: Callable[[], Awaitable[object]] | None = None
    chance: random.Random | None = None

    async def commit(self, changes: Sequence[Change]) -> None:
        before, self.before = self.before, None
        if before is not None:
            await before()
        if self.chance is not None:
            for _ in range(self.chance.randrange(4)):
                await trio.lowlevel.checkpoint()
        await super().commit(changes)


class Desk:
    def __init__(self, store: InterruptedStore, bus: Bus) -> None:
        self.store = store
        self.bus = bus
        self.now_s = T0
        self.registry = Registry(store, bus, KEY, self.now)
        self.firmware = FirmwareRegistry(store, bus, self.now, 1 << 20)
        self.claims = Claims(self.registry, store, KEY, self.now)
        self.users = Users(store)

    def now(self) -> float:
        return self.now_s


@asynccontextmanager
async def desk(directory: Path) -> AsyncIterator[Desk]:
    async with trio.open_nursery() as nursery:
        bus = Bus()
        store = InterruptedStore(directory / "state")
        await nursery.start(store.run, bus)
        yield Desk(store, bus)
        nursery.cancel_scope.cancel()
