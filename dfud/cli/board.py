"""board: from a stock download to one file that makes a board a device of dfud, and what such a file or a board holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from dfud.board import appimage
from dfud.board import image as whole
from dfud.board.flashmap import LAYOUTS, SIZES, WITHOUT_BANKS, find
from dfud.board.image import Identity
from dfud.board.kept import Kept, read_kept_untrusted
from dfud.board.kept import build as build_kept
from dfud.board.software import AGENT_FILE, agent_files, app_files, march_of, pack, start_files
from dfud.board.stock import CHIP, read_stock_untrusted
from dfud.cli.board_factory import board_factory
from dfud.cli.board_flash import board_flash
from dfud.cli.board_inspect import board_inspect
from dfud.cli.board_options import first_line, identity_options, public_key, serial_line, write_file
from dfud.cli.client import CliError, Session
from dfud.cli.resources import pass_session
from dfud.errors import PeerError
from dfud.model.espimage import hardware_name
from dfud.model.names import check_name

ROOT = Path(__file__).parents[2]
WIFI_PASSWORD = (8, 63)  # WPA2-PSK, IEEE 802.11; none: an open network
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def board() -> None:
    """Boards: one file to flash, identities for a factory line, what a flash holds. Needs no dfud but for `factory --create`."""


def _server(url: str, ca: Path | None, pin: Path | None) -> dict[str, str]:
    """Judge --server with its certificate; return which file stands where on the board. Raises CliError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.username:
        raise CliError(f"--server {url}: expected http://host:port or https://host:port, where devices reach dfud")
    if parts.hostname in ("localhost", "127.0.0.1", "::1"):
        click.echo(f"warning: --server {url}: a real board asks itself there; give this machine's address", err=True)
    if parts.scheme == "http" and (ca or pin):
        raise CliError(f"--server {url}: a certificate needs https")
    if parts.scheme == "https" and (ca is None) == (pin is None):
        raise CliError(f"--server {url}: give --ca (of the CA) or --pin (the server's own certificate), one of them")
    return {"ca": "ca.cer"} if ca else {"pin": "pin.cer"} if pin else {}


def _wifi(ssid: str | None, file: Path | None) -> tuple[str, str] | None:
    if ssid is None:
        return None
    password = os.environ.get("DFUCTL_WIFI_PASSWORD")
    if file is not None:
        password = first_line(file)
    elif password is None:
        password = str(
            click.prompt(f"Password of Wi-Fi {ssid}", hide_input=True, default="", show_default=False, err=True)
        )
    least, most = WIFI_PASSWORD
    size = len(password.encode())
    if not 1 <= len(ssid.encode()) <= 32:
        raise CliError(f"--wifi: a name of {len(ssid.encode())} bytes, expected 1 to 32")
    if size and not least <= size <= most:
        raise CliError(f"Wi-Fi password: {size} bytes, expected {least} to {most}, or none for an open network")
    return ssid, password


