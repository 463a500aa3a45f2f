"""What a file is that should have been one ESP image: the words for it, and what to do. Pure.

It judges no image; espimage.py does, and asks here when it has refused one. Nothing here reads more than a few blocks, but for
padding, which is read to its end or to the first byte that is none.
Source: ESP-IDF, "Partition Tables" (binary format) and "Secure Boot V2" (signature block); espsecure; UF2 specification.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import BinaryIO

TABLE_AT = 0x8000
TABLE_BYTES = 0xC00
_ROW = struct.Struct("<HBBII16sI")
_ROW_MAGIC = 0x50AA
_FLASH_MAX_BYTES = 1 << 28
_PAGE_BYTES = 0x1000
# A merged file starts where the chip's ROM looks for the bootloader, or at 0: ESP32 and S2 at 0x1000, P4 at 0x2000.
_STARTS = (0, 0x1000, 0x2000)
SECTOR_BYTES = 4096
_BLOCK_MAGIC, _BLOCK_VERSIONS, _BLOCK_BYTES = (
    0xE7,
    (2, 3),
    1200,
)  # RSA, ECDSA; the CRC of the first 1196 bytes stands last
_V1_BYTES = 68  # a version of 0, and 64 bytes of ECDSA
_HEX = re.compile(rb":[0-9A-Fa-f]{10,}")


def foreign_untrusted(head: bytes) -> str:
    """Return what a file with these first bytes (64 are enough) is, and the tool that makes an image of it; or ""."""
    if head.startswith(b"\x7fELF"):
        what, tool = "an ELF file", "`esptool --chip CHIP elf2image -o app.bin FILE` (ESP-IDF writes build/PROJECT.bin)"
    elif head.startswith(b"UF2\n\x57\x51\x5d\x9e"):
        what, tool = "a UF2 file", "`uf2conv.py --convert --output app.bin FILE`"
    elif _HEX.match(head):
        what, tool = "an Intel HEX file", "`objcopy -I ihex -O binary FILE app.bin`"
    else:
        return ""
    return f"not an ESP image: this is {what}; make an image with {tool}, or give --raw to take the file as it is"


def apps_of_table_untrusted(file: BinaryIO) -> list[int]:
    """Return the offsets in the file of the application partitions, in order, if it is a flash's content; else []."""
    for start in _STARTS:
        file.seek(TABLE_AT - start)
        apps = _apps(file.read(TABLE_BYTES))
        if apps:
            return sorted(offset - start for offset in apps)
    return []


def _apps(table: bytes) -> list[int]:
    apps = []
    for at in range(0, len(table) - _ROW.size + 1, _ROW.size):
        magic, kind, _, offset, size, _, _ = _ROW.unpack_from(table, at)
        if magic != _ROW_MAGIC:
            break
        if offset % _PAGE_BYTES or offset <= TABLE_AT or not size or offset + size > _FLASH_MAX_BYTES:
            return []
        if kind == 0:
            apps.append(offset)
    return apps


def behind_untrusted(file: BinaryIO, size: int, end: int) -> str:
    """Say what stands behind an image that ends at `end` in a file of `size` bytes, and how to get rid of it."""
    cut = f"cut the image out with `head -c {end} FILE > app.bin`"
    unsigned = (
        f"take the file that was signed (ESP-IDF: build/PROJECT-unsigned.bin), or {cut}; dfud has its own signatures"
    )
    block = -end % SECTOR_BYTES + end
    if _is_block_v2(file, block):
        return f"a secure boot signature block (version 2) follows at offset {block}: {unsigned}"
    file.seek(end)
    first = file.read(_V1_BYTES)
    if size - end == _V1_BYTES and first[:4] == bytes(4) and any(first):
        return f"a secure boot signature (version 1) follows at offset {end}: {unsigned}"
    for value in (b"\xff", b"\0"):
        if first[:1] == value and _is_filled(file, end, value):
            return f"{size - end} bytes of padding ({value.hex()}) follow: {cut}"
    return f"the file has {size} bytes, and what follows is no padding and no signature: {cut}, or find out what was appended"


def _is_block_v2(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES or block[0] != _BLOCK_MAGIC or block[1] not in _BLOCK_VERSIONS:
        return False
    return zlib.crc32(block[:-4]) == int.from_bytes(block[-4:], "little")


def _is_filled(file: BinaryIO, at: int, value: bytes) -> bool:
    file.seek(at)
    while block := file.read(1 << 16):
        if block.strip(value):
            return False
    return True
