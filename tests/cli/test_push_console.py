"""The console that `dfuctl push --port` shows, over a pseudo-terminal."""

from __future__ import annotations

import os
import queue
import tty
from typing import Any

import pytest

from dfud.cli.client import CliError
from dfud.cli.push import _console

GIVE_UP_S = 60.0


class Said:
    def __init__(self) -> None:
        self.lines: queue.Queue[str] = queue.Queue()

    def say(self, text: str, **_: Any) -> None:
        self.lines.put(text)


def test_lines_are_shown_whole_and_odd_bytes_do_not_end_it() -> None:
    said = Said()
    master, slave = os.openpty()
    tty.setraw(slave)
    with _console(os.ttyname(slave), said):  # type: ignore[arg-type]  # it says lines, and nothing else is asked of it
        for piece in (b"dfud boot: ", b"boot slot 0\r\napp: \xff\x1b[31m", b"red\n", b"not ended"):
            os.write(master, piece)
        first, second = (said.lines.get(timeout=GIVE_UP_S) for _ in range(2))
    os.close(master)
    os.close(slave)
    assert first == "| dfud boot: boot slot 0"
    assert second.startswith("| app: ") and second.endswith("red") and said.lines.empty()


def test_a_port_that_is_not_there_is_named() -> None:
    said = "/dev/no-such-port: no such port. Is the board plugged in"
    with pytest.raises(CliError, match=said), _console("/dev/no-such-port", Said()):  # type: ignore[arg-type]
        pass
