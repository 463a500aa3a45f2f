"""Images as files on the publisher's machine: read whole, or cut out of a merged file."""

from __future__ import annotations

from pathlib import Path

import click

from dfud.cli.client import CliError
from dfud.errors import PeerError
from dfud.model.espimage import merged_untrusted, read_esp_image_untrusted


def _offset(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        offset = int(value, 0)
    except ValueError:
        offset = -1
    if offset < 0:
        raise click.BadParameter(f"{value!r}: expected an offset in the file, such as 0x10000")
    return offset


app_at = click.option(
    "--app-at",
    metavar="OFFSET",
    callback=_offset,
    help="The image is a merged file of a whole flash: take the application that starts at this offset, such as 0x10000.",
)
base_app_at = click.option("--base-app-at", metavar="OFFSET", callback=_offset, help="The same, of the base.")


def image_bytes(path: Path, app_at: int | None, *, raw: bool = False) -> bytes:
    """Return a file's bytes, or those of the image that starts at `app_at` in it. Raises CliError that names the file."""
    if app_at is None:
        return path.read_bytes()
    if raw:
        raise CliError("--app-at takes an ESP image out of a file, --raw takes the file as it is: give one of them")
    size = path.stat().st_size
    if app_at >= size:
        raise CliError(f"{path}: nothing to cut out at {app_at:#x}: the file ends at {size:#x}")
    with path.open("rb") as file:
        try:
            image = read_esp_image_untrusted(file, size, app_at)
        except PeerError as error:
            raise CliError(f"{path}: nothing to cut out at {app_at:#x}: {error}") from None
        file.seek(app_at)
        return file.read(image.size)


def unmerged_bytes(path: Path, app_at: int | None, *, raw: bool) -> bytes:
    """As image_bytes, of any file but a merged one, unless raw: no device holds that in a slot."""
    if app_at is None and not raw:
        with path.open("rb") as file:
            told = merged_untrusted(file, path.stat().st_size)
        if told:
            raise CliError(f"{path}: {told}; --raw packages the file as it is")
    return image_bytes(path, app_at, raw=raw)
