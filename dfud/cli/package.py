"""package: make, apply and look into packages, on files. Asks dfud nothing and needs no login."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console

from dfud.cli import picture
from dfud.cli.client import CliError, Session
from dfud.cli.images import app_at as app_at_option
from dfud.cli.images import base_app_at as base_app_at_option
from dfud.cli.images import unmerged_bytes
from dfud.cli.resources import pass_session
from dfud.cli.show import Table, print_table, progress_bar, say
from dfud.errors import PeerError
from dfud.package.apply import apply_package
from dfud.package.build import build_package
from dfud.package.file import PackageFile, read_package_untrusted, write_package
from dfud.package.report import ORIGINS, Report, report_untrusted
from dfud.package.table import ENTRIES_MAX
from dfud.wire.messages import PAYLOAD_MAX_BYTES, PAYLOAD_MIN_BYTES, Kind

NAMES = {Kind.FULL: "full", Kind.DELTA: "delta", Kind.MAPPED: "mapped"}
PAYLOAD_BYTES = 6144  # what the agent holds if its configuration does not say otherwise
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TO = click.option(
    "-o",
    "-O",
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write; in its place only whole.",
)


@click.group()
def package() -> None:
    """Packages as files: make them, apply them, see where their bytes go. Needs no dfud."""


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: what stood there before stays until the new one is on the disk."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CliError(f"{path} cannot be written: {error.strerror}") from None
        raise


def _chunks(count: int) -> str:
    return "1 chunk" if count == 1 else f"{count} chunks"


def _read(path: Path) -> PackageFile:
    try:
        return read_package_untrusted(path.read_bytes())
    except PeerError as error:
        raise CliError(f"{path}: {error}") from None


def _applied(
    path: Path, found: PackageFile, base_path: Path | None, progress: Callable[[int, int], None]
) -> tuple[bytes, bytes | None]:
    """Return (image, base). Raises CliError that says which of the two files is to blame."""
    base = base_path.read_bytes() if base_path is not None else None
    if found.base_sha256 is not None and base is None:
        raise CliError(f"{path} starts from the image with SHA-256 {found.base_sha256.hex()}: give it with --base")
    try:
        return apply_package(found, base, progress), base
    except PeerError as error:
        wanted = found.base_sha256.hex() if found.base_sha256 else ""
        hint = f"; it needs the one with SHA-256 {wanted}" if "another image than" in str(error) else ""
        raise CliError(f"{path}: {error}{hint}") from None


@package.command("make")
@click.argument("new", type=_FILE)
@click.option("--base", type=_FILE, help="Image that the device runs; without it the package starts from nothing.")
@app_at_option
@base_app_at_option
@click.option("--raw", is_flag=True, help="Take the files as they are, also a merged one.")
@_TO
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(list(NAMES.values())),
    help="Kind to choose from, may be repeated; all of them if not given.",
)
@click.option(
    "--payload",
    default=PAYLOAD_BYTES,
    show_default=True,
    type=click.IntRange(PAYLOAD_MIN_BYTES, PAYLOAD_MAX_BYTES),
    help="Largest chunk that the device holds, in bytes.",
)
@click.option(
    "--workers", default=lambda: os.cpu_count() or 1, type=click.IntRange(1), help="Threads; one a core if not given."
)
@click.option(
    "--entries",
    default=ENTRIES_MAX,
    show_default=True,
    type=click.IntRange(0, ENTRIES_MAX),
    help="Most entries that the address table of a mapped delta may have.",
)
@pass_session
def package_make(
    session: Session,
    new: Path,
    base: Path | None,
    app_at: int | None,
    base_app_at: int | None,
    raw: bool,
    to: Path,
    kinds: tuple[str, ...],
    payload: int,
    workers: int,
    entries: int,
) -> None:
    """Make the smallest package of the image NEW, as dfud would for a device that runs BASE."""
    image = unmerged_bytes(new, app_at, raw=raw)
    if not image:
        raise CliError(f"{new} is empty: there is nothing to package")
    mask = sum(1 << kind for kind, name in NAMES.items() if not kinds or name in kinds)
    if base is None and not mask >> Kind.FULL & 1:
        raise CliError("a package of these kinds starts from an image: give it with --base")
    if base is None and base_app_at is not None:
        raise CliError("--base-app-at says where an image starts in the base: give the file with --base")
    running = unmerged_bytes(base, base_app_at, raw=raw) if base else None
    try:
        with progress_bar(f"Making {to.name}") as progress:
            made = build_package(
                image,
                running,
                kinds=mask,
                payload_bytes=payload,
                workers=workers,
                entries=entries,
                progress=progress,
            )
    except PeerError as error:
        raise CliError(f"{new}: {error}") from None
    _write(to, write_package(made))
    share = 100 * made.total_bytes / len(image)
    what = f"{NAMES[Kind(made.kind)]}, {_chunks(len(made.chunks))}, {made.total_bytes} bytes"
    told = f"Wrote {to}: {what}, {share:.2f} % of the image."
    sizes = {"bytes": made.total_bytes, "chunks": len(made.chunks), "size": made.size, "sha256": made.sha256.hex()}
    session.done(told, package=str(to), id=made.id.hex(), kind=NAMES[Kind(made.kind)], **sizes)


@package.command("apply")
@click.argument("file", metavar="PACKAGE", type=_FILE)
@click.option("--base", type=_FILE, help="Image that the package starts from.")
@_TO
@pass_session
def package_apply(session: Session, file: Path, base: Path | None, to: Path) -> None:
    """Make the image that PACKAGE holds, as a device does, and check it."""
    found = _read(file)
    with progress_bar(f"Applying {file.name}") as progress:
        image, _ = _applied(file, found, base, progress)
    _write(to, image)
    told = f"Wrote {to}: {len(image)} bytes, SHA-256 {found.sha256.hex()}."
    session.done(told, image=str(to), size=len(image), sha256=found.sha256.hex())


@package.command("inspect")
@click.argument("file", metavar="PACKAGE", type=_FILE)
@click.option("--base", type=_FILE, help="Image that the package starts from: shows what was mapped, and the segments.")
@click.option(
    "--picture",
    "to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the strip into this .png or .svg file.",
)
@click.option("--chunks", is_flag=True, help="List every chunk.")
@pass_session
def package_inspect(session: Session, file: Path, base: Path | None, to: Path | None, chunks: bool) -> None:
    """Show what PACKAGE consists of, where its bytes go, and what each byte of the image is made from."""
    if to is not None and to.suffix not in (".png", ".svg"):
        raise CliError(f"picture {to}: expected a name that ends in .png or .svg")
    found = _read(file)
    image = origin = None
    with progress_bar(f"Reading {file.name}") as progress:
        if base is not None or found.base_sha256 is None:
            image, origin = _applied(file, found, base, progress)
        try:
            report, strip = report_untrusted(found, image=image, base=origin, progress=progress)
        except PeerError as error:
            raise CliError(f"{file}: {error}") from None
    if to is not None:
        title = f"{file.name}: {NAMES[Kind(report.kind)]}, {report.bytes} bytes for {report.size}"
        _write(to, picture.png(strip) if to.suffix == ".png" else picture.svg(strip, report, title).encode())
    if session.json:
        session.show(msgspec.to_builtins(report) | ({"picture": str(to)} if to else {}))
        return
    _tell(report)
    _tell_parts(report)
    picture.show(strip, Console(highlight=False))
    if not report.mapped_known:
        say("Give --base to tell mapped bytes from copied ones, and to see the segments.")
    if chunks:
        _tell_chunks(report)


def _tell(report: Report) -> None:
    base = f"from the image {report.base_sha256[:16]}…" if report.base_sha256 else "from nothing"
    say(f"Package {report.id}: kind {report.kind} ({NAMES[Kind(report.kind)]}), {base}")
    share = 100 * report.bytes / report.size
    say(
        f"Image {report.sha256[:16]}…, {report.size} bytes; {_chunks(len(report.chunks))}, {report.bytes} bytes, {share:.2f} %"
    )
    payloads = [chunk.payload for chunk in report.chunks]
    say(
        f"Payloads of {min(payloads)} to {max(payloads)} bytes; {report.sequences} sequences, "
        f"{report.literals} literals, {report.matched} bytes matched"
    )


def _tell_parts(report: Report) -> None:
    rows = Table("PART", "BYTES", *(name.upper() for name in ORIGINS), "COSTS", "OF PACKAGE", right=True)

    def add(name: str, size: int | str, origins: list[int] | list[str], cost: float) -> None:
        numbers = [str(one) for one in (size, *origins)]
        rows.add_row(name, *numbers, f"{cost:.0f}", f"{100 * cost / report.bytes:.1f} %")

    for part in report.parts:
        add(part.name, part.size, [part.origins[name] for name in ORIGINS], part.cost_bytes)
    nothing = [""] * len(ORIGINS)
    if report.table_bytes:
        add("address table", "", nothing, report.table_bytes)
    add("heads, tables", "", nothing, report.overhead_bytes)
    print_table(rows)


def _tell_chunks(report: Report) -> None:
    rows = Table("CHUNK", "PAGE", "PAGES", "PAYLOAD", "SEQUENCES", "LITERALS", "MATCHED")
    for one in report.chunks:
        numbers = (one.number, one.page, one.pages, one.payload, one.sequences, one.literals, one.matched)
        rows.add_row(*(str(number) for number in numbers))
    print_table(rows)
