"""firmware, update, status, history."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dfud.cli.client import CliError, Session, checked
from dfud.cli.resources import device_path, pass_session, print_table, state_text, table

BLOCK_BYTES = 1 << 16


def base(session: Session) -> str:
    return f"/api/dfu/v1/apps/{session.app}"


def progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, transient=False)


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
    with progress_bar() as bar, image.open("rb") as file, session.client(timeout_s=None) as client:
        task = bar.add_task(image.name, total=size)

        def blocks() -> Iterator[bytes]:
            while block := file.read(BLOCK_BYTES):
                yield block
                bar.advance(task, len(block))

        answer = client.post(f"{base(session)}/firmware", params=params, headers=headers, content=blocks())
        found = checked(answer)
    if session.json:
        session.show(found)
        return
    click.echo(
        f"Published {found['version']} for {found['hardware']}, {found['size']} bytes, sequence {found['sequence']}."
    )


@firmware.command("list")
@pass_session
def firmware_list(session: Session) -> None:
    """List the firmware of the app, newest first."""
    found = session.request("GET", f"{base(session)}/firmware")
    if session.json:
        session.show(found)
        return
    rows = table("VERSION", "HARDWARE", "SEQUENCE", "BYTES", "SIGNED", "CREATED", "BY")
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
    session.show(session.request("GET", f"{base(session)}/firmware/{quote(version, safe='')}"))


@firmware.command("download")
@click.argument("version")
@click.option("-O", "--to", type=click.Path(path_type=Path), required=True, help="File to write.")
@pass_session
def firmware_download(session: Session, version: str, to: Path) -> None:
    """Download the image of a firmware, and check it."""
    path = f"{base(session)}/firmware/{quote(version, safe='')}"
    record = session.request("GET", path)
    digest = hashlib.sha256()
    with (
        progress_bar() as bar,
        session.client(timeout_s=None) as client,
        client.stream("GET", f"{path}/image") as answer,
    ):
        task = bar.add_task(version, total=record["size"])
        if not answer.is_success:
            answer.read()
            checked(answer)
        with to.open("wb") as file:
            for block in answer.iter_bytes():
                file.write(block)
                digest.update(block)
                bar.advance(task, len(block))
    if digest.hexdigest() != record["sha256"]:
        to.unlink()
        raise CliError(f"the image of {version} did not arrive whole; nothing was kept")
    session.done(f"Wrote {to}.", version=version, file=str(to), sha256=record["sha256"])


@firmware.command("delete")
@click.argument("version")
@pass_session
def firmware_delete(session: Session, version: str) -> None:
    """Delete a firmware that nobody wants any more."""
    session.request("DELETE", f"{base(session)}/firmware/{quote(version, safe='')}")
    session.done(f"Firmware {version} deleted.", version=version)


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[DEVICE] VERSION")
@click.option("-l", "--selector", help="All devices with these labels, such as site=attic.")
@click.option("--app-default", is_flag=True, help="All devices of the app that have no wish of their own.")
@click.option("--hold", is_flag=True, help="Decide now, send later.")
@click.option("--download-only", is_flag=True, help="Have it written, not booted.")
@click.option("--watch", is_flag=True, help="Stay and show what the device does.")
@pass_session
@click.pass_context
def update(
    ctx: click.Context,
    session: Session,
    arguments: tuple[str, ...],
    selector: str | None,
    app_default: bool,
    hold: bool,
    download_only: bool,
    watch: bool,
) -> None:
    """Say that DEVICE, or all that a selector matches, should run VERSION."""
    one = len(arguments) == 2
    if len(arguments) > 2 or one == bool(selector or app_default) or (selector and app_default):
        raise CliError("name a device, or give -l SELECTOR, or --app-default; and the version last")
    version = arguments[-1]
    wanted: dict[str, Any] = {"version": version}
    wanted |= {"hold": True} if hold else {}
    wanted |= {"downloadOnly": True} if download_only else {}
    body: dict[str, Any] = {"firmware": wanted}
    if one:
        body["device"] = arguments[0]
    elif selector:
        body["selector"] = selector
    found = session.request("POST", f"{base(session)}/update", json=body)
    if session.json:
        session.show(found)
    elif one:
        click.echo(f"{arguments[0]} should run {version}.")
    elif selector:
        click.echo(f"{len(found['changed'])} devices should run {version}.")
    else:
        click.echo(f"Devices of {session.app} without a wish of their own should run {version}.")
    if watch and one:
        ctx.invoke(status, device_name=arguments[0], watch=True)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@click.option(
    "-w", "--watch", is_flag=True, help="Stay, and print every change, until the device is in sync or gave up."
)
@pass_session
def status(session: Session, device_name: str, watch: bool) -> None:
    """Show what a device runs, what it should run, and how its last update went."""
    found = session.request("GET", device_path(session, device_name))["status"]["firmware"]
    _show_status(session, device_name, found)
    if not watch or _settled(found):
        return
    last = _line(found)
    while True:
        # The events only say when to look; what is shown is what is stored.
        for _ in _events(session, device_name):
            found = session.request("GET", device_path(session, device_name))["status"]["firmware"]
            line = _line(found)
            if line != last:
                last = line
                if session.json:
                    click.echo(json.dumps(found))
                else:
                    click.echo(line)
            if _settled(found):
                if not session.json:
                    _show_result(found)
                return
        time.sleep(1)


def _events(session: Session, device_name: str) -> Iterator[None]:
    with session.client(timeout_s=60) as client:
        with client.stream("GET", f"{base(session)}/events", params={"device": device_name}) as answer:
            if not answer.is_success:
                answer.read()
                checked(answer)
            for _ in answer.iter_lines():
                yield


def _settled(found: dict[str, Any]) -> bool:
    condition = next(c for c in found["conditions"] if c["type"] == "InSync")
    return condition["status"] == "True" or found.get("deployment", {}).get("state") in ("rolled-back", "failed")


def _line(found: dict[str, Any]) -> str:
    return f"{found['current'] or '?'} -> {found['target'] or '?'}: {state_text(found)}"


def _show_status(session: Session, name: str, found: dict[str, Any]) -> None:
    if session.json:
        session.show(found)
        return
    click.echo(f"{name}: {_line(found)}")
    _show_result(found)


def _show_result(found: dict[str, Any]) -> None:
    result = found.get("deployment", {}).get("result")
    if result:
        crashes = f" after {result['crashes']} crashes" if result["crashes"] else ""
        click.echo(f"  {result['reason']}{crashes}")
        for line in result["text"].splitlines():
            click.echo(f"  | {line}")


def _ask(session: Session, what: str, device_name: str) -> None:
    session.request("POST", f"{base(session)}/{what}/{quote(device_name, safe='')}")
    session.done("Accepted.", device=device_name, asked=what)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def retry(session: Session, device_name: str) -> None:
    """Let a device try again what it left, or what failed."""
    _ask(session, "retry", device_name)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def cancel(session: Session, device_name: str) -> None:
    """End a device's update, unless it runs on trial already. The version is not sent to it again until `retry`."""
    _ask(session, "cancel", device_name)


@click.command()
@click.argument("device_name", metavar="DEVICE")
@pass_session
def history(session: Session, device_name: str) -> None:
    """Show what happened to a device's updates, newest last."""
    found = session.request("GET", f"{base(session)}/history/{quote(device_name, safe='')}")
    if session.json:
        session.show(found)
        return
    rows = table("AT", "VERSION", "STATE", "EVENT", "TEXT")
    for one in reversed(found):
        text = (one.get("text") or "").splitlines()
        rows.add_row(one["at"], one["version"], one["state"], one.get("event", ""), text[-1] if text else "")
    print_table(rows)
