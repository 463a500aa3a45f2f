"""App firmware the whole way: dfuctl, a real daemon, boards flashed with board.bin, applications in banks."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from devicefw.sim.board import Board
from dfud.wire.manifest import FLAG_DOWNGRADE, Manifest, unsigned
from tests.board.support import micropython
from tests.e2e.boards import BROKEN, GOOD, STOCK, board_bin, program
from tests.e2e.fleet import APP, Fleet, fleet
from tests.real_parts import require

ROOT = Path(__file__).parents[2]


class Desk:
    """A developer with dfuctl, dfud, and a board `lamp1` that runs the application of folder `first`."""

    def __init__(self, f: Fleet, folder: Path) -> None:
        self.fleet, self.folder = f, folder
        self.board: Board | None = None

    async def dfuctl(self, *arguments: str, code: int = 0) -> str:
        environment = {**os.environ, "DFUCTL_CONFIG": str(self.folder / "config.toml"), "PYTHONPATH": str(ROOT)}
        environment |= {"DFUCTL_TOKEN": self.fleet.daemon.token}
        run = await trio.run_process(
            [str(Path(sys.executable).with_name("dfuctl")), "--app", APP, *arguments],
            env=environment,
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        told = run.stdout.decode() + run.stderr.decode()
        console = "\n".join(self.board.console[-40:]) if self.board else ""
        assert run.returncode == code, f"{arguments}: {run.returncode}: {told}\n{console}"
        return told

    def written(self, name: str, text: str = GOOD) -> Path:
        program(self.folder / name, text, name, f"colour of {name}")
        return self.folder / name

    async def published(self, name: str, text: str = GOOD, *options: str) -> str:
        """Build and publish an application as the version `name`."""
        image = str(self.folder / f"{name}.img")
        await self.dfuctl("app-image", "build", str(self.written(name, text)), "-o", image)
        about = ("--kind", "app", "--version", name, "--hardware", "esp32c3")
        await self.dfuctl("firmware", "publish", image, *about, *options)
        return name

    async def until(self, what: Any, timeout_s: float = 120) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with trio.move_on_after(timeout_s):
            while True:
                found = await self.fleet.status("lamp1")
                if what(found):
                    return found
                await trio.sleep(0.1)
        raise AssertionError(f"{found}\n" + "\n".join(self.fleet.consoles()))


def runs(app: str) -> Any:
    return lambda found: found.get("app", {}).get("current") == app and not found["app"]["actual"]["trial"]


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    require("micropython")
    require("riscv-gcc")
    async with fleet(folder) as f:
        d = Desk(f, folder)
        await d.dfuctl("login", f.daemon.urls["registry"], "--token", f.daemon.token)
        secret = await f.add_device("lamp1")
        content = board_bin(folder, f.daemon.urls["http"], d.written("first"), "--app-version", "first", secret=secret)
        d.board = Board(folder / "board", flash=content)
        f.boards.append(d.board)
        f.nursery.start_soon(d.board.run)
        await d.until(runs("first"))
        yield d


async def test_an_application_is_published_updated_and_a_broken_one_left_with_its_traceback(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        await d.published("second")
        await d.dfuctl("update", "lamp1", "--app", "second", "--watch")
        await d.until(runs("second"))
        await d.published("third", BROKEN["raises"][0])
        told = await d.dfuctl("update", "lamp1", "--app", "third", "--watch", code=3)
        assert "IndexError" in told and 'File "app/main.py", line 4, in main' in told, told
        found = await d.until(runs("second"))
        assert (found["current"], found["actual"]["sequence"]) == ("v1.24.1", 0), "the system stays, and so does its floor"
        said = await d.dfuctl("explain", "lamp1")
        assert "IndexError" in said, said


async def test_both_kinds_in_one_rollout(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        await d.fleet.publish(STOCK, "v1.24.1")
        await d.fleet.publish(micropython("v1.25.0"), "v1.25.0")
        await d.published("second")
        await d.dfuctl("rollout", "create", "spring", "v1.25.0", "--app", "second")
        found = await d.until(lambda found: found["current"] == "v1.25.0" and runs("second")(found) and not found["actual"]["trial"])
        assert found["app"]["actual"]["version"] == "second"
        shown = json.loads(await d.dfuctl("-o", "json", "rollout", "show", "spring"))
        (wave,) = shown["status"]["waves"]
        assert (wave["expected"], wave["done"], wave["failed"], wave["left"]) == (1, 1, 0, 0)


async def test_a_pair_whose_application_is_broken_goes_back_together(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        # A device takes an older one only where its publisher has said so.
        old = Manifest(
            app=APP,
            version="v1.24.1",
            hardware="esp32c3",
            sequence=1,
            size=len(STOCK),
            sha256=hashlib.sha256(STOCK).digest(),
            flags=FLAG_DOWNGRADE,
        )
        (tmp_path / "old.bin").write_bytes(STOCK)
        (tmp_path / "old.manifest").write_bytes(unsigned(old))
        await d.dfuctl("firmware", "publish", str(tmp_path / "old.bin"), "--manifest", str(tmp_path / "old.manifest"))
        await d.fleet.publish(micropython("v1.25.0"), "v1.25.0")
        await d.published("second", BROKEN["import"][0])
        await d.dfuctl("rollout", "create", "spring", "v1.25.0", "--app", "second")
        assert d.board is not None
        found = await d.until(lambda found: found["current"] == "v1.24.1" and runs("first")(found) and len(d.board.boots) > 5)
        assert {boot.slot for boot in d.board.boots} == {0, 1}, "the system was there, and went back"
        told = await d.dfuctl("rollout", "show", "spring")
        assert "ImportError: no module named 'lampe'" in told and "paused" in told, told
        assert found["app"]["target"] == "second"


async def test_push_builds_publishes_updates_and_follows(tmp_path: Path) -> None:
    async with desk(tmp_path) as d:
        folder = d.written("mine")
        since = time.monotonic()
        told = await d.dfuctl("push", str(folder), "lamp1")
        print(f"push took {time.monotonic() - since:.1f} s")  # docs/app.md names it; no test holds it to a time
        found = await d.until(lambda found: runs(found["app"]["target"])(found))
        assert found["app"]["current"].startswith("dev-") and f"as {found['app']['current']}" in told
        assert "app: lamp mine colour of mine" in d.board.console if d.board else False
        again = await d.dfuctl("push", str(folder), "lamp1")
        assert found["app"]["current"] in again
        assert len(json.loads(await d.dfuctl("-o", "json", "firmware", "list"))) == 1, "the same image is not published again"
        (folder / "main.py").write_text(BROKEN["raises"][0])
        assert "IndexError" in await d.dfuctl("push", str(folder), "lamp1", code=3)
        (folder / "main.py").write_text("async def main(:\n")
        assert "app/main.py, line 1: does not compile" in await d.dfuctl("push", str(folder), "lamp1", code=1)
