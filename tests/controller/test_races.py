"""A device, users and a restart, with everything that can happen happening at any await.

The schedule is drawn: the next thing that somebody does is done at an access to the store, before or after it, or (`everywhere`) at
any checkpoint of any task, whatever it waits for there. Whatever comes, an answer is true when it is given, and what is remembered is
what is stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from dfud.api import Deployment, RefusedError, StoreError
from dfud.wire.messages import Code, Command, Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_firmware, digest

VERSIONS = ("1.0", "1.1", "1.2")
USERS = ("want", "app wants", "withdraw", "publish", "cancel", "retry", "hold", "restart", "break", "wait")
DEVICE = ("poll", "fetch", "written", "boot", "confirm", "crash", "fail", "reset", "lost")


class Board:
    """What the device is, and what it does with an answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs = self.before = "1.0"
        self.trial = False
        self.progress: Progress | None = None
        self.result: Result | None = None
        self.told: Command | None = None

    def act(self, what: str) -> None:
        update = self.told if self.told is not None and self.told.type is Type.UPDATE else None
        match what:
            case "fetch" if update is not None:
                done = self.progress.next + 2 if self.progress is not None else 2
                self.progress = Progress(update.package, min(done, 10))
                self.world.controller.fetched("app", "dev", update.package.hex(), min(done, 9))
            case "written" if update is not None:
                self.progress = Progress(update.package, 10, Phase.WRITTEN)
            case "boot" if update is not None and self.progress is not None and self.progress.phase == Phase.WRITTEN:
                self.before, self.runs, self.trial = self.runs, update.version, True
                self.progress = self.told = None
            case "confirm":
                self.trial = False
            case "crash" if self.runs != self.before:
                left = bytes.fromhex(digest(self.runs))
                self.result = Result(Outcome.ROLLED_BACK, left, int(Code.CRASHED), "crash", 3)
                self.runs, self.trial, self.progress = self.before, False, None
            case "fail" if update is not None:
                self.result = Result(Outcome.FAILED, bytes.fromhex(digest(update.version)), int(Code.CHUNK), "chunk")
                self.progress = self.told = None
            case "reset":
                self.progress = self.told = None

    async def poll(self, *, lost: bool) -> Command | None:
        said: dict[str, Any] = {"trial": self.trial, "progress": self.progress, "result": self.result}
        try:
            command = await self.world.poll(self.runs, **said)
        except StoreError:
            return None
        if not lost:
            self.result, self.told = None, command
            if command.type is Type.STOP:
                self.progress = None
        return command


