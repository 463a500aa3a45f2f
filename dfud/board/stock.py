"""Stock MicroPython as it is downloaded: a merged file (bootloader, partition table, application), or the application alone."""

from __future__ import annotations

import io
import re

import msgspec

from dfud.board.flashmap import APP, TABLE_AT, TABLE_BYTES, check, decode_table_untrusted
from dfud.errors import PeerError
from dfud.model.espimage import MAGIC, check_application_untrusted, read_esp_image_untrusted
from dfud.model.layout import SLOT_BYTES, TRAILER_BYTES
from dfud.model.oddfile import foreign_untrusted

CHIP = "esp32c3"
OLDEST = (1, 24)  # machine code for rv32 since then
_FLASH_MAX_BYTES = 16 << 20
_VERSION = re.compile(r"v?(\d+)\.(\d+)")


class Stock(msgspec.Struct, frozen=True):
    """image: the application alone; at: where it stood in the file; version and project: as its description says."""

    image: bytes
    at: int
    version: str
    project: str


def description_untrusted(image: bytes) -> tuple[str, str]:
    """Return (version, project) of an application's description, which is known to be there. Source: ESP-IDF esp_app_desc.h."""
    return _text(image[48:80]), _text(image[80:112])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def check_version(version: str, project: str) -> None:
    """Raise PeerError for a MicroPython that the agent does not run on."""
    number = _VERSION.match(version)
    if project == "micropython" and number and (int(number[1]), int(number[2])) < OLDEST:
        raise PeerError(
            f"MicroPython {version}: the agent needs {OLDEST[0]}.{OLDEST[1]} or newer: download a newer one"
        )


def read_stock_untrusted(data: bytes) -> Stock:
    """Cut the application out of a download and judge it: chip, checksum, SHA-256, size. Raises PeerError with what to do."""
    told = foreign_untrusted(data[:64])
    if told:
        raise PeerError(
            f"{told.replace(', or give --raw to take the file as it is', '')}; the download that ends in .bin is the right one"
        )
    at = 0
    try:
        parts = decode_table_untrusted(data[TABLE_AT : TABLE_AT + TABLE_BYTES])
    except PeerError:
        parts = ()
    if parts:
        check(parts, _FLASH_MAX_BYTES)
        apps = sorted(
            part.offset for part in parts if part.type == APP and data[part.offset : part.offset + 1] == bytes([MAGIC])
        )
        if not apps:
            raise PeerError("a merged file whose application partitions hold no image: download it again")
        at = apps[0]
    file = io.BytesIO(data)
    found = read_esp_image_untrusted(file, len(data), at)
    image = data[at : at + found.size]
    check_application_untrusted(io.BytesIO(image), len(image), CHIP)
    room = SLOT_BYTES[CHIP] - TRAILER_BYTES
    if len(image) > room:
        raise PeerError(
            f"the application has {len(image)} bytes, {len(image) - room} more than a slot holds: expected at most {room}; take an "
            "older or smaller build (without displays, Bluetooth or ulab)"
        )
    version, project = description_untrusted(image)
    check_version(version, project)
    return Stock(image=image, at=at, version=version, project=project)
