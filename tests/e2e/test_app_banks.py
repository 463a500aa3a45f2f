"""Applications of banks on boards that were flashed with `dfuctl board image`: updates, each way to fail, the agent beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from devicefw.sim.board import Board
from dfud.board.look import look_untrusted
from dfud.wire.messages import Code, Kind, Outcome, Status
from tests.board.support import micropython
from tests.devicefw.appserver import Image, Server, app_image, system_image
from tests.e2e.boards import BROKEN, GOOD, board_bin, program
from tests.real_parts import require


class Desk:
    """One board and a server of recorded commands."""

    def __init__(self, folder: Path, server: Server, nursery: trio.Nursery) -> None:
        self.folder, self.server, self.nursery = folder, server, nursery
        self.made = 0

    def image(self, text: str = GOOD, version: str = "1", sequence: int = 0, **fields: object) -> Image:
        self.made += 1
        data = program(self.folder / f"app{self.made}", text, version, f"colour {version}")
        image = app_image(data, version, sequence, **fields)
        self.server.known.append(image)
        return image

    def board(self, *options: str) -> Board:
        """Flash a board with the first image that was made."""
        folder = self.folder / "app1"
        content = board_bin(self.folder, self.server.url, folder, *options, secret="secret of lamp1", agent={"wait_s": 1})
        board = Board(self.folder / "board", flash=content)
        self.nursery.start_soon(board.run)
        return board


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    require("micropython")
    require("riscv-gcc")
    async with trio.open_nursery() as nursery:
        server = Server()
        await nursery.start(server.run)
        yield Desk(folder, server, nursery)
        nursery.cancel_scope.cancel()


def runs(version: str) -> Callable[[Status], bool]:
    return lambda status: status.app is not None and status.app.version == version and not status.app.trial


async def test_an_application_is_updated_in_its_banks_and_the_system_stays(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        first = d.image(version="1")
        board = d.board("--app-version", "1")
        status = await d.server.until(runs("1"))
        assert status.app is not None
        assert (status.app.digest, status.app.manifest, status.app.accept) == (first.digest, 0, 0)
        assert status.app.capacity == 94208 and status.version == "v1.24.1"
        d.server.app = second = d.image(version="2", sequence=2)
        status = await d.server.until(runs("2"))
        assert status.app is not None
        assert (status.app.digest, status.app.manifest, status.app.accept) == (second.digest, 2, 2)
        d.server.app = d.image(version="3", sequence=3)
        await d.server.until(runs("3"))
        assert [kind for _, kind in d.server.sent if kind != Kind.DELTA] == [], "the running bank is what a delta starts from"
        shown = [line for line in board.console if line.startswith("app: ")]
        assert [line for line in shown if "confirmed" in line] == [f"app: confirmed {n}" for n in (1, 2, 3)]
        assert "app: lamp 3 colour 3" in shown and "app: page 3" in shown
        assert {boot.slot for boot in board.boots} == {0} and status.version == "v1.24.1"
        found = look_untrusted(board.flash.read(0, board.flash.size))
        assert [(bank.version, bank.problem) for bank in found.banks] == [("3", ""), ("2", "")] and found.bank == 0


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_application_is_left_with_its_reason_and_the_next_one_is_fetched(tmp_path: Path, kind: str) -> None:
    text, code, said = BROKEN[kind]
    async with desk(tmp_path) as d:
        d.image(version="1")
        board = d.board("--app-version", "1")
        await d.server.until(runs("1"))
        d.server.app = bad = d.image(text, version="2", sequence=2)
        await d.server.until(lambda s: s.result is not None)
        (result,) = d.server.results
        assert (result.outcome, result.digest, result.code) == (Outcome.ROLLED_BACK, bad.digest, code), board.console[-30:]
        assert said in result.text, result.text
        assert result.attempts == 3
        await d.server.until(runs("1"))
        d.server.app = d.image(version="3", sequence=3)
        await d.server.until(runs("3"))
        assert {boot.slot for boot in board.boots} == {0}, "the system is not blamed"
        last = look_untrusted(board.flash.read(0, board.flash.size)).states[-1:]
        assert not last or (last[0].crashes, last[0].phase) == (0, "confirmed")


@pytest.mark.parametrize("kind", ["import", "hangs"])
async def test_a_first_application_that_is_broken_leaves_the_agent(tmp_path: Path, kind: str) -> None:
    """Nothing to go back to: the board is still there for the next one."""
    async with desk(tmp_path) as d:
        d.image(BROKEN[kind][0], version="1")
        board = d.board("--app-version", "1")
        while len(board.boots) < 4:
            await trio.sleep(0.1)
        d.server.app = d.image(version="2", sequence=2)
        await d.server.until(runs("2"))
        assert "app: confirmed 2" in board.console


async def test_an_application_that_does_not_run_with_this_system_is_refused(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        first = d.image(version="1")
        board = d.board("--app-version", "1")
        await d.server.until(runs("1"))
        d.server.app = strange = d.image(version="2", sequence=2, beside=(1, 9))
        await d.server.until(lambda s: s.result is not None and s.result.digest == strange.digest)
        result = d.server.results[-1]
        assert (result.outcome, result.code) == (Outcome.FAILED, 14)
        assert "it runs beside sequences 1 to 9 of the other kind, here runs 0" in result.text
        d.server.app = d.image(version="4", sequence=4, beside=(0, 9))
        await d.server.until(runs("4"))
        d.server.system = refused = system_image(micropython("v1.25.0"), "v1.25.0", 5, beside=(5, 9))
        await d.server.until(lambda s: s.result is not None and s.result.digest == refused.digest)
        assert "here runs 4" in d.server.results[-1].text
        d.server.system = good = system_image(micropython("v1.26.0"), "v1.26.0", 6, beside=(4, 4))
        await d.server.until(lambda s: s.version == "v1.26.0" and not s.trial and runs("4")(s))
        assert good.digest == d.server.statuses[-1].digest
        d.server.app = first
        await d.server.until(lambda s: s.result is not None and s.result.digest == first.digest)
        assert d.server.results[-1].code == Code.DOWNGRADE
        assert board.boots[-1].slot == 1


async def test_a_system_on_trial_is_blamed_for_an_application_that_fails_under_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        d.image(version="1")
        board = d.board("--app-version", "1")
        await d.server.until(runs("1"))
        # Its frozen modules hide one of the application's.
        d.server.system = bad = system_image(micropython("v1.25.0", "import sys\nsys.modules['lamp'] = None\n"), "v1.25.0", 1)
        await d.server.until(lambda s: s.result is not None)
        (result,) = d.server.results
        assert (result.outcome, result.digest, result.code) == (Outcome.ROLLED_BACK, bad.digest, Code.CRASHED)
        assert "AttributeError" in result.text
        status = await d.server.until(lambda s: s.version == "v1.24.1" and s.result is None and runs("1")(s))
        assert status.starts is not None
        found = look_untrusted(board.flash.read(0, board.flash.size))
        assert found.app_states == [], "nothing was counted for the application"


async def test_a_board_without_banks_has_its_application_in_files_and_refuses_an_image_of_one(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        d.image("import dfu\n\n\nasync def main():\n    print('app: in files', __file__)\n    dfu.confirm()\n")
        board = d.board("--no-banks")
        status = await d.server.until(lambda s: True)
        assert status.app is None
        assert any(line.startswith("app: in files /app/main") for line in board.console) or board.console == []
        image = d.image(version="2", sequence=2)
        d.server.system = image  # as an older server, or one that was stolen, might
        await d.server.until(lambda s: s.result is not None)
        result = d.server.results[-1]
        assert (result.outcome, result.code) == (Outcome.FAILED, Code.HARDWARE)
        assert result.text == "an app image, and this device has no banks for one"
        assert any(line.startswith("app: in files /app/main") for line in board.console)