class Everywhere(trio.abc.Instrument):
    """Tells a story of every step that a task makes from one checkpoint to the next."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._story.step()


class Story:
    def __init__(self, script: list[tuple[str, int, str]], pauses: list[int]) -> None:
        self.world = World(retry_s=10, attempts=3)
        self.script = script
        self.pauses = pauses
        self.refused_images: set[str] = set()
        self.under_way = 0
        self.nursery: trio.Nursery | None = None

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.pauses and self.script and self.nursery is not None:
            if self.pauses[0] > 0:
                self.pauses[0] -= 1
            else:
                self.pauses.pop(0)
                self.begin(self.script.pop(0))
                for _ in range(4):
                    await trio.lowlevel.checkpoint()

    def step(self) -> None:
        """A task goes on from a checkpoint: here, too, the next deed may begin."""
        if not self.pauses or not self.script or self.nursery is None or self.script[0][0] == "restart":
            return
        if self.pauses[0] > 0:
            self.pauses[0] -= 1
        else:
            self.pauses.pop(0)
            self.begin(self.script.pop(0))

    def begin(self, deed: tuple[str, int, str]) -> None:
        assert self.nursery is not None
        self.under_way += 1
        self.nursery.start_soon(self.do, deed)

    async def do(self, deed: tuple[str, int, str]) -> None:
        what, number, version = deed
        world = self.world
        try:
            match what:
                case "want":
                    world.want(version if number else None)
                case "app wants":
                    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": version}})
                case "hold":
                    world.want(version, hold=bool(number))
                case "withdraw":
                    world.withdraw(version)
                case "publish":
                    world.publish(a_firmware(version))
                case "cancel":
                    await self.asked(world.controller.cancel)
                case "retry":
                    await self.asked(world.controller.retry)
                case "break":
                    world.store.broken = True
                    for _ in range(number):
                        await trio.lowlevel.checkpoint()
                    world.store.broken = False
                case "wait":
                    await trio.sleep(number)
        finally:
            self.under_way -= 1

    async def asked(self, ask: Callable[..., Awaitable[None]]) -> None:
        try:
            await ask("app", "dev", "eve")
        except (RefusedError, StoreError):
            return

    def wanted(self) -> str:
        device = self.world.store.devices_["app", "dev"].spec.get("firmware")
        app = self.world.store.apps_["app"].spec.get("firmware")
        found = device or app or {}
        return str(found.get("version", "")) if not found.get("hold") else ""

    def check(self, board: Board, command: Command) -> None:
        """Called without an await since the answer was given: it holds now."""
        wanted = self.wanted()
        if command.type is Type.UPDATE:
            assert command.version == wanted, "what is sent is wanted"
            assert ("app", wanted) in self.world.store.firmwares_, "and published"
            newest = self.world.deployment
            assert newest.version == wanted and not newest.final, "and not cancelled"
        if command.type is Type.SYNC:
            held = self.world.store.devices_["app", "dev"].spec.get("firmware") or self.world.store.apps_[
                "app"
            ].spec.get("firmware", {})
            assert held.get("version") == board.runs
        known = self.world.controller._memory.peek("app", "dev")
        if known is not None:
            assert known.device == self.world.store.devices_["app", "dev"], "what is remembered is what is stored"
        every = [d for d in self.world.store.deployments_.values() if not d.final]
        assert len(every) <= 1, "one at a time"
        numbers = [d.number for d in self.world.store.deployments_.values()]
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), "each has its number"

    async def quiet(self) -> None:
        while self.under_way:
            await trio.sleep(1)

    def stored(self) -> Deployment | None:
        return self.world.store.newest("app", "dev")


DEEDS = st.tuples(st.sampled_from(USERS), st.integers(0, 20), st.sampled_from(VERSIONS))


ANYTHING = (
    st.lists(DEEDS, max_size=12),
    st.lists(st.integers(0, 12), max_size=12),
    st.lists(st.sampled_from(DEVICE), min_size=1, max_size=25),
    st.booleans(),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(*ANYTHING)
def test_every_answer_is_true_when_it_is_given(
    script: list[tuple[str, int, str]], pauses: list[int], deeds: list[str], everywhere: bool
) -> None:
    tell(script, pauses, deeds, everywhere=everywhere)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(*ANYTHING)
def test_every_answer_is_true_when_it_is_given_for_long(
    script: list[tuple[str, int, str]], pauses: list[int], deeds: list[str], everywhere: bool
) -> None:
    tell(script, pauses, deeds, everywhere=everywhere)


def tell(script: list[tuple[str, int, str]], pauses: list[int], deeds: list[str], *, everywhere: bool = False) -> None:
    """Have a device do its deeds while the script is played at the pauses."""

    async def main() -> None:
        story = Story(list(script), list(pauses))
        world, board = story.world, Board(story.world)
        async with trio.open_nursery() as nursery:
            story.nursery = nursery
            nursery.start_soon(world.controller.run)
            if everywhere:
                trio.lowlevel.add_instrument(Everywhere(story))
            else:
                world.store.pause = story.pause
            world.want("1.1")
            for deed in deeds:
                if deed != "poll":
                    board.act(deed)
                command = await board.poll(lost=deed == "lost")
                if command is not None:
                    story.check(board, command)
                if story.script and story.script[0][0] == "restart":
                    story.script.pop(0)
                    await story.quiet()
                    nursery.start_soon(world.restarted().run)
                await trio.sleep(1)
            await story.quiet()
            await ends_well(story, board)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def ends_well(story: Story, board: Board) -> None:
    """Once everybody is quiet: retry means that it is sent, cancel means that it is not, over a restart."""
    world = story.world
    world.store.pause = trio.lowlevel.checkpoint
    world.store.broken = False
    world.publish(a_firmware("1.3"))
    world.want("1.3")
    board.result, board.trial, board.progress, board.told = None, False, None, None
    await board.poll(lost=False)
    await world.controller.cancel("app", "dev", "eve")
    world.restarted()
    command = await board.poll(lost=False)
    assert command is not None and command.type is not Type.UPDATE
    await world.controller.retry("app", "dev", "eve")
    world.restarted()
    for _ in range(20):
        command = await board.poll(lost=False)
        if command is not None and command.type is Type.UPDATE:
            break
        await trio.sleep(60)
    assert command is not None and (command.type, command.version) == (Type.UPDATE, "1.3")


def test_a_deployment_that_is_stored_is_whole() -> None:
    """A stored deployment is read back as it was written, whatever field it has."""
    world = World()
    world.want("1.1")

    async def main() -> None:
        await world.poll()
        d = world.deployment
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(d), type=Deployment) == d

    trio.run(main, clock=MockClock(autojump_threshold=0))
