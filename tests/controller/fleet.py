"""Pure simulated devices under virtual time: they poll, fetch, boot, crash, go back and are offline, as a seed says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import trio

from dfud.api import Device, Metadata
from dfud.wire.manifest import decode_envelope_untrusted
from dfud.wire.messages import Code, Defer, Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_status, digest


class Written(msgspec.Struct):
    """An image that a board has written and does not run yet."""

    package: bytes
    chunks: int
    version: str
    image: bytes


class Board(msgspec.Struct):
    """One device. online: the share of its polls that reach dfud; declines: its application puts every update off; unready: how many
    transfers fail before one comes through; switched_at: when it ran what it had written."""

    name: str
    rng: random.Random
    version: str = "1.0"
    online: float = 1.0
    image: bytes = b""
    hardware: str = "esp32c3"
    attributes: dict[str, str] = {}
    declines: bool = False
    unready: int = 0
    written: Written | None = None
    switched_at: list[tuple[float, str]] = []
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
            self.boards[name] = Board(
                name,
                random.Random(f"{seed} {number}"),
                online=online,
                image=bytes.fromhex(digest("1.0")),
                told_at=[],
                switched_at=[],
                tried=Counter(),
            )
        del world.store.devices_["app", "dev"]
        self._rng = rng

    async def say(self, board: Board, **said: Any) -> Any:
        if board.declines:
            said["defer"] = Defer("somebody is using it", 400)
        if board.written is not None and not said:
            said["progress"] = Progress(board.written.package, board.written.chunks, Phase.WRITTEN)
        about = {"digest": board.image, "hardware": board.hardware, "attributes": board.attributes}
        status = a_status(board.version, **(about | said))
        return await self.world.controller.status("app", board.name, status, "http", patience_s=0.5)

    async def poll(self, board: Board) -> None:
        """One poll and, if it is told, the whole update; the rest of one, where it has written an image already."""
        if board.rng.random() >= board.online:
            return
        command = await self.say(board)
        if command.type is Type.STOP:
            board.written = None
        if command.type is not Type.UPDATE:
            return
        if board.written is None or board.written.package != command.package:
            command = await self._fetch(board, command)
            if command is None:
                return
        written, board.written = board.written, None
        assert written is not None
        await self._switch(board, written)

    async def _fetch(self, board: Board, command: Any) -> Any:
        """Write an image; return the command to switch to it, None if there is none now."""
        board.told_at.append((self.world.wall + trio.current_time(), command.version))
        board.tried[command.version] += 1
        image = decode_envelope_untrusted(command.manifest)[1].sha256
        await trio.sleep(board.rng.uniform(1, 30))
        if board.unready:
            board.unready -= 1
            await self.say(board, result=Result(Outcome.FAILED, image, int(Code.CHUNK), "torn", number=len(board.told_at)))
            return None
        board.written = Written(command.package, command.chunks, command.version, image)
        answer = await self.say(board)
        if answer.type is Type.STOP:
            board.written = None
        return answer if answer.type is Type.UPDATE and answer.package == command.package else None

    async def _switch(self, board: Board, written: Written) -> None:
        board.switched_at.append((self.world.wall + trio.current_time(), written.version))
        before = board.version, board.image
        board.version, board.image = written.version, written.image
        await trio.sleep(board.rng.uniform(1, 10))
        if board.rng.random() < self.bad.get(written.version, 0.0):
            board.version, board.image = before
            number = len(board.switched_at)
            await self.say(board, result=Result(Outcome.ROLLED_BACK, written.image, 1, "boom", 3, 12, number=number))
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
