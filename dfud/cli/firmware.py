"""firmware: publish, list, show, download, delete."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dfud.cli.client import CliError, Session, checked
from dfud.cli.images import app_at as app_at_option
from dfud.cli.images import image_bytes, kind_of, kind_option, with_option
from dfud.cli.resources import pass_session
from dfud.cli.show import TRANSFER, Table, confirm, print_table, progress_bar, yes_option
from dfud.model.firmware import SEQUENCE_MAX, place_of
from dfud.model.names import check_name

BLOCK_BYTES = 1 << 16
attribute_option = click.option(
    "--attribute", multiple=True, metavar="KEY=VALUE", help="What a device must report for the image; may be repeated."
)


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
@kind_option
@with_option
@app_at_option
@click.option("--notes", default="", help="A word about it.")
@attribute_option
@click.option("--requires-from", metavar="VERSION", help="Only this version and newer ones may go to it directly.")
@click.option("--requires-to", metavar="VERSION", help="Only this version and older ones may go to it directly.")
@click.option("--stop", is_flag=True, help="No device may skip it on the way to a newer version.")
@pass_session
def firmware_publish(
    session: Session,
    image: Path,
    version: str,
    hardware: str,
    sequence: int | None,
    manifest: Path | None,
    raw: bool,
    kind: str | None,
    beside: tuple[int, int] | None,
    app_at: int | None,
    notes: str,
    attribute: tuple[str, ...],
    requires_from: str | None,
    requires_to: str | None,
    stop: bool,
) -> None:
    """Publish the file IMAGE as a firmware of the app. Nothing is installed by this; see `dfuctl update`.

    --kind app: the image is app firmware, for an app bank (docs/app.md); --with says which system firmware it runs with.

    A version may have an image for each kind of board: publish them one after the other, each with its --hardware and, where boards
    of one hardware differ, with what they report (--attribute rev=2).
    """
    if manifest is None and not (version and hardware):
        raise CliError("give --version and --hardware, or a --manifest that says them")
    if version:
        check_name("version", version)
    if hardware:
        check_name("hardware", hardware)
    raw_file, kind = kind_of(kind, raw=raw)
    data = image_bytes(image, app_at, raw=raw_file)
    size = len(data)
    digest = hashlib.sha256(data).hexdigest()
    params: dict[str, Any] = {"version": version, "hardware": hardware, "sha256": digest, "notes": notes}
    if sequence is not None:
        params["sequence"] = sequence
    if kind != "esp-image":
        params["kind"] = kind
    if beside is not None:
        params["with"] = f"{beside[0]}..{beside[1]}"
    params |= {"attribute": list(attribute)} if attribute else {}
    for key, value in (
        ("requiresFrom", requires_from),
        ("requiresTo", requires_to),
        ("stop", "true" if stop else None),
    ):
        if value is not None:
            params[key] = value
    headers = {"content-length": str(size)}
    if manifest is not None:
        headers["dfud-manifest"] = base64.b64encode(manifest.read_bytes()).decode()
    with (
        progress_bar(image.name, TRANSFER, total=size) as progress,
        session.client(timeout_s=None) as client,
    ):

        def blocks() -> Iterator[bytes]:
            for at in range(0, size, BLOCK_BYTES):
                yield data[at : at + BLOCK_BYTES]
                progress(min(at + BLOCK_BYTES, size), size)

        answer = client.post(session.api("firmware"), params=params, headers=headers, content=blocks())
        found = checked(answer)
    if session.json:
        session.show(found)
        return
    made = next(one for one in images_of(found) if one["sha256"] == digest)
    others = len(images_of(found)) - 1
    more = f" It has {others} more image{'s' if others > 1 else ''}." if others else ""
    what = f"app {found['version']}" if made["kind"] == "app" else found["version"]
    told = f"Published {what} for {place(made)}, {made['size']} bytes, sequence {made['sequence']}."
    session.say(told + more)


@firmware.command("list")
@pass_session
def firmware_list(session: Session) -> None:
    """List the firmware of the app, newest first."""
    found = session.request("GET", session.api("firmware"))
    if session.json:
        session.show(found)
        return
    rows = Table("VERSION", "HARDWARE", "SEQUENCE", "BYTES", "SIGNED", "CREATED", "BY", "NOTE")
    for one in found:
        for number, image in enumerate(images_of(one)):
            signed = "yes" if image["signed"] else "no"
            numbers = (str(image["sequence"]), str(image["size"]))
            about = "" if number else _note(one)
            name = one["version"] if not number else ""
            rows.add_row(name, place(image), *numbers, signed, one["created"], one["uploadedBy"], about)
    print_table(rows)


def images_of(firmware: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the images of a firmware as the API shows it; one that has one image is that image."""
    found: list[dict[str, Any]] = firmware.get("images") or [firmware]
    return found


