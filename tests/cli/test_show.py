"""What dfuctl prints, whatever the texts in it hold."""

from __future__ import annotations

import io
import os
import pty
from contextlib import suppress

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dfud.cli import show
from dfud.cli.show import Table, print_table
from dfud.model.text import hidden

NASTY = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x07\x9b\r\n\u202e[]/:")), max_size=30)
MARKUP = ("[/bold]", "[red]", "[link=http://x]", ":boom:", "[/]", "\\[")


def terminal(table: Table, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, highlight=False, markup=False, emoji=False, color_system=None)
    console.print(table.rich())
    return out.getvalue()


@settings(deadline=None)
@given(st.lists(st.tuples(NASTY, NASTY), max_size=4))
def test_no_text_breaks_a_table_or_reaches_the_terminal_raw(rows: list[tuple[str, str]]) -> None:
    table = Table("NAME", "STATE")
    for row in rows:
        table.add_row(*row)
    lines = table.plain()
    assert len(lines) == len(rows) + 1
    assert not [c for line in lines for c in line if hidden(c)]
    assert not [c for c in terminal(table) if hidden(c) and c != "\n"]


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_text(text: str) -> None:
    table = Table("VERSION")
    table.add_row(text)
    assert text in terminal(table)
    assert table.plain()[1] == text


def test_away_from_a_terminal_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("NAME", "N", right=True)
    table.add_row("x" * 300, 7)
    table.add_row("日本", 1234)
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME" + " " * 296 + "     N", "x" * 300 + "     7", "日本" + " " * 296 + "  1234"]


def test_on_a_terminal_a_long_cell_goes_on_below() -> None:
    table = Table("NAME", "STATE")
    table.add_row("x" * 100, "in sync")
    told = terminal(table, 80)
    assert told.count("x") == 100
    assert all(len(line) <= 80 for line in told.splitlines())


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_at_a_terminal_a_deletion_is_asked_for(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer + "\n"))
    if answer == "y":
        show.confirm("Delete device lamp1\x1b?", False)
    else:
        with pytest.raises(click.Abort):
            show.confirm("Delete device lamp1\x1b?", False)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(r"Delete device lamp1\x1b? [y/N]: ")


def test_a_bar_is_drawn_on_a_terminal_s_standard_error_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with show.progress_bar("lamp.bin", show.TRANSFER, total=2) as progress:
        progress(2, 2)
    assert capsys.readouterr() == ("", "")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setenv("TERM", "xterm")
        with show.progress_bar("[/bold]\x1b]0;x\x07", show.TRANSFER, total=2) as progress:
            progress(2, 2)
    drawn = b""
    with suppress(OSError):  # the terminal's other end is closed: that was all
        while data := os.read(ours, 65536):
            drawn += data
    os.close(ours)
    assert b"[/bold]\\x1b]0;x\\x07" in drawn
    assert capsys.readouterr().out == ""
