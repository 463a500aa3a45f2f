"""Reading ESP32 application images: enough to tell whether an image is whole, an application's, and made for the stated chip.

Source: esptool's documentation of the firmware image format; ESP-IDF esp_app_format.h and esp_app_desc.h.
"""

from __future__ import annotations

import hashlib
import re
import struct
from functools import reduce
from operator import xor
from typing import BinaryIO

import msgspec

from dfud.errors import PeerError
from dfud.model.oddfile import apps_of_table_untrusted, behind_untrusted, foreign_untrusted

MAGIC = 0xE9
DESCRIPTION_MAGIC = 0xABCD5432  # of esp_app_desc_t, which the first segment of every application starts with
DESCRIPTION_AT = 32
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
_CHIP = re.compile(
    rf"esp32(?:-?({'|'.join(name[5:] for name in CHIP_IDS if name != 'esp32')}))?(?=-|\Z)", re.IGNORECASE | re.ASCII
)


def hardware_name(given: str) -> str:
    """Return the canonical form of a hardware's name: `ESP32-C3` and `esp32-c3-board1` are `esp32c3` and `esp32c3-board1`.

    What names no chip of CHIP_IDS stays as it is, and so does the board's part.
    """
    found = _CHIP.match(given)
    return "esp32" + (found[1] or "").lower() + given[found.end() :] if found else given


class Segment(msgspec.Struct, frozen=True):
    """address: where it is loaded or mapped; offset: of its data in the file; size in bytes."""

    address: int
    offset: int
    size: int


class EspImage(msgspec.Struct, frozen=True):
    """described: it has an application description, which a bootloader has not."""

    chip_id: int
    entry: int
    segments: tuple[Segment, ...]
    size: int
    described: bool


def parse_esp_image_untrusted(file: BinaryIO, size: int) -> EspImage:
    """Read and verify the image of `size` bytes that `file` (seekable) is: header, segments, XOR checksum, SHA-256.

    Raises PeerError that says what is wrong at which offset, or what the file is instead; nothing else but the file's own OSError.
    """
    try:
        image = read_esp_image_untrusted(file, size)
    except PeerError:
        file.seek(0)
        told = foreign_untrusted(file.read(64)) or merged_untrusted(file, size)
        if told:
            raise PeerError(told) from None
        raise
    if image.size != size:
        told = merged_untrusted(file, size)
        if not told:
            told = f"ESP image: ends at offset {image.size}; {behind_untrusted(file, size, image.size)}"
        raise PeerError(told)
    return image


def merged_untrusted(file: BinaryIO, size: int) -> str:
    """Say how to cut the application out of a file that is the content of a whole flash, or "" if it is none."""
    apps = apps_of_table_untrusted(file)
    what = "not one ESP image: this is a merged file of a whole flash (partition table at 0x8000)"
    for at in apps:
        file.seek(at)
        if file.read(1)[:1] != bytes([MAGIC]):
            continue
        # The first one alone: a table names up to 96, and each is read to its end.
        try:
            found = read_esp_image_untrusted(file, size, at)
        except PeerError as error:
            return f"{what}, and its application at {at:#x} is damaged: {error}"
        step = 16  # images end on it
        cut = f"`dd if=FILE of=app.bin bs={step} skip={at // step} count={found.size // step}`"
        return f"{what}; cut its application out with {cut}, or let dfuctl do that with --app-at {at:#x}"
    if apps:
        return f"{what}, and none of its application partitions ({', '.join(f'{at:#x}' for at in apps[:4])}) holds an image"
    return ""


def read_esp_image_untrusted(file: BinaryIO, size: int, at: int = 0) -> EspImage:
    """Read and verify the image that starts at offset `at` of a file of `size` bytes, whatever stands behind it.

    Offsets in the result and in errors are the image's own. Raises as parse_esp_image_untrusted.
    """
    size -= at
    file.seek(at)
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
    description = b""
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
            if position == DESCRIPTION_AT and left == length:
                description = block[:4]
            digest.update(block)
            checksum ^= _xor(block)
            left -= len(block)
        position += length
    end = (position + 16) & ~15
    padding = file.read(end - position)
    if len(padding) < end - position:
        raise PeerError(f"ESP image: ends before its checksum byte at offset {end - 1}: the file was cut off")
    if padding[-1] != checksum:
        raise PeerError(f"ESP image: the checksum byte at offset {end - 1} does not match the segments")
    digest.update(padding)
    if hashed:
        appended = file.read(32)
        if len(appended) < 32:
            raise PeerError(
                f"ESP image: ends within its SHA-256 at offset {end}, of which {len(appended)} of 32 bytes are there: the file was "
                "cut off; copy or build it again"
            )
        if appended != digest.digest():
            raise PeerError(f"ESP image: the SHA-256 at offset {end} does not match")
        end += 32
    described = description == DESCRIPTION_MAGIC.to_bytes(4, "little")
    return EspImage(chip_id=chip_id, entry=entry, segments=tuple(segments), size=end, described=described)


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
    chip = hardware_name(hardware).split("-")[0]
    if chip not in CHIP_IDS:
        raise PeerError(
            f"hardware {hardware!r}: expected <chip> or <chip>-<board> with a chip of {', '.join(sorted(CHIP_IDS))}"
        )
    if image.chip_id != CHIP_IDS[chip]:
        names = [name for name, number in CHIP_IDS.items() if number == image.chip_id]
        made_for = names[0] if names else f"chip {image.chip_id:#x}"
        raise PeerError(
            f"the image is for {made_for}, not for {chip}: hardware {hardware!r}, expected {made_for} or {made_for}-<board>"
            if names
            else f"the image is for {made_for}, not for {chip}"
        )
    return image


def check_application_untrusted(file: BinaryIO, size: int, hardware: str) -> EspImage:
    """As check_esp_image_untrusted, and refuse what has no application description: a second-stage bootloader above all."""
    image = check_esp_image_untrusted(file, size, hardware)
    if not image.described:
        raise PeerError(
            f"ESP image: no application description ({DESCRIPTION_MAGIC:08x}) at offset {DESCRIPTION_AT}: this is a second-stage "
            "bootloader or another program that is no application. Take the application's image (ESP-IDF: build/PROJECT.bin), or "
            "give --raw to take the file as it is"
        )
    return image
