"""A board's console keeps its newest lines, and what the application said."""

from __future__ import annotations

from pathlib import Path

from devicefw.sim.board import CONSOLE_MAX_LINES, Board
from tests.real_parts import require


def test_a_console_that_is_full_goes_on_with_the_newest_lines(tmp_path: Path) -> None:
    require("riscv-gcc")
    board = Board(tmp_path, {})
    board._say("app: running 1.0")
    for number in range(3 * CONSOLE_MAX_LINES):
        board._say(f"dfu: no answer {number}")
    board._say("app: confirmed 1.1")
    assert len(board.console) <= CONSOLE_MAX_LINES
    assert (board.console[0], board.console[-1]) == ("app: running 1.0", "app: confirmed 1.1")
    assert board.console[-2] == f"dfu: no answer {3 * CONSOLE_MAX_LINES - 1}"
