"""push: an application from the developer's folder onto one device, and what became of it."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import serial  # type: ignore[import-untyped]  # it ships no annotations

from dfud.board import appimage
from dfud.board.software import march_of
from dfud.cli.app_image import NO_CONFIRM
from dfud.cli.client import CliError, Session, checked
from dfud.cli.keys import signed_app
from dfud.cli.resources import pass_session
from dfud.cli.watch import Watch, exit_code, firmware_of, tell_outcomes
from dfud.model.names import check_name

BAUD = 115200
DIGITS = 6  # of the digest, in a development version's name
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.argument("device_name", metavar="DEVICE")
@click.option("--version", "version", help="Its name; if not given: dev-, the time, and what the image is.")
@click.option("--key", help="Sign it: private key file, or a PKCS#11 URI; for apps that take signed firmware only.")
@click.option("--passphrase-file", type=_FILE, help="File whose first line is the passphrase of --key.")
@click.option("--port", help="Show the device's console, on this serial line, until Ctrl-C.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=300.0, show_default=True, help="Seconds.")
@pass_session
@click.pass_context
def push(
    ctx: click.Context,
    session: Session,
    folder: Path,
    device_name: str,
    version: str | None,
    key: str | None,
    passphrase_file: Path | None,
    port: str | None,
    timeout_s: float,
) -> None:
    """Build the app image of FOLDER, publish it as a development version, update DEVICE to it and follow that.

    An image that the app has already, under whatever version, is not published again.

    \b
    dfuctl push ./app lamp1
    dfuctl push ./app lamp1 --port /dev/ttyACM0   # and what the device prints

    \b
    Exit codes: 0 it runs and is confirmed; 3 it was left or failed (its traceback is shown); 4 the time was over.
    """
    since = time.monotonic()
    actual = firmware_of(session, device_name).get("actual") or {}
    program = firmware_of(session, device_name).get("app", {}).get("actual")
    hardware = actual.get("hardware", "")
    if not hardware:
        raise CliError(
            f"{device_name} has not said yet what it is: switch it on, and look at `dfuctl status {device_name}`"
        )
    if program is None:
        raise CliError(
            f"{device_name} has no app banks: its application comes with what was flashed; a board made with `dfuctl board image`, "
            "and with neither --no-banks nor --keep-bootloader, has them"
        )
    made = appimage.build(folder, "16MB", march_of(hardware))
    room = program.get("capacity", len(made.data))
    if len(made.data) > room:
        raise CliError(
            f"{folder}: the app image has {len(made.data)} bytes, expected at most {room}, the bank of {device_name}"
        )
    if not made.confirms:
        session.say(NO_CONFIRM, err=True)
    with _console(port, session) if port else _nothing() as follow:
        version = _published(session, made.data, hardware, version, key, passphrase_file)
        body = {"device": device_name, "firmware": _wish(session, device_name) | {"app": version}}
        session.request("POST", session.api("update"), json=body)
        session.say(f"{device_name}: {len(made.data)} bytes as {version}", err=True)
        seen = Watch(session, [device_name], app=version, timeout_s=timeout_s)
        outcomes = seen.run()
        tell_outcomes(session, seen)
        session.say(f"{time.monotonic() - since:.1f} s", err=True)
        follow()
    ctx.exit(exit_code(outcomes.values()))


def _wish(session: Session, device_name: str) -> dict[str, Any]:
    """Return what is said of the device's system: it stays."""
    said = session.request("GET", session.registry("devices", device_name))["spec"].get("firmware")
    return {"version": said["version"]} if isinstance(said, dict) and "version" in said else {}


def _published(
    session: Session, data: bytes, hardware: str, version: str | None, key: str | None, passphrase_file: Path | None
) -> str:
    """Return the version under which the app has this image, published now if it was not."""
    digest = hashlib.sha256(data).hexdigest()
    known = session.request("GET", session.api("firmware"))
    images = [(one, image) for one in known for image in one.get("images") or [one]]
    for one, image in images:
        if image["sha256"] == digest and image["hardware"] == hardware and version in (None, one["version"]):
            return str(one["version"])
    version = check_name("version", version or f"dev-{time.strftime('%Y%m%d-%H%M%S')}-{digest[:DIGITS]}")
    params = {"version": version, "hardware": hardware, "sha256": digest, "kind": "app", "notes": "dfuctl push"}
    headers = {"content-length": str(len(data))}
    if key is not None:
        highest = max((image["sequence"] for one, image in images if image["kind"] == "app"), default=0)
        signed = signed_app(session.app, data, version, hardware, highest + 1, key, passphrase_file)
        headers["dfud-manifest"] = base64.b64encode(signed).decode()
    with session.client(timeout_s=None) as client:
        checked(client.post(session.api("firmware"), params=params, headers=headers, content=data))
    return version


@contextmanager
def _nothing() -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def _console(port: str, session: Session) -> Iterator[Callable[[], None]]:
    """Show what the serial line says while this is open; yield what waits until Ctrl-C."""
    try:
        # Neither line is touched: on an ESP32-C3's USB they reset it.
        line = serial.serial_for_url(port, BAUD, timeout=0.2, do_not_open=True)
        line.dtr = line.rts = False
        line.open()
    except (OSError, serial.SerialException) as error:
        from dfud.board.flashing import no_port

        raise CliError(no_port(port, error)) from None
    ended = threading.Event()

    def show() -> None:
        rest = b""
        while not ended.is_set():
            try:
                rest += line.read(256)
            except (OSError, serial.SerialException):
                time.sleep(0.2)  # a chip that resets takes its USB with it
                continue
            *lines, rest = rest.split(b"\n")
            for text in lines:
                session.say(f"| {text.decode('utf-8', 'replace').rstrip()}")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()

    def follow() -> None:
        try:
            while thread.is_alive():
                thread.join(1.0)
        except KeyboardInterrupt:
            pass

    try:
        yield follow
    finally:
        ended.set()
        thread.join()
        line.close()
