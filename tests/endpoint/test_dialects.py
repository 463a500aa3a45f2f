"""A device of another dialect, whose words leave open what it holds: it loses its update by nothing but what it does itself."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from dfud_drogue.cbor import decode_untrusted, encode
from dfud_drogue.config import DrogueConfig
from dfud_drogue.dialect import AjourDialect

from dfud.api import Credentials, Request, State, StoreError
from dfud.endpoint.dialects import Conversation
from tests.controller.world import World, a_firmware, digest

WAIT, SYNC, WRITE, SWAP = range(4)
IMAGE = b"1.1"


class Board:
    """Speaks Ajour's protocol as drogue-device does: told to wait, it forgets what it has written; without an answer, it does not."""

    def __init__(self, world: World, tmp_path: Path) -> None:
        self._world = world
        self._dialect = AjourDialect(DrogueConfig())
        self._file = tmp_path / "image"
        self._file.write_bytes(IMAGE)
        world.publish(a_firmware("1.1", size=len(IMAGE)))
        assert hashlib.sha256(IMAGE).hexdigest() == digest("1.1")
        self.store_problem: StoreError | None = None
        self.held: bytes | None = None
        world.store.images[digest("1.1")] = self._file
        lend = world.store.blob

        @asynccontextmanager
        async def blob(sha256: str) -> AsyncIterator[Path | None]:
            if self.store_problem is not None:
                raise self.store_problem
            async with lend(sha256) as path:
                yield path

        world.store.blob = blob  # type: ignore[method-assign]

    def damage(self) -> None:
        self._file.write_bytes(b"1.2")

    def mend(self) -> None:
        self._file.write_bytes(IMAGE)

    async def ask(self, version: str = "1.0") -> int:
        """Say where it is and do what it is told; return that."""
        status: dict[int, Any] = {0: version.encode(), 1: 512, 2: None}
        if self.held is not None:
            status[3] = {0: b"1.1", 1: len(self.held)}
        world = self._world
        session = Conversation(
            world.controller, world.store, "app", "dev", "http", lambda: world.wall + trio.current_time()
        )
        reply = await self._dialect.answer(Request("http", "::1", Credentials(), "dfu", encode(status)), session)
        (command, told), *_ = decode_untrusted(reply.body).items()
        if command == WRITE:
            assert told[2] == len(self.held or b"")
            self.held = (self.held or b"") + told[3]
        elif command in (WAIT, SYNC):
            self.held = None
        return int(command)


@pytest.fixture
def world() -> World:
    made = World()
    made.want("1.1")
    return made


@pytest.fixture
def board(world: World, tmp_path: Path) -> Board:
    return Board(world, tmp_path)


async def test_an_update_goes_its_way(world: World, board: Board) -> None:
    assert [await board.ask() for _ in range(3)] == [WRITE, SWAP, SWAP], "an answer may be lost: it is told again"
    board.held = None
    assert await board.ask("1.1") == SYNC
    assert (world.deployment.state, world.deployment.attempts) == (State.DONE, 0)


@pytest.mark.parametrize("held", [None, b"1", IMAGE])
async def test_a_store_that_fails_for_a_moment_costs_one_answer_and_not_the_update(
    world: World, board: Board, held: bytes | None
) -> None:
    await board.ask()
    board.held = held
    for _ in range(5):
        board.store_problem = StoreError("the disk is away", retryable=True)
        with pytest.raises(StoreError, match="away"):
            await board.ask()
        assert world.deployment.problem == "the disk is away"
        assert world.store.actuals["app", "dev"].version == "1.0", "what it said is kept"
        board.store_problem = None
    while (told := await board.ask()) == WRITE:
        pass
    assert told == SWAP
    assert (world.deployment.attempts, world.deployment.problem, world.deployment.blocks) == (0, "", False)


async def test_one_that_was_never_told_to_boot_what_it_has_written_has_not_rolled_back(world: World, board: Board) -> None:
    await board.ask()
    board.damage()
    assert await board.ask() == WAIT
    assert (world.deployment.state, world.deployment.attempts) == (State.WRITTEN, 0)
    assert "damaged" in world.deployment.problem
    assert await board.ask() == WAIT
    assert (world.deployment.state, world.deployment.attempts) == (State.PENDING, 1)
    board.mend()
    await trio.sleep(world.policy.retry_s + 1)
    assert [await board.ask() for _ in range(2)] == [WRITE, SWAP]
    board.held = None
    assert await board.ask("1.1") == SYNC
    assert (world.deployment.state, world.deployment.blocks) == (State.DONE, False)


async def test_one_that_was_told_to_boot_it_and_runs_its_old_one_has_rolled_back(world: World, board: Board) -> None:
    assert [await board.ask() for _ in range(2)] == [WRITE, SWAP]
    world.restarted()
    board.held = None
    assert await board.ask() == WAIT
    assert (world.deployment.state, world.deployment.blocks) == (State.ROLLED_BACK, True)


@pytest.fixture(autouse=True)
def _quick(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody waits."""
