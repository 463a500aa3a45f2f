"""What dfuctl prints. Every text that a user, a device or a server chose goes through here and is shown visibly (dfud.model.text);
no library reads it as markup."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from dfud.cli.client import CliError
from dfud.model.text import visible, visible_json, visible_lines

GAP = "  "


def say(text: str, *, err: bool = False) -> None:
    """Print one line."""
    click.echo(visible(text), err=err)


def say_lines(text: str, head: str = "") -> None:
    """Print a text that may have several lines, such as a traceback, each behind `head`."""
    for line in visible_lines(text):
        click.echo(head + line)


def show_json(value: Any, *, indent: int | None = 2) -> None:
    click.echo(visible_json(value, indent))


class Table:
    """Rows under a heading. On a terminal it fits the width, and long cells go on below; elsewhere nothing is cut or folded."""

    def __init__(self, *columns: str, right: bool = False) -> None:
        """right: all columns but the first are numbers."""
        self.columns = columns
        self.rows: list[tuple[str, ...]] = []
        self._right = right

    def add_row(self, *cells: object) -> None:
        self.rows.append(tuple(visible(str(cell)) for cell in cells))

    def plain(self) -> list[str]:
        """Return the lines, as wide as they need to be."""
        lines = [self.columns, *self.rows]
        widths = [max(cell_len(line[i]) for line in lines) for i in range(len(self.columns))]
        return [GAP.join(self._padded(i, line[i], widths[i]) for i in range(len(line))).rstrip() for line in lines]

    def _padded(self, column: int, cell: str, width: int) -> str:
        gap = " " * (width - cell_len(cell))
        return gap + cell if self._right and column else cell + gap

    def rich(self) -> RichTable:
        out = RichTable(box=None, pad_edge=False, header_style="bold")
        for number, name in enumerate(self.columns):
            out.add_column(Text(name), justify="right" if self._right and number else "left", overflow="fold")
        for row in self.rows:
            out.add_row(*(Text(cell) for cell in row))
        return out


def print_table(table: Table) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(table.rich())
        return
    for line in table.plain():
        click.echo(line)


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost. Raises CliError if there is nobody to ask, click.Abort if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CliError(f"{question} There is no terminal to ask at: give --yes to mean it")
    click.confirm(visible(question), err=True, abort=True)


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")

TRANSFER: tuple[Callable[[], ProgressColumn], ...] = (DownloadColumn, TransferSpeedColumn, TimeRemainingColumn)
WORK: tuple[Callable[[], ProgressColumn], ...] = (TaskProgressColumn, TimeElapsedColumn)


@contextmanager
def progress_bar(
    what: str, columns: tuple[Callable[[], ProgressColumn], ...] = WORK, *, total: int | None = None
) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on standard error while it is a terminal; yields progress(done, total)."""
    console = Console(stderr=True)
    made = (TextColumn("{task.description}", markup=False), BarColumn(), *(column() for column in columns))
    with Progress(*made, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(visible(what), total=total)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield progress
