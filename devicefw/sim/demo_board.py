"""`make demo BOARD=sim`: from a download and a bare board to a roll-back, with the commands of docs/board.md, and of docs/app.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import trio

from devicefw.sim.board import Board
from devicefw.sim.demo import Dfuctl, board_line, console, say, watch
from devicefw.sim.firmware import program
from devicefw.sim.processes import until_signalled
from devicefw.sim.stock import download, micropython
from dfud.testing.daemon import DaemonProcess

APPLICATION = """import asyncio
import dfu


async def main():
    print("app: the lamp is on")
    dfu.confirm()
    while True:
        await asyncio.sleep(1)
"""
OLD, NEW, BAD = "v1.24.1", "v1.25.0", "v1.26.0"


@click.command()
def main() -> None:
    """Make a board.bin, flash a simulated board with it, enrol it, update it, and see a bad update left."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(until_signalled, lambda: _demo(Path(directory)))


async def _demo(directory: Path) -> None:
    say("A download of MicroPython, an application, and dfud")
    images = {OLD: micropython(OLD), NEW: micropython(NEW), BAD: micropython(BAD, program("nowifi", BAD))}
    for version, image in images.items():
        (directory / f"micropython-{version}.bin").write_bytes(download(image))
    (directory / "app").mkdir()
    (directory / "app" / "main.py").write_text(APPLICATION)
    (directory / "wifi").write_text("correct horse\n")
    daemon = DaemonProcess(directory / "dfud", plugins=("local", "http"))
    await daemon.init()
    dfuctl = Dfuctl(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        await dfuctl("login", daemon.urls["registry"], "--token", daemon.token, secret=True)
        await dfuctl("app", "create", "lamps", "--unsigned")
        await dfuctl("context", "--app", "lamps")
        (directory / "claim").write_text(await dfuctl("claim", "create", "--uses", "10", show=False) + "\n")

        say("One file, and what it holds")
        target = directory / "board.bin"
        made = ["--micropython", str(directory / f"micropython-{OLD}.bin"), "--app", str(directory / "app")]
        made += ["--server", daemon.urls["http"], "--claim-file", str(directory / "claim"), "--device", "lamp1"]
        made += ["--wifi", "attic", "--wifi-password-file", str(directory / "wifi")]
        await dfuctl("board", "image", *made, "-o", str(target))
        await dfuctl("board", "inspect", str(target))

        say("A simulated board, flashed with it: bootloader, MicroPython, Wi-Fi, agent, application")
        board = Board(directory / "lamp1", flash=target.read_bytes(), on_line=board_line)
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while f" {OLD}" not in await dfuctl("device", "list", show=False):  # noqa: ASYNC110  # dfud is asked
                await trio.sleep(0.5)
        await dfuctl("device", "list")
        for version in images:
            file = str(directory / f"micropython-{version}.bin")
            about = ("--app-at", "0x10000", "--version", version, "--hardware", "esp32c3")
            await dfuctl("firmware", "publish", file, *about, show=False)

        say(f"A good update: {NEW}")
        await dfuctl("update", "lamp1", NEW)
        await watch(dfuctl)
        say(f"A bad update: {BAD} has lost its Wi-Fi")
        await dfuctl("update", "lamp1", BAD)
        await watch(dfuctl)
        await dfuctl("explain", "lamp1")
        await dfuctl("board", "inspect", str(board.flash.path))
        say("The application alone: pushed from its folder; then one that divides by zero")
        main_py = directory / "app" / "main.py"
        main_py.write_text(APPLICATION.replace("is on", "is blue"))
        await dfuctl("push", str(directory / "app"), "lamp1")
        main_py.write_text(APPLICATION.replace('print("app: the lamp is on")', "print(100 // 0)"))
        await dfuctl("push", str(directory / "app"), "lamp1", code=3)
        if board.boots[-1].slot != 1:
            console.print(board.boots)
            raise SystemExit(f"the board ended in slot {board.boots[-1].slot}, expected 1, where {NEW} is")
        nursery.cancel_scope.cancel()
    say("Done: a bare board became a device, one update arrived, one bad one was left with its reason on record; so for its app.")


if __name__ == "__main__":
    main()
