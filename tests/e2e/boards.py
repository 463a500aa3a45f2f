"""Boards with app banks, flashed with what `dfuctl board image` makes; applications for them, good ones and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from dfud.board import appimage, filesystem
from dfud.board.flashmap import LAYOUTS, find
from dfud.cli.main import main
from dfud.wire.messages import Code
from tests.board.support import download, micropython

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
    "hangs": ("import time\n\n\nasync def main():\n    while True:\n        time.sleep(1)\n", Code.CRASHED, "RTC watchdog"),
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


# Times of a test, and not of a field.
QUICK = {"confirm_s": 2, "watchdog_s": 2, "backoff_ms": 300, "update_backoff_ms": 300}
QUICK |= {"app_watchdog_s": 4, "app_pause_s": 3, "app_first_s": 2}


def board_bin(
    folder: Path, url: str, app: Path, *options: str, secret: str, device: str = "lamp1", agent: dict[str, object] | None = None
) -> bytes:
    """Return the board.bin of a device whose secret is known, with an application's folder in bank A, and quick times."""
    (folder / "stock.bin").write_bytes(download(STOCK))
    (folder / "secret").write_text(secret + "\n")
    target = folder / "board.bin"
    command = ["--app", "lamps", "board", "image", "--micropython", str(folder / "stock.bin"), "--app", str(app), "--server", url]
    command += ["--device", device, "--secret-file", str(folder / "secret"), "--ntp", "", "-o", str(target), *options]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    return _configured(target.read_bytes(), QUICK | (agent or {}))


def refiled(content: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """Return a board.bin whose file system has other files: `change` is given those there are, and changes them."""
    vfs = find(LAYOUTS["4MB"], "vfs")
    data = content[vfs.offset : vfs.end].ljust(vfs.size, b"\xff")
    files = {path.lstrip("/"): filesystem.content_untrusted(data, path) for path in filesystem.read_untrusted(data)[0]}
    change(files)
    made = filesystem.build(files, vfs.size)
    return content[: vfs.offset] + made + content[vfs.end :]


def _configured(content: bytes, agent: dict[str, object]) -> bytes:
    """Return a board.bin with more in the agent's configuration."""

    def change(files: dict[str, bytes]) -> None:
        said = json.loads(files["dfu.json"])
        said["agent"] |= agent
        files["dfu.json"] = json.dumps(said).encode()

    return refiled(content, change)