@board.command("image")
@click.option("--micropython", required=True, type=_FILE, help="The download as it is: ESP32_GENERIC_C3-....bin.")
@click.option("--app", "folder", required=True, type=_FOLDER, help="Folder of the application, with main.py.")
@click.option("--server", help="Where devices reach dfud: http://host:port or https://host:port.")
@click.option(
    "--serial", metavar="TX,RX[,BAUD]", help="No network: UART 1 on these pins, to `dfuctl bridge`; or: console."
)
@identity_options
@click.option("--app-name", help="App of dfud that the board belongs to; as `dfuctl --app`. No login is needed.")
@click.option("--hardware", help="Chip and board, as esp32c3-board1; default: the download's chip.")
@click.option(
    "--keep-bootloader", is_flag=True, help="Any ESP32: the download's own bootloader and table, with two OTA slots."
)
@click.option(
    "--wifi", metavar="SSID", help="Wi-Fi to join; its password is asked for, or stands in $DFUCTL_WIFI_PASSWORD."
)
@click.option("--wifi-password-file", type=_FILE, help="File whose first line is the password of the Wi-Fi.")
@click.option("--ntp", default="pool.ntp.org", show_default=True, help="Time server; '' sets no clock.")
@click.option("--ca", type=_FILE, help="https: certificate of the CA, PEM or DER.")
@click.option("--pin", type=_FILE, help="https: the server's own certificate, PEM or DER.")
@click.option("--flash", type=click.Choice(list(SIZES)), default="4MB", show_default=True, help="Size of the flash.")
@click.option("--key", "keys", multiple=True, metavar="FILE|KEY", help="Public key that the board trusts; up to four.")
@click.option("--development-key", "development", multiple=True, metavar="FILE|KEY", help="The same; every boot warns.")
@click.option("--manifest", type=_FILE, help="Signed manifest of the MicroPython image; needed with keys.")
@click.option("--app-version", default="0", show_default=True, help="Version of the application that it comes with.")
@click.option("--app-manifest", type=_FILE, help="Signed manifest of the app image; its version counts then.")
@click.option("--no-banks", is_flag=True, help="Layout without app banks: the application as files, updated by nobody.")
@click.option("--bootloader", type=click.Path(path_type=Path), help="default: build/bootloader/bootloader.bin")
@click.option("--agent", type=_FOLDER, help="Folder of the agent's sources; default: devicefw/dfu.")
@click.option("--port", default="/dev/ttyACM0", show_default=True, help="For the printed command.")
@click.option(
    "-o", "-O", "--to", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write, mode 0600."
)
@pass_session
def board_image(
    session: Session,
    micropython: Path,
    folder: Path,
    server: str | None,
    serial: str | None,
    identity: Identity,
    app_name: str | None,
    hardware: str | None,
    keep_bootloader: bool,
    wifi: str | None,
    wifi_password_file: Path | None,
    ntp: str,
    ca: Path | None,
    pin: Path | None,
    flash: str,
    keys: tuple[str, ...],
    development: tuple[str, ...],
    manifest: Path | None,
    app_version: str,
    app_manifest: Path | None,
    no_banks: bool,
    bootloader: Path | None,
    agent: Path | None,
    port: str,
    to: Path,
) -> None:
    """Make the one file that is flashed: MicroPython, bootloader, agent, application, keys and identity.

    \b
    dfuctl --app lamps claim create                     # shows a claim code
    dfuctl board image --micropython ESP32_GENERIC_C3-20241129-v1.24.1.bin --app ./app --app-name lamps \\
        --server http://192.168.1.2:8880 --claim-file claim --wifi attic -o board.bin
    """
    app = check_name("app", app_name or session.app)
    data = micropython.read_bytes()
    kept: Kept | None = None
    if keep_bootloader:
        if bootloader or app_manifest:
            raise CliError("--keep-bootloader: leave --bootloader and --app-manifest out: docs/other-boards.md")
        try:
            kept = read_kept_untrusted(data)
        except PeerError as error:
            raise CliError(f"{micropython}: {error}") from None
    chip = kept.chip if kept else CHIP
    hardware = check_name("hardware", hardware_name(hardware or chip))
    if hardware.split("-")[0] != chip:
        why = f"{micropython} is for that" if kept else "dfud's bootloader runs on no other chip; see --keep-bootloader"
        raise CliError(f"--hardware {hardware}: expected {chip} or {chip}-<board>: {why}")
    if (server is None) == (serial is None):
        raise CliError(
            "how does the board reach dfud? give --server, or --serial for one without a network, one of them"
        )
    link: dict[str, Any]
    if serial is not None:
        if wifi or ca or pin:
            raise CliError("--serial: the board has no network: leave --wifi, --ca and --pin out; TLS is the bridge's")
        certificate, ntp, link = {}, "", {"transport": "serial", "line": serial_line(serial)}
    else:
        certificate, link = _server(str(server), ca, pin), {"url": server}
    try:
        stock = kept.stock if kept else read_stock_untrusted(data)
    except PeerError as error:
        raise CliError(f"{micropython}: {error}") from None
    trusted = [public_key(text) for text in (*keys, *development)]
    envelope = whole.envelope_of(stock, app, hardware, manifest.read_bytes() if manifest else b"", trusted)
    loader = bootloader or ROOT / "build" / "bootloader" / "bootloader.bin"
    if kept is None and not loader.exists():
        raise CliError(f"{loader} is not there: build it with `make bootloader`, or give --bootloader")
    if no_banks and app_manifest:
        raise CliError("--app-manifest: a board without banks has no app image; leave one of them out")
    application: tuple[bytes, bytes] | None = None
    app_in: dict[str, bytes] = {}
    if no_banks or kept:
        app_in, confirms = app_files(folder, march_of(hardware))
    else:
        made = appimage.build(folder, flash, march_of(hardware))
        signed = app_manifest.read_bytes() if app_manifest else b""
        version = check_name("version", app_version)
        application = made.data, whole.app_envelope_of(made.data, version, app, hardware, signed, trusted)
        confirms = made.confirms
    said = whole.settings(app=app, hardware=hardware, wifi=_wifi(wifi, wifi_password_file), ntp=ntp, agent=link)
    beside = ["serial"] * (serial is not None) + ["otadata"] * keep_bootloader
    packed = pack(agent_files(agent or ROOT / "devicefw" / "dfu", march_of(hardware), parts=beside))
    files = {AGENT_FILE: packed, **start_files(ROOT / "devicefw" / "board"), **app_in}
    for file, name in ((ca, "ca"), (pin, "pin")):
        if file is not None:
            files[certificate[name]] = file.read_bytes()
    files["dfu.json"] = whole.settings_file({**said, **{name: f"/{path}" for name, path in certificate.items()}})
    marked = set(range(len(keys), len(trusted)))
    if kept:
        content = build_kept(kept, envelope=envelope, keys=trusted, development=marked, identity=identity, files=files)
    else:
        content = whole.build(
            flash=flash,
            bootloader=loader.read_bytes(),
            stock=stock,
            envelope=envelope,
            keys=trusted,
            development=marked,
            identity=identity,
            files=files,
            application=application,
        )
    write_file(to, content)
    if not confirms:
        session.say("warning: nothing in the application calls dfu.confirm(): each update will be left again", err=True)
    if kept:
        session.say(
            "warning: not dfud's bootloader: a new image has one trial, no signature is checked at a start", err=True
        )
    if serial is None and not wifi:
        session.say("warning: no --wifi: the board joins no network, unless the application does", err=True)
    if not trusted:
        session.say("warning: no --key: the board boots any image; not a device to sell", err=True)
    command = (
        f"esptool --chip {chip} --port {port} write-flash --erase-all --flash-mode keep --flash-size keep 0x0 {to}"
    )
    if session.json:
        session.show(
            {"file": str(to), "bytes": len(content), "version": stock.version, "flash": flash, "command": command}
        )
        return
    vfs = find(kept.parts if kept else (WITHOUT_BANKS if no_banks else LAYOUTS)[flash], "vfs")
    how = "" if kept else f" `dfuctl board flash --port {port} {to}`, or with"
    session.say(
        f"{to}: {len(content)} bytes, MicroPython {stock.version} for {hardware}, {len(files)} files in {vfs.size} bytes of file "
        f"system. It holds secrets: keep it as you would keep them. Flash it with{how}",
        err=True,
    )
    session.say(command)


board.add_command(board_flash)
board.add_command(board_inspect)
board.add_command(board_factory)