def place(image: dict[str, Any]) -> str:
    """Return whom an image is for."""
    return place_of(image["hardware"], image.get("attributes", {}))


def _note(firmware: dict[str, Any]) -> str:
    """Return what one has to know of a version in a few words."""
    told = ["app"] if firmware["kind"] == "app" else []
    if "with" in firmware:
        low, high = firmware["with"]
        told.append(f"with {low}" + (f" to {high}" if high < SEQUENCE_MAX else " and above"))
    if "recalled" in firmware:
        told.append(f"recalled: {firmware['recalled']['reason']}")
    if firmware.get("stop"):
        told.append("stop")
    if "requires" in firmware:
        low, high = firmware["requires"]["from"], firmware["requires"]["to"]
        told.append(f"from sequence {low}" + (f" to {high}" if high < SEQUENCE_MAX else ""))
    return "; ".join(told)


@firmware.command("show")
@click.argument("version")
@pass_session
def firmware_show(session: Session, version: str) -> None:
    """Show one firmware as JSON."""
    session.show(session.request("GET", session.api("firmware", version)))


@firmware.command("download")
@click.argument("version")
@click.option("-O", "--to", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--hardware", default="", help="Of several images the one for this hardware.")
@attribute_option
@pass_session
def firmware_download(session: Session, version: str, to: Path, hardware: str, attribute: tuple[str, ...]) -> None:
    """Download an image of a firmware, and check it."""
    path = session.api("firmware", version)
    record = chosen_of(session.request("GET", path), hardware, attribute)
    params = params_of(hardware, attribute)
    digest = hashlib.sha256()
    with (
        progress_bar(version, TRANSFER, total=record["size"]) as progress,
        session.client(timeout_s=None) as client,
        client.stream("GET", f"{path}/image", params=params) as answer,
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
@click.option("--hardware", default="", help="Delete only its image for this hardware.")
@attribute_option
@yes_option
@pass_session
def firmware_delete(session: Session, version: str, hardware: str, attribute: tuple[str, ...], yes: bool) -> None:
    """Delete a firmware that no device should run, or one of its images."""
    what = f"the image for {place_of(hardware, dict(_pairs(attribute)))} of firmware" if hardware else "firmware"
    confirm(f"Delete {what} {version} of app {session.app}?", yes)
    path = session.api("firmware", version)
    found = session.request("GET", path)
    if found["version"] != version:  # a proxy that folds paths would lead the request to something else
        raise CliError(f"{path} leads to {found['version']!r}, expected {version!r}; nothing was deleted")
    if attribute and not hardware:
        raise CliError("--attribute: give --hardware too, to say which image is meant")
    session.request("DELETE", path, params=params_of(hardware, attribute))
    told = (
        f"Image of {version} for {place_of(hardware, dict(_pairs(attribute)))}" if hardware else f"Firmware {version}"
    )
    session.done(f"{told} deleted.", version=version)


def _pairs(attribute: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (pair.partition("=") for pair in attribute)]


def params_of(hardware: str, attribute: tuple[str, ...]) -> dict[str, Any]:
    """Return the parameters that name one of several images."""
    params: dict[str, Any] = {"hardware": hardware} if hardware else {}
    return params | ({"attribute": list(attribute)} if attribute else {})


def chosen_of(firmware: dict[str, Any], hardware: str, attribute: tuple[str, ...]) -> dict[str, Any]:
    """Return the image that is named; what the API makes of a name that fits none is its own affair."""
    named = [
        i
        for i in images_of(firmware)
        if i["hardware"] == hardware and i.get("attributes", {}) == dict(_pairs(attribute))
    ]
    return named[0] if named else images_of(firmware)[0]
