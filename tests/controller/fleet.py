"""Pure simulated devices under virtual time: they poll, fetch, boot, crash, go back and are offline, as a seed says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import trio

from dfud.api import Device, Metadata
from dfud.wire.manifest import FLAG_APP, decode_envelope_untrusted
from dfud.wire.messages import NO_DIGEST, Banks, Code, Defer, Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_status, digest


class Written(msgspec.Struct):
    """An image that a board has written and does not run yet; app: into an app bank."""

    package: bytes
    chunks: int
    version: str
    image: bytes
    app: bool = False


class Board(msgspec.Struct):
    """One device. online: the share of its polls that reach dfud; declines: its application puts every update off; unready: how many
    transfers fail before one comes through; switched_at: when it ran what it had written. banks: it has some for app firmware,
    of which `app` runs; manifests: the sequences of what runs, as the images' manifests say them."""

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
    banks: bool = False
    app: str = ""
    app_image: bytes = NO_DIGEST
    manifests: dict[str, int] = {}
    out_of_range: list[str] = []
    app_told: bool = False
    coming: int = 0

    def banks_said(self, trial: bool) -> Banks | None:
        if not self.banks:
            return None
        return Banks(self.app, self.app_image, 100_000, trial, 0, self.manifests.get("app"))


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
                out_of_range=[],
            )
        del world.store.devices_["app", "dev"]
        self._rng = rng

    async def say(self, board: Board, **said: Any) -> Any:
        if board.declines:
            said["defer"] = Defer("somebody is using it", 400)
        if board.written is not None and not said:
            said["progress"] = Progress(board.written.package, board.written.chunks, Phase.WRITTEN)
        about: dict[str, Any] = {"digest": board.image, "hardware": board.hardware, "attributes": board.attributes}
        about |= {"app": board.banks_said(said.get("trial") == "app"), "manifest": board.manifests.get("system")}
        said["trial"] = said.get("trial") in (True, "system")
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
        manifest = decode_envelope_untrusted(command.manifest)[1]
        image, app = manifest.sha256, bool(manifest.flags & FLAG_APP)
        board.app_told |= app and not board.banks
        beside = board.manifests.get("system" if app else "app", 0)
        if manifest.beside is not None and not manifest.beside[0] <= beside <= manifest.beside[1]:
            board.out_of_range.append(command.version)  # an agent would refuse it
        await trio.sleep(board.rng.uniform(1, 30))
        if board.unready:
            board.unready -= 1
            await self.say(board, result=Result(Outcome.FAILED, image, int(Code.CHUNK), "torn", number=len(board.told_at)))
            return None
        board.written = Written(command.package, command.chunks, command.version, image, app)
        board.coming = manifest.sequence
        answer = await self.say(board)
        if answer.type is Type.STOP:
            board.written = None
        return answer if answer.type is Type.UPDATE and answer.package == command.package else None

    async def _switch(self, board: Board, written: Written) -> None:
        board.switched_at.append((self.world.wall + trio.current_time(), written.version))
        kind = "app" if written.app else "system"
        names = ("app", "app_image") if written.app else ("version", "image")
        before = getattr(board, names[0]), getattr(board, names[1]), board.manifests.get(kind)
        self._run(board, written.version, written.image, board.coming, kind)
        await trio.sleep(board.rng.uniform(1, 10))
        if board.rng.random() < self.bad.get(written.version, 0.0):
            self._run(board, *before, kind)
            number = len(board.switched_at)
            await self.say(board, result=Result(Outcome.ROLLED_BACK, written.image, 1, "boom", 3, 12, number=number))
            return
        await self.say(board, trial=kind)
        await self.say(board)

    def _run(self, board: Board, version: str, image: bytes, sequence: int | None, kind: str) -> None:
        if kind == "app":
            board.app, board.app_image = version, image
        else:
            board.version, board.image = version, image
        board.manifests = {k: v for k, v in {**board.manifests, kind: sequence}.items() if v is not None}

    def equip(self, app: str, sequence: int) -> None:
        """Give all boards app banks, an app that runs in one, and system 1.0 a manifest."""
        for board in self.boards.values():
            board.banks = True
            board.manifests = {"system": 1}
            self._run(board, app, bytes.fromhex(digest(app)), sequence, "app")

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

    def both(self) -> Counter[tuple[str, str]]:
        return Counter((board.version, board.app) for board in self.boards.values())
