"""Images as files on the publisher's machine: read whole, or cut out of a merged file."""

from __future__ import annotations

from pathlib import Path

import click

from dfud.cli.client import CliError
from dfud.errors import PeerError
from dfud.model.espimage import merged_untrusted, read_esp_image_untrusted
from dfud.model.firmware import SEQUENCE_MAX


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


def _range(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    low, dots, high = value.partition("..")
    try:
        found = int(low), int(high) if high else SEQUENCE_MAX if dots else int(low)
    except ValueError:
        found = (1, 0)
    if not 0 <= found[0] <= found[1] <= SEQUENCE_MAX:
        raise click.BadParameter(f"{value!r}: expected LOW..HIGH, sequences of the other kind, such as 1..4 or 3..")
    return found


kind_option = click.option(
    "--kind",
    type=click.Choice(["system", "app"]),
    help="What it is: system firmware for a boot slot (without it), or app firmware for an app bank.",
)
with_option = click.option(
    "--with",
    "beside",
    metavar="LOW..HIGH",
    callback=_range,
    help="Sequences of the other kind that it runs with, such as 1..4 or 3.. (and above); any, without it.",
)


def kind_of(kind: str | None, *, raw: bool) -> tuple[bool, str]:
    """Return whether a file is taken as it is, and the kind of its image. Raises CliError where two options say it differently."""
    if kind == "app":
        if raw:
            raise CliError("--raw is of system firmware, and an app image is taken as it is anyway: leave --raw out")
        return True, "app"
    return raw, "raw" if raw else "esp-image"


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
