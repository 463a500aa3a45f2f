"""A board whose agent does not load: no prompt that waits for ever, but a failed start, which the bootloader counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from bootloader.sim.images import STATE_AT, envelope, state
from devicefw.sim.board import Board
from dfud.board.flashmap import LAYOUTS, find
from dfud.board.records import encode_trailer
from tests.board.support import application, micropython
from tests.e2e.boards import board_bin, refiled
from tests.e2e.fleet import fleet
from tests.real_parts import require

SECRET = "0123456789abcdef0123456789abcdef"
OLD = micropython("v1.23.0")
# A build that does not take the compiled modules in the file system.
OTHER = micropython("v1.27.0", "import sys\nsys.modules['pack'] = sys\n")
Files = dict[str, bytes]


def at_once(files: Files) -> None:
    """Take out the pause for a developer."""
    files["main.py"], times = re.subn(rb"^PAUSE_S = \d+$", b"PAUSE_S = 0", files["main.py"], flags=re.M)
    assert times == 1


def module_of(files: Files, name: str) -> tuple[int, int]:
    found = files["agent.pack"]
    at = found.index(b"\0dfu/" + name.encode() + b".mpy\0") + len(name) + 10
    return int.from_bytes(found[at : at + 4], "little"), int.from_bytes(found[at + 4 : at + 8], "little")


def damaged(at: Callable[[Files], int], size: int = 4) -> Callable[[Files], object]:
    def change(files: Files) -> None:
        content = bytearray(files["agent.pack"])
        content[at(files) : at(files) + size] = bytes(size)
        files["agent.pack"] = bytes(content)

    return change


DAMAGES: dict[str, Callable[[Files], object]] = {
    "gone": lambda files: files.pop("agent.pack"),
    "empty": lambda files: files.update({"agent.pack": b""}),
    "cut off": lambda files: files.update({"agent.pack": files["agent.pack"][:9000]}),
    "no pack": damaged(lambda files: 0),
    "index": damaged(lambda files: 6, 200),
    "agent": damaged(lambda files: module_of(files, "agent")[0]),
    "what keeps a crash": damaged(lambda files: module_of(files, "crash")[0]),
    "reader": lambda files: files.update({"pack.mpy": b"M\x05\0\x1f"}),
    "start": lambda files: files.pop("dfuboard.mpy"),
}


def content_of(folder: Path, change: Callable[[Files], object]) -> bytes:
    """Return a board.bin whose agent is damaged, with an older image in the other slot that was confirmed once."""
    found = board_bin(folder, "http://127.0.0.1:9", application(folder / "app"), secret=SECRET)
    content = bytearray(refiled(refiled(found, at_once), change).ljust(4 << 20, b"\xff"))
    slot = find(LAYOUTS["4MB"], "ota_1")
    trailer = encode_trailer(envelope(OLD))
    content[slot.offset : slot.offset + len(OLD)] = OLD
    content[slot.end - 4096 : slot.end - 4096 + len(trailer)] = trailer
    content[STATE_AT : STATE_AT + 32] = state(slot=0, previous=1)
    return bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_start_without_an_agent_is_a_crash_of_confirmed_firmware_too(tmp_path: Path, damage: str) -> None:
    require("micropython")
    require("riscv-gcc")
    board = Board(tmp_path / "lamp", flash=content_of(tmp_path, DAMAGES[damage]))
    with trio.fail_after(120):
        for _ in range(4):
            assert await board.run_once()
    assert [boot.slot for boot in board.boots] == [0, 0, 0, 1], board.console
    assert any("crashed, time 2" in line for line in board.console)
    if damage not in ("start", "what keeps a crash"):
        assert "board: the agent does not load" in board.console and "Traceback (most recent call last):" in board.console
    with trio.fail_after(120):
        # There is nothing left to go back to: it goes on like this, and nothing wears.
        assert await board.run_once()
        for _ in range(3):
            written = board.flash.operations
            assert await board.run_once()
    assert {boot.slot for boot in board.boots[3:]} == {1}
    if damage != "start":  # the agent keeps each traceback
        assert board.flash.operations == written


async def test_a_build_that_does_not_take_the_agent_is_left_after_three_starts(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        secret = await f.add_device("lamp1")
        content = refiled(board_bin(tmp_path, f.daemon.urls["http"], application(tmp_path / "app"), secret=secret), at_once)
        lamp = Board(f.directory / "lamp1", flash=content)
        f.boards.append(lamp)
        await f.publish(OTHER, "v1.27.0")
        await f.want("lamp1", "v1.27.0")
        f.nursery.start_soon(lamp.run)
        status = await f.wait("lamp1", "rolled-back")
        result = status["deployment"]["result"]
        assert (result["reason"], result["crashes"]) == ("crashed", 3), result
        assert [boot.slot for boot in lamp.boots] == [0, 1, 1, 1, 0]
