"""`dfuctl board flash`: put a board.bin onto a board, over its serial line."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from dfud.board.flashing import ROM_BAUD, Chip, attached, judged_untrusted
from dfud.cli.client import CliError, Session
from dfud.cli.resources import pass_session
from dfud.cli.show import TRANSFER, confirm, progress_bar, say, yes_option
from dfud.errors import PeerError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("flash")
@click.argument("file", type=_FILE)
@click.option("--port", required=True, help="Serial line of the board, such as /dev/ttyACM0.")
@click.option("--identity", type=_FILE, help="NVS image of `board factory`, in place of the identity in FILE.")
@click.option(
    "--erase-all/--no-erase-all", default=True, show_default=True, help="Erase the flash first, as a new board's is."
)
@click.option(
    "--baud", type=click.IntRange(9600, 4000000), default=ROM_BAUD, show_default=True, help="Rate of the line."
)
@click.option("--no-stub", is_flag=True, help="Talk to the chip's ROM alone: slower, for chips that run no flasher.")
@yes_option
@pass_session
def board_flash(
    session: Session, file: Path, port: str, identity: Path | None, erase_all: bool, baud: int, no_stub: bool, yes: bool
) -> None:
    """Flash FILE, which `board image` made, compare it with the flash, and start it.

    Asks first if the board has an identity already: its secret is lost then.

    \b
    dfuctl board flash --port /dev/ttyACM0 board.bin
    dfuctl board flash --port /dev/ttyACM0 board.bin --identity line/lamp-001.nvs.bin
    """
    try:
        content, needed = judged_untrusted(file.read_bytes(), identity.read_bytes() if identity else None)
    except PeerError as error:
        raise CliError(f"{file}: {error}") from None
    chip: Chip | None = None
    try:
        with attached(port, baud, stub=not no_stub) as chip:
            started = _flash(chip, file, content, needed, erase_all=erase_all, yes=yes)
    except (KeyboardInterrupt, click.Abort) as stopped:
        left = (
            chip.left()
            if chip
            else f"{port}: stopped; nothing was written, the flash is as it was. Press RESET if it does not start"
        )
        if session.json:
            session.show({"error": left})
        say(left, err=True)
        raise click.exceptions.Exit(1 if isinstance(stopped, click.Abort) else 128 + signal.SIGINT) from None
    told = "flashed; reset, it starts" if started else "flashed; press RESET, then it starts"
    session.done(f"{port}: {told}. The flash is as {file}.", port=port, bytes=len(content), reset=started)


def _flash(chip: Chip, file: Path, content: bytes, needed: int, *, erase_all: bool, yes: bool) -> bool:
    """Judge the chip, write, compare; return whether it was reset. Raises CliError, PeerError, click.Abort."""
    there = chip.flash_bytes()
    if there < needed:
        raise CliError(
            f"{chip.port}: the flash has {there} bytes, {file} is laid out for {needed}: make it with `dfuctl board image --flash` "
            "of the board's size; 4MB is the smallest"
        )
    if owner := chip.owner():
        confirm(f"The board at {chip.port} has an identity ({owner}). Overwrite it?", yes)
    with progress_bar("Flash", TRANSFER) as progress:
        chip.write(content, needed, erase_all=erase_all, progress=progress)
    return chip.reset()
