"""Pure simulated devices under virtual time: they poll, fetch, boot, crash, go back and are offline, as a seed says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import trio

from dfud.api import Device, Metadata
from dfud.wire.messages import Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_status, digest


class Board(msgspec.Struct):
    """One device. bad: versions that it leaves; online: the share of its polls that reach dfud."""

    name: str
    rng: random.Random
    version: str = "1.0"
    online: float = 1.0
    told_at: list[tuple[float, str]] = []
    tried: Counter[str] = Counter()


class Fleet:
    """`bad`: version to the share of devices on which it crashes. Devices are told apart by label `zone` and name."""

    def __init__(self, world: World, count: int, seed: int, *, bad: dict[str, float], zones: list[str], online: float = 1.0) -> None:
        rng = random.Random(seed)
        self.world = world
        self.bad = bad
        self.boards: dict[str, Board] = {}
        for number in range(count):
            name = f"d{number:05}"
            labels = {"zone": "eu" if number % 2 else "us", "tz": zones[number % len(zones)]}
            world.store.devices_["app", name] = Device(Metadata(name, "app", resource_version="1", labels=labels))
            self.boards[name] = Board(name, random.Random(f"{seed} {number}"), online=online, told_at=[], tried=Counter())
        del world.store.devices_["app", "dev"]
        self._rng = rng

    async def say(self, board: Board, **said: Any) -> Any:
        status = a_status(board.version, **said)
        return await self.world.controller.status("app", board.name, status, "http", patience_s=0.5)

    async def poll(self, board: Board) -> None:
        """One poll and, if it is told, the whole update."""
        if board.rng.random() >= board.online:
            return
        command = await self.say(board)
        if command.type is not Type.UPDATE:
            return
        board.told_at.append((self.world.wall + trio.current_time(), command.version))
        board.tried[command.version] += 1
        await trio.sleep(board.rng.uniform(1, 30))
        await self.say(board, progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        before, board.version = board.version, command.version
        await trio.sleep(board.rng.uniform(1, 10))
        if board.rng.random() < self.bad.get(command.version, 0.0):
            board.version = before
            await self.say(board, result=Result(Outcome.ROLLED_BACK, bytes.fromhex(digest(command.version)), 1, "boom", 3, 12))
            return
        await self.say(board, trial=True)
        await self.say(board)

    async def live(self, poll_s: float) -> None:
        """Have all poll until cancelled."""
        async with trio.open_nursery() as nursery:
            for board in self.boards.values():
                nursery.start_soon(self._live, board, poll_s)

    async def _live(self, board: Board, poll_s: float) -> None:
        await trio.sleep(board.rng.uniform(0, poll_s))
        while True:
            await self.poll(board)
            await trio.sleep(poll_s)

    def running(self) -> Counter[str]:
        return Counter(board.version for board in self.boards.values())
