"""What a factory writes beside the bootloader and the first image, and the esptool command that does it:

python -m bootloader.provision lamp-1.0.bin --manifest lamp-1.0.bin.manifest --key "$(dfuctl key show publisher.pem)" -O out
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

import click

from devicefw.sim.flash import PARTITIONS, SECTOR_BYTES, partition
from dfud.board.flashmap import TABLE_AT, encode_table
from dfud.board.records import encode_keys, encode_trailer
from dfud.errors import PeerError
from dfud.model.espimage import check_application_untrusted, check_esp_image_untrusted
from dfud.wire.manifest import KEYS_MAX, decode_envelope_untrusted, verify

BINARY = Path(__file__).parents[1] / "build" / "bootloader" / "bootloader.bin"


def partition_table() -> bytes:
    """Return the table as ESP-IDF reads it."""
    return encode_table(PARTITIONS)


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise click.ClickException(
            f"public key {text[:60]!r}: expected the base64 of 32 bytes, as `dfuctl key show` prints it"
        )
    return key


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("image", type=_FILE)
@click.option("--manifest", type=_FILE, help="Signed manifest of IMAGE, as `dfuctl sign` writes it; needed with keys.")
@click.option("--key", "keys", multiple=True, help="Public key that the device trusts; up to four.")
@click.option(
    "--development-key", "development", multiple=True, help="The same; every boot of an image that it signed warns."
)
@click.option(
    "-O", "--to", type=click.Path(file_okay=False, path_type=Path), default=Path("factory"), show_default=True
)
@click.option("--raw", is_flag=True, help="An ESP image without an application description: no bootloader, but not ESP-IDF's.")
@click.option("--port", default="/dev/ttyACM0", show_default=True, help="For the printed command.")
def main(
    image: Path,
    manifest: Path | None,
    keys: tuple[str, ...],
    development: tuple[str, ...],
    to: Path,
    raw: bool,
    port: str,
) -> None:
    """Write what belongs at which address into a folder, and print the esptool command."""
    data = image.read_bytes()
    slot, size = partition("ota_0")
    if len(data) > size - SECTOR_BYTES:
        raise click.ClickException(
            f"{image}: {len(data)} bytes, {len(data) - size + SECTOR_BYTES} more than a slot holds: expected at most "
            f"{size - SECTOR_BYTES}, for the slot's last sector is the trailer's; build a smaller image (leave out modules, "
            "or optimise for size)"
        )
    trusted = [_key(text) for text in (*keys, *development)]
    if len(trusted) > KEYS_MAX:
        raise click.ClickException(f"{len(trusted)} keys; a device holds {KEYS_MAX}")
    try:
        with image.open("rb") as file:
            (check_esp_image_untrusted if raw else check_application_untrusted)(file, len(data), "esp32c3")
        envelope = manifest.read_bytes() if manifest else b""
        if envelope:
            read, described = decode_envelope_untrusted(envelope)
            if described.sha256 != hashlib.sha256(data).digest():
                raise click.ClickException(f"{manifest} describes another image")
            if trusted:
                verify(read, trusted)
        elif trusted:
            raise click.ClickException("a device with keys boots no image without a signed --manifest")
    except PeerError as error:
        raise click.ClickException(str(error)) from None
    parts = {TABLE_AT: ("partitions.bin", partition_table()), slot: ("image.bin", data)}
    if envelope:
        parts[slot + size - SECTOR_BYTES] = ("trailer.bin", encode_trailer(envelope))
    if trusted:
        record = encode_keys(trusted, set(range(len(keys), len(trusted))))
        parts[partition("dfu_keys")[0]] = ("keys.bin", record)
    to.mkdir(parents=True, exist_ok=True)
    command = [f"esptool --chip esp32c3 --port {port} write-flash --flash-mode dio --flash-size 4MB 0x0 {BINARY}"]
    for offset, (name, content) in sorted(parts.items()):
        (to / name).write_bytes(content)
        command.append(f"{offset:#x} {to / name}")
    click.echo(f"esptool --chip esp32c3 --port {port} erase-flash")
    click.echo(" ".join(command))


if __name__ == "__main__":
    main()
