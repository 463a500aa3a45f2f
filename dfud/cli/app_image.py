"""app-image: the user's program as the one file that is published as app firmware. Needs no dfud."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from dfud.board import appimage
from dfud.board.flashmap import SIZES
from dfud.board.software import march_of
from dfud.board.stock import CHIP
from dfud.cli.client import CliError, Session
from dfud.cli.resources import pass_session
from dfud.cli.show import Table, print_table
from dfud.errors import PeerError
from dfud.model.espimage import hardware_name
from dfud.model.names import check_name

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NO_CONFIRM = "warning: nothing in the application calls dfu.confirm(): each update of it will be left again"


@click.group("app-image")
def app_image() -> None:
    """App images: a folder of Python made into what devices mount from a bank. Needs no dfud."""


@app_image.command("build")
@click.argument("folder", type=_FOLDER)
@click.option(
    "--hardware", default=CHIP, show_default=True, help="Chip and board; only machine code in it depends on it."
)
@click.option(
    "--flash", type=click.Choice(list(SIZES)), default="4MB", show_default=True, help="Whose banks it has to fit."
)
@click.option("-o", "-O", "--to", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@pass_session
def app_image_build(session: Session, folder: Path, hardware: str, flash: str, to: Path) -> None:
    """Make the app image of FOLDER, whose main.py has `async def main()`.

    Python is compiled, everything else goes as it is. The same folder gives the same bytes.

    \b
    dfuctl app-image build ./app -o app.img
    """
    hardware = check_name("hardware", hardware_name(hardware))
    made = appimage.build(folder, flash, march_of(hardware))
    try:
        to.write_bytes(made.data)
    except OSError as error:
        raise CliError(f"{to} cannot be written: {error.strerror}") from None
    if not made.confirms:
        session.say(NO_CONFIRM, err=True)
    digest = hashlib.sha256(made.data).hexdigest()
    session.done(
        f"{to}: {len(made.data)} bytes, {len(made.files)} {'file' if len(made.files) == 1 else 'files'}, SHA-256 {digest[:16]}",
        file=str(to),
        bytes=len(made.data),
        files=len(made.files),
        sha256=digest,
    )


@app_image.command("inspect")
@click.argument("file", type=_FILE)
@pass_session
def app_image_inspect(session: Session, file: Path) -> None:
    """List the files in an app image."""
    data = file.read_bytes()
    try:
        files = appimage.files_untrusted(data)
    except PeerError as error:
        raise CliError(f"{file}: {error}") from None
    if session.json:
        session.show(
            {"file": str(file), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "files": files}
        )
        return
    table = Table("FILE", "BYTES")
    for name, size in sorted(files.items()):
        table.add_row(name, size)
    print_table(table)
