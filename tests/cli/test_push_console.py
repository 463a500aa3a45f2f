"""What `dfuctl push` refuses, and the console that it shows with --port, over a pseudo-terminal."""

from __future__ import annotations

import os
import queue
import sys
import tty
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dfud.cli.client import CliError
from dfud.cli.main import main
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


BANK = {"app": {"actual": {"capacity": 600}}}
KNOWN = {"actual": {"hardware": "esp32c3"}}


@pytest.mark.parametrize(
    ("device", "text", "said"),
    [
        ({}, "", "lamp1 has not said yet what it is: switch it on"),
        (KNOWN, "", "lamp1 has no app banks: its application comes with what was flashed"),
        (KNOWN | BANK, "# no entry\n", "no `async def main()` in it"),
        (KNOWN | BANK, "async def main(:\n", "does not compile"),
        (KNOWN | BANK, "async def main():\n" + "    print(__name__)\n" * 200, "bytes, expected at most 600, the bank of lamp1"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: dict[str, Any], text: str, said: str
) -> None:
    (tmp_path / "main.py").write_text(text)
    push = sys.modules["dfud.cli.push"]
    monkeypatch.setattr(push, "firmware_of", lambda *_: device)
    monkeypatch.setattr(push, "_published", lambda *_: pytest.fail("published"))
    monkeypatch.setenv("DFUCTL_CONFIG", str(tmp_path / "config.toml"))
    found = CliRunner().invoke(main, ["--app", "lamps", "push", str(tmp_path), "lamp1"])
    assert found.exit_code == 1 and said in found.output, found.output
