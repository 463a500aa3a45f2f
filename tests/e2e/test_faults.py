"""What goes wrong on the way: the device always ends on the old or the new image, and dfud's picture agrees with it."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import trio

from devicefw.sim.board import Board
from dfud.testing.link import Faults, FaultyLink
from tests.e2e.fleet import Fleet, firmware, fleet
from tests.package.test_build import code
from tests.real_parts import require

OLD = firmware("good", "1.0")
# Does not compress well, so that it takes several chunks.
NEW = firmware("good", "1.1", code=code(60_000, 5))


async def prepared(f: Fleet, **config: object) -> Board:
    await f.publish(OLD, "1.0")
    await f.publish(NEW, "1.1")
    board = await f.board("lamp1", OLD, **config)
    await f.want("lamp1", "1.1")
    return board


async def through(f: Fleet, faults: Faults, seed: int = 1) -> FaultyLink:
    link = FaultyLink(f.daemon.ports["http"], faults, seed=seed)
    port = await f.nursery.start(link.run)
    f.boards[0].config["url"] = f"http://127.0.0.1:{port}"
    return link


async def test_a_connection_that_drops_again_and_again_costs_only_time(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        board = await prepared(f)
        link = await through(f, Faults(drop_after=list(range(2000, 60_000, 3100))))
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=120)
        assert status["current"] == "1.1"
        assert status["deployment"]["attempts"] == 0
        assert link.dropped >= 5
        assert [b.slot for b in board.boots] == [0, 1]


async def test_a_corrupted_chunk_is_fetched_again(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path, extra="") as f:
        board = await prepared(f)
        link = await through(f, Faults(corrupt=0.06), seed=7)
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=120)
        assert status["current"] == "1.1"
        assert link.corrupted > 0


async def test_dfud_killed_in_mid_transfer_loses_nothing(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        board = await prepared(f)
        await through(f, Faults(delay_s=0.05))
        f.nursery.start_soon(board.run)
        await f.wait("lamp1", "fetching")
        f.daemon.signal(signal.SIGKILL)
        with trio.fail_after(120):
            while f.daemon.exit_code is None:
                await trio.sleep(0.05)
        await f.nursery.start(f.daemon.run)
        status = await f.wait("lamp1", "done", timeout_s=120)
        assert status["current"] == "1.1"
        assert (await f.history("lamp1"))[-1] == "done"


def _cuts(total: int) -> list[tuple[int, str]]:
    """A sample of the operations of one update, the first and the last ones always among them."""
    rng = random.Random(4)
    numbers = sorted({1, 2, 3, total - 2, total - 1, total, *rng.sample(range(4, total - 2), 6)})
    return [(n, rng.choice(("before", "half"))) for n in numbers]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_power_cut_at_any_flash_operation_leaves_the_old_or_the_new_image(tmp_path: Path, every: bool) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        board = await prepared(f)
        with trio.fail_after(240):
            await board.run_once()
            total = board.flash.operations
            async with trio.open_nursery() as updating:
                updating.start_soon(board.run)
                await f.wait("lamp1", "done", timeout_s=120)
                updating.cancel_scope.cancel()
        assert total > 30
        cuts = [(n, how) for n in range(1, total + 1) for how in ("before", "half")] if every else _cuts(total)
        at_once = trio.CapacityLimiter(6)
        async with trio.open_nursery() as nursery:
            for number, (cut, how) in enumerate(cuts):
                nursery.start_soon(_cut_and_recover, f, f"cut{number}", cut, how, at_once)


async def _cut_and_recover(f: Fleet, name: str, cut: int, how: str, at_once: trio.CapacityLimiter) -> None:
    async with at_once:
        board = await f.board(name, OLD)
        await f.want(name, "1.1")
        board.flash.cut_at, board.flash.cut_how = cut, how
        async with trio.open_nursery() as nursery:
            nursery.start_soon(board.run)
            status = await f.wait(name, "done", timeout_s=120)
            nursery.cancel_scope.cancel()
        where = f"cut {cut}, {how}: {board.console}"
        assert "-- power cut --" in board.console, where
        assert status["current"] == "1.1", where
        versions = [line.split()[-1] for line in board.console if line.startswith("app: running")]
        assert set(versions) <= {"1.0", "1.1"}, where
        assert all(b.slot is not None for b in board.boots), where
