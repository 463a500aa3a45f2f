"""firmware: publish, list, show, download, delete."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dfud.cli.client import CliError, Session, checked
from dfud.cli.resources import pass_session
from dfud.cli.show import TRANSFER, Table, confirm, print_table, progress_bar, yes_option
from dfud.model.names import check_name

BLOCK_BYTES = 1 << 16


@click.group()
def firmware() -> None:
    """Firmware of an app."""


@firmware.command("publish")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--version", "version", default="", help="Version; from the manifest if there is one.")
@click.option("--hardware", default="", help="What it is made for, such as esp32c3 or esp32c3-board1.")
@click.option(
    "--sequence", type=click.IntRange(0, (1 << 32) - 1), help="Orders the versions; one more than the highest."
)
@click.option(
    "--manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What `dfuctl sign` made."
)
@click.option("--raw", is_flag=True, help="Any file, not an ESP image.")
@click.option("--notes", default="", help="A word about it.")
@pass_session
def firmware_publish(
    session: Session,
    image: Path,
    version: str,
    hardware: str,
    sequence: int | None,
    manifest: Path | None,
    raw: bool,
    notes: str,
) -> None:
    """Publish the file IMAGE as a firmware of the app. Nothing is installed by this; see `dfuctl update`."""
    if manifest is None and not (version and hardware):
        raise CliError("give --version and --hardware, or a --manifest that says them")
    if version:
        check_name("version", version)
    if hardware:
        check_name("hardware", hardware)
    size = image.stat().st_size
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    params: dict[str, Any] = {"version": version, "hardware": hardware, "sha256": digest, "notes": notes}
    if sequence is not None:
        params["sequence"] = sequence
    if raw:
        params["kind"] = "raw"
    headers = {"content-length": str(size)}
    if manifest is not None:
        headers["dfud-manifest"] = base64.b64encode(manifest.read_bytes()).decode()
    with (
        progress_bar(image.name, TRANSFER, total=size) as progress,
        image.open("rb") as file,
        session.client(timeout_s=None) as client,
    ):

        def blocks() -> Iterator[bytes]:
            while block := file.read(BLOCK_BYTES):
                yield block
                progress(file.tell(), size)

        answer = client.post(session.api("firmware"), params=params, headers=headers, content=blocks())
        found = checked(answer)
    if session.json:
        session.show(found)
        return
    session.say(
        f"Published {found['version']} for {found['hardware']}, {found['size']} bytes, sequence {found['sequence']}."
    )


@firmware.command("list")
@pass_session
def firmware_list(session: Session) -> None:
    """List the firmware of the app, newest first."""
    found = session.request("GET", session.api("firmware"))
    if session.json:
        session.show(found)
        return
    rows = Table("VERSION", "HARDWARE", "SEQUENCE", "BYTES", "SIGNED", "CREATED", "BY")
    for one in found:
        signed = "yes" if one["signed"] else "no"
        numbers = (str(one["sequence"]), str(one["size"]))
        rows.add_row(one["version"], one["hardware"], *numbers, signed, one["created"], one["uploadedBy"])
    print_table(rows)


@firmware.command("show")
@click.argument("version")
@pass_session
def firmware_show(session: Session, version: str) -> None:
    """Show one firmware as JSON."""
    session.show(session.request("GET", session.api("firmware", version)))


@firmware.command("download")
@click.argument("version")
@click.option("-O", "--to", type=click.Path(path_type=Path), required=True, help="File to write.")
@pass_session
def firmware_download(session: Session, version: str, to: Path) -> None:
    """Download the image of a firmware, and check it."""
    path = session.api("firmware", version)
    record = session.request("GET", path)
    digest = hashlib.sha256()
    with (
        progress_bar(version, TRANSFER, total=record["size"]) as progress,
        session.client(timeout_s=None) as client,
        client.stream("GET", f"{path}/image") as answer,
    ):
        if not answer.is_success:
            answer.read()
            checked(answer)
        with to.open("wb") as file:
            for block in answer.iter_bytes():
                file.write(block)
                digest.update(block)
                progress(file.tell(), record["size"])
    if digest.hexdigest() != record["sha256"]:
        to.unlink()
        raise CliError(f"the image of {version} did not arrive whole; nothing was kept")
    session.done(f"Wrote {to}.", version=version, file=str(to), sha256=record["sha256"])


@firmware.command("delete")
@click.argument("version")
@yes_option
@pass_session
def firmware_delete(session: Session, version: str, yes: bool) -> None:
    """Delete a firmware that no device should run."""
    confirm(f"Delete firmware {version} of app {session.app}?", yes)
    path = session.api("firmware", version)
    found = session.request("GET", path)
    if found["version"] != version:  # a proxy that folds paths would lead the request to something else
        raise CliError(f"{path} leads to {found['version']!r}, expected {version!r}; nothing was deleted")
    session.request("DELETE", path)
    session.done(f"Firmware {version} deleted.", version=version)
