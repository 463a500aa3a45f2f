"""`python -m devicefw.sim.run board.bin`: a simulated board that is flashed with the file of `dfuctl board image`."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from bootloader.sim.boot import ELF
from devicefw.sim.board import Board, micropython
from devicefw.sim.cli import build_bootloader
from devicefw.sim.processes import until_signalled
from dfud.errors import PeerError
from dfud.model.text import visible


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("board"),
    show_default=True,
    help="Where its flash and NVS are kept. A board that was here before goes on; FILE is not flashed again.",
)
def main(file: Path, directory: Path) -> None:
    """Run a simulated ESP32-C3 that was flashed with FILE, until Ctrl-C: bootloader, MicroPython, file system, agent, application.

    MicroPython is this machine's own, of whatever version FILE's is.
    """
    try:
        micropython()
        build_bootloader(ELF)
        board = Board(directory, flash=file.read_bytes(), on_line=lambda line: click.echo(visible(line)))
    except (PeerError, FileNotFoundError) as error:
        raise click.ClickException(visible(str(error))) from None
    trio.run(until_signalled, board.run)


if __name__ == "__main__":
    main()
