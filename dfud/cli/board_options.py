"""What the commands of `dfuctl board` share: identities, keys as files, files that hold secrets."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from dfud.board.image import Identity
from dfud.cli.client import CliError
from dfud.model.names import check_name

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def first_line(file: Path) -> str:
    try:
        return file.read_text("utf-8").partition("\n")[0].strip()
    except UnicodeDecodeError:
        raise CliError(f"{file}: not UTF-8, expected one line of text") from None


def public_key(given: str) -> bytes:
    """Return a public key that is given as base64, or as the name of a file with it. Raises CliError."""
    file = Path(given)
    text = first_line(file) if len(given) < 4096 and file.is_file() else given
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise CliError(
            f"public key {given[:60]!r}: expected a file with, or itself, the base64 of 32 bytes, as `dfuctl key show` prints it"
        )
    return key


def identity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --claim, --claim-file, --device and --secret-file, and hand the command an Identity of them."""

    @click.option("--claim", envvar="DFUCTL_CLAIM", show_envvar=True, help="Claim code, of `dfuctl claim create`.")
    @click.option(
        "--claim-file", type=_FILE, help="File whose first line is the claim code: it is in no shell history then."
    )
    @click.option(
        "--device", default="", help="Name of the device; with a claim code: the chip's unique id if not given."
    )
    @click.option("--secret-file", type=_FILE, help="File whose first line is the device's secret.")
    @wraps(command)
    def wrapped(
        *args: Any, claim: str | None, claim_file: Path | None, device: str, secret_file: Path | None, **options: Any
    ) -> Any:
        code = first_line(claim_file) if claim_file else claim or ""
        secret = first_line(secret_file) if secret_file else ""
        return command(*args, identity=made(device, secret, code), **options)

    return wrapped


def made(device: str, secret: str, claim: str) -> Identity:
    """Return an identity. Raises CliError if it is none, or two."""
    if device:
        check_name("device", device)
    if bool(secret) == bool(claim):
        raise CliError(
            "who is the board? give --claim-file (of `dfuctl claim create`), or --device and --secret-file (of `dfuctl device "
            "create`)"
        )
    if secret and not device:
        raise CliError("--secret-file is a device's: give --device, too")
    return Identity(device=device, secret=secret, claim=claim)


# ESP32-C3's: boot straps, flash, USB, UART 0. Source: datasheet, section 2; docs/serial.md.
_TAKEN = {
    2: "a boot strap",
    8: "a boot strap",
    9: "the boot strap",
    18: "USB",
    19: "USB",
    20: "the console",
    21: "the console",
}
_TAKEN |= dict.fromkeys(range(11, 18), "the flash")
PIN_MAX, BAUDS = 21, (1200, 4_000_000)


def serial_line(text: str) -> str | dict[str, int]:
    """Return what --serial means, as the agent's `line`: "console", or a UART. Raises CliError."""
    if text == "console":
        return text
    parts = text.split(",")
    if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise CliError(f"--serial {text}: expected TX,RX or TX,RX,BAUD (4,5 or 4,5,921600), or console")
    tx, rx, baud = [*map(int, parts), 115200][:3]
    for pin in (tx, rx):
        if pin > PIN_MAX or pin in _TAKEN:
            why = _TAKEN.get(pin, "not there")
            raise CliError(f"--serial {text}: GPIO{pin} is {why} on an ESP32-C3; expected one of 0, 1, 3 to 7, 10")
    if tx == rx or not BAUDS[0] <= baud <= BAUDS[1]:
        raise CliError(f"--serial {text}: expected two pins, and a rate of {BAUDS[0]} to {BAUDS[1]}")
    return {"id": 1, "baudrate": baud, "tx": tx, "rx": rx}


def write_file(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole or not at all. Raises CliError."""
    temporary: Path | None = None
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600
        temporary = Path(name)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
