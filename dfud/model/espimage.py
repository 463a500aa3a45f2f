"""Reading ESP32 application images: enough to tell whether an image is whole and made for the stated chip.

Source: esptool's documentation of the firmware image format; ESP-IDF esp_app_format.h.
"""

from __future__ import annotations

import hashlib
import struct
from functools import reduce
from operator import xor
from typing import BinaryIO

import msgspec

from dfud.errors import PeerError

MAGIC = 0xE9
CHECKSUM_SEED = 0xEF
SEGMENTS_MAX = 16
CHIP_IDS = {
    "esp32": 0x0000,
    "esp32s2": 0x0002,
    "esp32c3": 0x0005,
    "esp32s3": 0x0009,
    "esp32c2": 0x000C,
    "esp32c6": 0x000D,
    "esp32h2": 0x0010,
    "esp32p4": 0x0012,
}


class Segment(msgspec.Struct, frozen=True):
    """address: where it is loaded or mapped; offset: of its data in the file; size in bytes."""

    address: int
    offset: int
    size: int


class EspImage(msgspec.Struct, frozen=True):
    chip_id: int
    entry: int
    segments: tuple[Segment, ...]
    size: int


def parse_esp_image_untrusted(file: BinaryIO, size: int) -> EspImage:
    """Read and verify the image of `size` bytes in `file` (from its start, seekable): header, segments, XOR checksum, SHA-256.

    Raises PeerError that says what is wrong at which offset, nothing else but the file's own OSError.
    """
    file.seek(0)
    header = file.read(24)
    if len(header) < 24 or header[0] != MAGIC:
        raise PeerError("not an ESP image: it does not start with e9 and a 24-byte header")
    count, entry, chip_id, hashed = (
        header[1],
        *struct.unpack_from("<I", header, 4),
        *struct.unpack_from("<H", header, 12),
        header[23],
    )
    if not 1 <= count <= SEGMENTS_MAX:
        raise PeerError(f"ESP image: {count} segments, expected 1 to {SEGMENTS_MAX}")
    segments = []
    checksum = CHECKSUM_SEED
    digest = hashlib.sha256(header)
    position = 24
    for number in range(count):
        head = file.read(8)
        if len(head) < 8:
            raise PeerError(f"ESP image: ends within the header of segment {number} at offset {position}")
        digest.update(head)
        address, length = struct.unpack("<II", head)
        position += 8
        if length % 4 or position + length > size:
            raise PeerError(
                f"ESP image: segment {number} at offset {position} has {length} bytes, the file ends at {size}"
            )
        segments.append(Segment(address, position, length))
        left = length
        while left:
            block = file.read(min(left, 1 << 16))
            if not block:
                raise PeerError(f"ESP image: ends within segment {number}")
            digest.update(block)
            checksum ^= _xor(block)
            left -= len(block)
        position += length
    end = (position + 16) & ~15
    padding = file.read(end - position)
    if len(padding) < end - position or padding[-1] != checksum:
        raise PeerError(f"ESP image: the checksum byte at offset {end - 1} does not match the segments")
    digest.update(padding)
    if hashed:
        if file.read(32) != digest.digest():
            raise PeerError(f"ESP image: the SHA-256 at offset {end} does not match")
        end += 32
    if end != size:
        raise PeerError(f"ESP image: ends at offset {end}, the file has {size} bytes")
    return EspImage(chip_id, entry, tuple(segments), end)


def _xor(block: bytes) -> int:
    whole = int.from_bytes(block, "little")
    width = len(block)
    while width > 8:
        half = (width + 1) // 2
        whole = (whole >> (8 * half)) ^ (whole & ((1 << (8 * half)) - 1))
        width = half
    return reduce(xor, whole.to_bytes(width, "little"), 0)


def check_esp_image_untrusted(file: BinaryIO, size: int, hardware: str) -> EspImage:
    """As parse_esp_image_untrusted, and refuse an image for another chip than `hardware` (`esp32c3`, `esp32c3-board1`)."""
    image = parse_esp_image_untrusted(file, size)
    chip = hardware.split("-")[0]
    if chip not in CHIP_IDS:
        raise PeerError(
            f"hardware {hardware!r}: expected <chip> or <chip>-<board> with a chip of {', '.join(sorted(CHIP_IDS))}"
        )
    if image.chip_id != CHIP_IDS[chip]:
        names = [name for name, number in CHIP_IDS.items() if number == image.chip_id]
        raise PeerError(f"the image is for {names[0] if names else f'chip {image.chip_id:#x}'}, not for {chip}")
    return image
