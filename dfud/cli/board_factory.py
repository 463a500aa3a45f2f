"""`dfuctl board factory`: the identity of each board of a batch, as an NVS image, and the list for the line."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import click

from dfud.board.flashmap import LAYOUTS, find
from dfud.board.image import identity_image
from dfud.board.stock import CHIP
from dfud.cli.board_options import first_line, made, write_file
from dfud.cli.client import CliError, Session
from dfud.cli.resources import pass_session
from dfud.cli.show import progress_bar
from dfud.model.names import check_name

COUNT_MAX = 10000
LIST = "boards.csv"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("factory")
@click.option("--count", type=click.IntRange(1, COUNT_MAX), help="How many boards; with --claim-file or --create.")
@click.option("--prefix", default="board", show_default=True, help="Beginning of their names; a number follows.")
@click.option("--first", default=1, show_default=True, type=click.IntRange(0), help="Number of the first one.")
@click.option("--claim-file", type=_FILE, help="File whose first line is a claim code with as many uses.")
@click.option("--create", is_flag=True, help="Create the devices at the registry, each with a secret of its own.")
@click.option("--secrets", type=_FILE, help="CSV of name,secret, as `dfuctl device import --secrets` writes it.")
@click.option(
    "-O", "--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to, mode 0700."
)
@pass_session
def board_factory(
    session: Session,
    count: int | None,
    prefix: str,
    first: int,
    claim_file: Path | None,
    create: bool,
    secrets: Path | None,
    to: Path,
) -> None:
    """Make the identity of each board as an NVS image, to be flashed over that of the one board.bin of the batch.

    boards.csv has for each board its name, the image and the address it is flashed to.

    \b
    dfuctl board factory --count 100 --prefix lamp- --claim-file claim -O line
    dfuctl board flash --port PORT board.bin --identity line/lamp-001.nvs.bin
    """
    if sum((claim_file is not None, create, secrets is not None)) != 1:
        raise CliError("whose secrets? give one of --claim-file, --create and --secrets")
    if (secrets is None) == (count is None):
        raise CliError("--count says how many boards; with --secrets the file does")
    place = find(LAYOUTS["4MB"], "nvs").offset  # the same in every size
    rows = _from_file(secrets) if secrets is not None else [(name, "") for name in _names(prefix, first, count or 1)]
    code = first_line(claim_file) if claim_file else ""
    try:
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"{to} cannot be made: {error.strerror}") from None
    there = [name for name, _ in rows if (to / _file(name)).exists()]
    if there:
        raise CliError(f"{to / _file(there[0])} is there already: give another folder, or another --first")
    listed = to / LIST
    if listed.exists():
        raise CliError(f"{listed} is there already: give another folder")
    with progress_bar("Identities", total=len(rows)) as progress:
        for number, (name, secret) in enumerate(rows, 1):
            if create:
                # Its secret is in its file before the next one is made: a run that is cut loses one device's at most.
                secret = _create(session, name)
            write_file(to / _file(name), identity_image(made(name, secret, code), "4MB"))
            progress(number, None)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("name", "file", "address", "chip"))
    writer.writerows((name, _file(name), f"{place:#x}", CHIP) for name, _ in rows)
    write_file(listed, out.getvalue().encode())
    session.done(
        f"{len(rows)} identities and {LIST}: {to}. Each file holds a secret.", boards=len(rows), folder=str(to)
    )


def _file(name: str) -> str:
    return f"{name.replace(os.sep, '_')}.nvs.bin"


def _names(prefix: str, first: int, count: int) -> list[str]:
    width = max(3, len(str(first + count - 1)))
    return [check_name("device", f"{prefix}{number:0{width}}") for number in range(first, first + count)]


def _create(session: Session, name: str) -> str:
    body = {"metadata": {"name": name, "application": session.app}}
    session.request("POST", session.registry("devices"), json=body)
    return str(session.request("POST", session.api("secret", name))["secret"])


def _from_file(path: Path) -> list[tuple[str, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text("utf-8")), strict=True) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {error}") from None
    found = []
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not all(row):
            raise CliError(f"{path}: line {number}: expected name,secret")
        if row != ["name", "secret"]:
            found.append((check_name("device", row[0]), row[1]))
    if not found:
        raise CliError(f"{path}: no devices in it, expected lines of name,secret")
    names = [name for name, _ in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise CliError(f"{path}: {sorted(twice)[0]} is there twice, expected once")
    return found
