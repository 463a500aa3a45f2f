"""`python -m devicefw.sim.run board.bin`: a simulated board that is flashed with the file of `dfuctl board image`."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from bootloader.sim.boot import ELF
from devicefw.sim.board import Board, micropython
from devicefw.sim.cable import Cable
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
        directory.mkdir(parents=True, exist_ok=True)
        cable = Cable(directory / "tty")
        board = Board(directory, flash=file.read_bytes(), on_line=lambda line: click.echo(visible(line)), uart=cable.board)
    except (PeerError, FileNotFoundError) as error:
        raise click.ClickException(visible(str(error))) from None
    click.echo(f"UART: {cable.port}; of a board made with --serial: dfuctl bridge --port {cable.port} --server URL")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cable.run)
            await board.run()
            nursery.cancel_scope.cancel()

    try:
        trio.run(until_signalled, run)
    finally:
        cable.unplug()


if __name__ == "__main__":
    main()
