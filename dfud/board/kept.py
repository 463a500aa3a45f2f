"""A board that keeps the bootloader and the partition table of its download: any ESP32 with two OTA slots. docs/other-boards.md."""

from __future__ import annotations

import io
from collections.abc import Mapping

import msgspec

from dfud.board import filesystem, nvs
from dfud.board.flashmap import (
    APP,
    DATA,
    SECTOR_BYTES,
    SIZES,
    TABLE_AT,
    TABLE_BYTES,
    Part,
    check,
    decode_table_untrusted,
    find,
)
from dfud.board.image import IDENTITY, NAMESPACE, Identity, identity_blob
from dfud.board.records import encode_keys, encode_trailer
from dfud.board.stock import Stock, check_version, description_untrusted
from dfud.errors import PeerError
from dfud.model.espimage import CHIP_IDS, check_application_untrusted, read_esp_image_untrusted
from dfud.model.oddfile import foreign_untrusted

KEYS = "keys"  # in NVS: what dfu_keys holds elsewhere
LOADERS_AT = (
    0x0,
    0x1000,
)  # where a merged download begins: at the second stage, which the ESP32 and the S2 have at 0x1000
NEEDED = ("nvs", "otadata", "ota_0", "ota_1", "vfs")
OTADATA, OTA_0, OTA_1 = 0x00, 0x10, 0x11
# The slot's last two sectors: the trailer, and where a transfer stands (dfu.idfstart).
RESERVED_BYTES = 2 * SECTOR_BYTES


class Kept(msgspec.Struct, frozen=True):
    """flash: the download as it stands in flash from offset 0 on; stock: its application; chip: the one that it is for."""

    flash: bytes
    parts: tuple[Part, ...]
    stock: Stock
    chip: str


def read_kept_untrusted(data: bytes) -> Kept:
    """Read a merged download whose table has two OTA slots. Raises PeerError with what to do."""
    told = foreign_untrusted(data[:64])
    if told:
        raise PeerError(
            f"{told.replace(', or give --raw to take the file as it is', '')}; the download that ends in .bin is the right one"
        )
    for begins in LOADERS_AT:
        at = TABLE_AT - begins
        try:
            parts = decode_table_untrusted(data[at : at + TABLE_BYTES])
        except PeerError:
            continue
        flash = b"\xff" * begins + data
        break
    else:
        raise PeerError(
            f"no partition table at {TABLE_AT:#x} of the flash: expected a merged download, with bootloader, table and application"
        )
    size = next((size for size in sorted(SIZES.values()) if size >= max(part.end for part in parts)), 0)
    if not size:
        raise PeerError(f"the partition table ends behind {max(SIZES.values()):#x}, the largest flash of a board")
    check(parts, size)
    labels = {
        part.label for part in parts if (part.type, part.subtype) in ((APP, OTA_0), (APP, OTA_1)) or part.type == DATA
    }
    missing = [name for name in NEEDED if name not in labels]
    if missing:
        raise PeerError(
            f"its partition table has no {', '.join(missing)}: expected {', '.join(NEEDED)}, as the OTA variants have it "
            "(ESP32_GENERIC-OTA-....bin); without two slots there is nothing to update into"
        )
    slot = find(parts, "ota_0")
    found = read_esp_image_untrusted(io.BytesIO(flash), len(flash), slot.offset)
    image = flash[slot.offset : slot.offset + found.size]
    chip = next((name for name, number in CHIP_IDS.items() if number == found.chip_id), "")
    if not chip:
        raise PeerError(f"the application is for chip {found.chip_id:#x}, expected one of {', '.join(CHIP_IDS)}")
    check_application_untrusted(io.BytesIO(image), len(image), chip)
    room = slot.size - RESERVED_BYTES
    if len(image) > room:
        raise PeerError(
            f"the application has {len(image)} bytes, expected at most {room}, the slot less {RESERVED_BYTES}: take a smaller build"
        )
    version, project = description_untrusted(image)
    check_version(version, project)
    return Kept(
        flash=flash, parts=parts, stock=Stock(image=image, at=slot.offset, version=version, project=project), chip=chip
    )


def build(
    kept: Kept,
    *,
    envelope: bytes,
    keys: list[bytes],
    development: set[int],
    identity: Identity,
    files: Mapping[str, bytes],
) -> bytes:
    """Return the content of the flash from offset 0 on: the download, with manifest, identity, keys and file system."""
    slot, memory, vfs = (find(kept.parts, name) for name in ("ota_0", "nvs", "vfs"))
    values = {IDENTITY: identity_blob(identity)}
    if keys:
        values[KEYS] = encode_keys(keys, development)
    pieces = {
        memory.offset: nvs.encode({NAMESPACE: values}, memory.size),
        slot.end - SECTOR_BYTES: encode_trailer(envelope),
        vfs.offset: filesystem.build(files, vfs.size),
    }
    content = bytearray(kept.flash.ljust(max(part.end for part in kept.parts), b"\xff"))
    for at, piece in pieces.items():
        content[at : at + len(piece)] = piece
    end = len(content.rstrip(b"\xff"))
    return bytes(content[: end + -end % SECTOR_BYTES])
