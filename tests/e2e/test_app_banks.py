"""Applications of banks on boards that were flashed with `dfuctl board image`: updates, each way to fail, the agent beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from devicefw.sim.board import Board
from dfud.board import appimage
from dfud.board.look import look_untrusted
from dfud.cli.main import main
from dfud.wire.messages import Code, Kind, Outcome
from tests.board.support import download, micropython
from tests.devicefw.appserver import Image, Server, app_image, system_image
from tests.real_parts import require

STOCK = micropython("v1.24.1")
GOOD = """import asyncio
import dfu
import lamp


async def main():
    print("app: lamp {version}", lamp.colour)
    with open("/app/page.txt") as page:
        print("app:", page.readline().strip())
    await asyncio.sleep_ms(20)
    dfu.confirm()
    print("app: confirmed {version}")
    while True:
        await asyncio.sleep(1)
"""
BROKEN = {
    "raises": ('async def main():\n    lamps = []\n    print("app: broken")\n    return lamps[3]\n', Code.CRASHED, "IndexError"),
    "import": ("import dfu\nimport lampe\n\n\nasync def main():\n    dfu.confirm()\n", Code.CRASHED, "no module named 'lampe'"),
    "hangs": ("async def main():\n    while True:\n        pass\n", Code.CRASHED, "RTC watchdog"),
    "memory": ("async def main():\n    kept = []\n    while True:\n        kept.append(bytes(999))\n", Code.CRASHED, "MemoryError"),
    "unconfirmed": ("import asyncio\n\n\nasync def main():\n    await asyncio.sleep(9)\n", Code.UNCONFIRMED, "not confirmed in time"),
    "exits": ("import sys\n\n\nasync def main():\n    sys.exit()\n", Code.CRASHED, "SystemExit"),
}


def program(folder: Path, text: str = GOOD, version: str = "1", colour: str = "red") -> bytes:
    """Return the app image of a program, made in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(text.replace("{version}", version))
    (folder / "lamp.py").write_text(f"colour = {colour!r}\n" + "".join(f"def f{i}():\n    return {i}\n" for i in range(60)))
    (folder / "page.txt").write_text(f"page {version}\n" * 20)
    return appimage.build(folder).data


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

    def board(self, *options: str, app: Path | None = None) -> Board:
        (self.folder / "stock.bin").write_bytes(download(STOCK))
        (self.folder / "secret").write_text("secret of lamp1\n")
        target = self.folder / "board.bin"
        command = ["--app", "lamps", "board", "image", "--micropython", str(self.folder / "stock.bin")]
        command += ["--app", str(app or self.folder / "app1"), "--server", self.server.url, "--device", "lamp1"]
        command += ["--secret-file", str(self.folder / "secret"), "--ntp", "", "-o", str(target), *options]
        found = CliRunner().invoke(main, command)
        assert found.exit_code == 0, found.output
        # Times of a test, and not of a field.
        quick = {"confirm_s": 2, "watchdog_s": 2, "app_watchdog_s": 4, "backoff_ms": 300, "update_backoff_ms": 300, "wait_s": 1}
        quick |= {"app_pause_s": 3, "app_first_s": 2}
        board = Board(self.folder / "board", flash=_configured(target.read_bytes(), quick))
        self.nursery.start_soon(board.run)
        return board


def _configured(content: bytes, agent: Mapping[str, object]) -> bytes:
    """Return a board.bin with more in the agent's configuration."""
    import json

    from dfud.board import filesystem
    from dfud.board.flashmap import LAYOUTS, find

    vfs = find(LAYOUTS["4MB"], "vfs")
    data = content[vfs.offset : vfs.end].ljust(vfs.size, b"\xff")
    files = {path.lstrip("/"): filesystem.content_untrusted(data, path) for path in filesystem.read_untrusted(data)[0]}
    said = json.loads(files["dfu.json"])
    said["agent"] |= agent
    files["dfu.json"] = json.dumps(said).encode()
    made = filesystem.build(files, vfs.size)
    return content[: vfs.offset] + made + content[vfs.end :]


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    require("micropython")
    require("riscv-gcc")
    async with trio.open_nursery() as nursery:
        server = Server()
        await nursery.start(server.run)
        yield Desk(folder, server, nursery)
        nursery.cancel_scope.cancel()


def runs(version: str) -> Callable[[Any], bool]:
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
