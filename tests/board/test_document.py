"""docs/board.md, each of its commands as it is printed, from the download to the roll-back, on a simulated board."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import trio

from devicefw.sim.board import Board
from dfud.board import filesystem
from dfud.board.flashmap import LAYOUTS, SIZES, bank_capacity, find
from dfud.board.software import AGENT_FILE, agent_files, pack, start_files
from tests.board.romloader import Chip
from tests.board.support import download, micropython
from tests.e2e.fleet import APP, Fleet, fleet
from tests.real_parts import require
from tests.warm import typed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "board.md").read_text()
OLD, NEW = "ESP32_GENERIC_C3-20241129-v1.24.1.bin", "ESP32_GENERIC_C3-20250415-v1.25.0.bin"


def commands(page: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [
        line.partition("  #")[0].strip() for language, block in found if not language for line in block.splitlines()
    ]


class Desk:
    """Runs what a reader types, in a folder of theirs. `put` stands for what they fill in."""

    def __init__(self, f: Fleet, folder: Path) -> None:
        self.folder = folder
        self.put = {"http://192.168.1.2:8880": f.daemon.urls["http"]}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        config = str(folder / "config.toml")
        self._environment = {**os.environ, "PATH": path, "DFUCTL_CONFIG": config, "DFUCTL_WIFI_PASSWORD": "correct horse"}

    async def __call__(self, line: str, *, code: int = 0, given: str = "") -> str:
        for shown, real in self.put.items():
            line = line.replace(shown, real)
        run = await trio.run_process(
            typed(line),
            env={**self._environment, "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            stdin=given.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            start_new_session=True,
        )
        told = run.stdout.decode() + run.stderr.decode()
        assert run.returncode == code, f"{line}: {told}"
        return told


async def test_each_command_of_the_page(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    require("esptool")
    (tmp_path / OLD).write_bytes(download(micropython("v1.24.1")))
    (tmp_path / NEW).write_bytes(download(micropython("v1.25.0")))
    (tmp_path / "app").mkdir()
    (shown,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "app" / "main.py").write_text(shown)
    async with fleet(tmp_path) as f:
        desk = Desk(f, tmp_path)
        await desk(f"dfuctl login {f.daemon.urls['registry']}", given=f.daemon.token + "\n")
        done = []
        printed = made = ""
        chip = Chip()
        for line in commands(PAGE):
            if line.startswith("esptool"):
                assert line in made, "the page shows what `board image` printed"
                told = await desk(line.replace("/dev/ttyACM0", "./no-port"), code=2)
                assert "./no-port" in told and "Usage" not in told, "esptool takes the command, and misses the port alone"
                lamp = Board(tmp_path / "board", flash=bytes(chip.flash))
                f.boards.append(lamp)
                f.nursery.start_soon(lamp.run)
                continue
            if line.startswith("dfuctl board flash"):
                with chip.plugged_in() as port:
                    assert "then it starts" in await desk(line.replace("/dev/ttyACM0", port))
            elif line == "dfuctl device list":
                with trio.fail_after(60):
                    while "v1.24.1" not in (printed := await desk(line)):
                        await trio.sleep(0.2)
                name = next(row.split()[0] for row in printed.splitlines() if "v1.24.1" in row)
                desk.put["DEVICE"] = name
            elif line.startswith("dfuctl app create"):
                assert line.split()[3] == APP, "the fixture has made it"
            else:
                printed = await desk(line, code=3 if "v1.26.0 --watch" in line else 0)
                f.secrets += [(tmp_path / "claim").read_text().strip()] if "claim create" in line else []
            made = printed if "board image" in line else made
            if "v1.25.0 --watch" in line:
                assert "v1.25.0, app 0: in sync" in printed
            if line.startswith("dfuctl explain"):
                assert "AttributeError" in printed, printed
            if line == "dfuctl board inspect board/flash.bin":
                assert "left after crashes" in printed and "v1.25.0" in printed
            done.append(line)
        assert len(done) == 16
        assert len(list((tmp_path / "line").glob("lamp-00?.nvs.bin"))) == 3


@pytest.mark.parametrize("flash", LAYOUTS)
def test_what_fits_is_what_there_is(flash: str) -> None:
    (row,) = re.findall(rf"^\| {flash[:-2]} MB \|(.*)\|$", PAGE, re.MULTILINE)
    slot, bank, vfs = (find(LAYOUTS[flash], label) for label in ("ota_0", "app_a", "vfs"))
    places = [f"2 x {part.size:,} | {part.size - 4096:,}" for part in (slot, bank)]
    assert row.strip() == " | ".join([*places, f"{vfs.size:,} | {vfs.offset:#x}"])
    assert bank.size == find(LAYOUTS[flash], "app_b").size and bank_capacity(flash) == bank.size - 4096


@pytest.mark.parametrize("parts", [(), ("serial",)])
def test_the_agent_leaves_an_application_the_room_that_the_page_says(parts: tuple[str, ...]) -> None:
    (least, blocks) = map(int, re.findall(r"leave at least (\d+) of the (\d+) blocks", PAGE)[0])
    agent = agent_files(ROOT / "devicefw" / "dfu", parts=parts)
    vfs = find(LAYOUTS["4MB"], "vfs")
    files = {AGENT_FILE: pack(agent), "dfu.json": bytes(500), **start_files(ROOT / "devicefw" / "board")}
    used = filesystem.read_untrusted(filesystem.build(files, vfs.size))[1]
    assert (vfs.size // 4096, parts == () or "dfu/serial.mpy" in agent) == (blocks, True)
    assert blocks - used >= least
    alone = filesystem.read_untrusted(filesystem.build(agent, 1 << 20))[1]
    assert alone >= 2 * -(-len(files[AGENT_FILE]) // 4096), "twice the blocks, as files"


def test_stock_images_fit_as_the_page_says() -> None:
    images = r"\d[\d.]+|with displays|before change 17994, for speed|with it, for size"
    rows = re.findall(rf"^\| (?:{images}) \| ([\d,]+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 7
    for size, said in rows:
        fits = [int(size.replace(",", "")) <= slot - 4096 for slot in (0x1B0000, 0x1D0000, 0x1E0000)]
        assert [text.startswith("fits") for text in said.split(" | ")] == fits


@pytest.mark.parametrize("flash", LAYOUTS)
def test_a_large_flash_is_used_to_its_end(flash: str) -> None:
    bank = find(LAYOUTS[flash], "app_b")
    assert flash == "4MB" or bank.end == SIZES[flash]
