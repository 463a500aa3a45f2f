"""Firmware for simulated boards: valid ESP32-C3 images that carry the Python program the board runs once it has booted."""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import reduce
from operator import xor
from pathlib import Path

from dfud.model.espimage import CHIP_IDS

DROM, IROM, DRAM, IRAM = 0x3C000000, 0x42000000, 0x3FC90000, 0x40380000
ENTRY = 0x40380000
APP_DESCRIPTION_BYTES = 256
MARK = b"dfudprog"
PAGE = 0x10000
PROGRAMS = Path(__file__).with_name("programs")


def program(name: str, version: str) -> str:
    """Return the text of one of the programs in devicefw/sim/programs, as that version of itself."""
    return f"VERSION = {version!r}\n" + (PROGRAMS / f"{name}.py").read_text("utf-8")


def build(text: str, version: str, code: bytes = b"", data: bytes = b"", chip: str = "esp32c3") -> bytes:
    """Return an image with `text` in its DROM segment, `code` in flash behind it, and `data` in RAM. chip: what its header
    names; the addresses are an ESP32-C3's.

    esptool accepts it; the mask ROM's rules (segments in order, file offsets congruent to addresses) hold.
    """
    description = struct.pack("<II8x32s32s", 0xABCD5432, 0, version.encode()[:31], b"dfud-sim")
    drom = description.ljust(APP_DESCRIPTION_BYTES, b"\0") + carried(text)
    segments = [(IRAM, b"\x01\xa0\x01\xa0"), (DRAM, _words(data or b"dfud"))]  # c.j . twice
    out = bytearray(struct.pack("<BBBBIB3xHBHH4xB", 0xE9, 0, 2, 0x20, ENTRY, 0xEE, CHIP_IDS[chip], 0, 0, 99, 1))
    count = 0
    for address, content in [(DROM, _words(drom)), (IROM, _words(code or b"\x01\xa0\x01\xa0")), *segments]:
        if address in (DROM, IROM):
            # The cache maps 64 KB pages: a mapped segment's data must lie where its address says, modulo that.
            if count:
                gap = -(len(out) + 8) % PAGE
                pad = (gap if gap >= 8 else gap + PAGE) - 8
                out += struct.pack("<II", 0, pad) + bytes(pad)
                count += 1
            # One table maps both windows, so code and data must not share an entry.
            address += len(out) + 8
        out += struct.pack("<II", address, len(content)) + content
        count += 1
    out[1] = count
    end = len(out) + 16 & ~15
    out = out.ljust(end - 1, b"\0") + bytes([_checksum(out)])
    return bytes(out + hashlib.sha256(out).digest())


def carried(text: str) -> bytes:
    """Return the bytes that make an image carry the program, wherever they stand in it."""
    packed = zlib.compress(text.encode(), 9)
    return MARK + struct.pack("<II", len(packed), zlib.crc32(packed)) + packed


def program_of(image: bytes) -> str:
    """Return the program that an image carries. Raises ValueError if it carries none."""
    at = image.find(MARK)
    if at < 0:
        raise ValueError("the image carries no program")
    length, crc = struct.unpack_from("<II", image, at + 8)
    packed = image[at + 16 : at + 16 + length]
    if zlib.crc32(packed) != crc:
        raise ValueError("the image's program is damaged")
    return zlib.decompress(packed).decode()


def _words(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _checksum(image: bytes | bytearray) -> int:
    at, value = 24, 0xEF
    for _ in range(image[1]):
        (length,) = struct.unpack_from("<I", image, at + 4)
        value = reduce(xor, image[at + 8 : at + 8 + length], value)
        at += 8 + length
    return value
