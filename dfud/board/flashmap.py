"""The map of the flash (bootloader/FORMAT.md, "Map") for each size, and the partition table that tells applications of it.

The bootloader has the map of its partitions compiled in, so they lie at the same place in every size; a larger flash has larger banks
for the application, and a larger file system, behind them. In 4 MB the banks are taken from the stage, up to where the bootloader
keeps the table of a mapped delta while it installs one: that place stays free.
Source of the table's format: ESP-IDF, "Partition Tables".
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from dfud.errors import PeerError

SECTOR_BYTES = 4096
SLOT_ALIGN_BYTES = 0x10000  # the cache maps pages of 64 KB
BOOTLOADER_MAX_BYTES = 0x6000
TABLE_AT, TABLE_BYTES = 0x8000, 0xC00
TABLE_END = TABLE_AT + SECTOR_BYTES
APP, DATA = 0, 1
SIZES = {"4MB": 4 << 20, "8MB": 8 << 20, "16MB": 16 << 20}
_ROW = struct.Struct("<HBBII16sI")
_ROW_MAGIC, _DIGEST_MAGIC = 0x50AA, b"\xeb\xeb"


class Part(NamedTuple):
    """One partition: type and subtype as ESP-IDF numbers them, place and size in bytes."""

    type: int
    subtype: int
    offset: int
    size: int
    label: str

    @property
    def end(self) -> int:
        return self.offset + self.size


_LOW = (
    Part(DATA, 0x02, 0x9000, 0x4000, "nvs"),
    Part(DATA, 0x40, 0xD000, 0x2000, "dfu_state"),
    Part(DATA, 0x01, 0xF000, 0x1000, "phy_init"),
    Part(APP, 0x10, 0x10000, 0x1B0000, "ota_0"),
    Part(APP, 0x11, 0x1C0000, 0x1B0000, "ota_1"),
)
_STAGE = Part(DATA, 0x42, 0x39A000, 0x60000, "dfu_stage")
_HIGH = (
    Part(DATA, 0x41, 0x3FA000, 0x2000, "dfu_keys"),
    Part(DATA, 0x43, 0x3FC000, 0x4000, "dfu_diag"),
)
_VFS_4MB = Part(DATA, 0x81, 0x370000, 0x2A000, "vfs")
# What a device was given in the factory it keeps: the maps of those without banks.
WITHOUT_BANKS = {
    "4MB": (*_LOW, _VFS_4MB, _STAGE, *_HIGH),
    "8MB": (*_LOW, _STAGE, *_HIGH, Part(DATA, 0x81, 0x400000, 0x400000, "vfs")),
    "16MB": (*_LOW, _STAGE, *_HIGH, Part(DATA, 0x81, 0x400000, 0xC00000, "vfs")),
}
APP_A, APP_B, APP_STATE = 0x44, 0x45, 0x46  # subtypes
BOOTLOADERS_TABLE = (0x3F6000, 0x3FA000)  # DFU_TABLE_AT: no partition that keeps anything lies in it, but the stage


def _banks(a: int, b: int, size: int, state: int) -> tuple[Part, ...]:
    return (
        Part(DATA, APP_A, a, size, "app_a"),
        Part(DATA, APP_B, b, size, "app_b"),
        Part(DATA, APP_STATE, state, 0x2000, "app_state"),
    )


# What a factory leaves blank, bank B, stands last in a large flash: the file that is flashed ends before it.
LAYOUTS = {
    "4MB": (
        *_LOW,
        _VFS_4MB,
        _STAGE._replace(size=0x2A000),
        *_banks(0x3C4000, 0x3DC000, 0x18000, 0x3F4000),
        *_HIGH,
    ),
    "8MB": (
        *_LOW,
        _STAGE,
        *_HIGH,
        *_banks(0x400000, 0x780000, 0x80000, 0x370000),
        Part(DATA, 0x81, 0x480000, 0x300000, "vfs"),
    ),
    "16MB": (
        *_LOW,
        _STAGE,
        *_HIGH,
        *_banks(0x400000, 0xF00000, 0x100000, 0x370000),
        Part(DATA, 0x81, 0x500000, 0xA00000, "vfs"),
    ),
}
BANK_TRAILER_BYTES = SECTOR_BYTES  # a bank's last sector, as a slot's


def bank_capacity(flash: str) -> int:
    """Return how large an app image may be in the layout of this size of flash."""
    return find(LAYOUTS[flash], "app_a").size - BANK_TRAILER_BYTES


def find(parts: tuple[Part, ...], label: str) -> Part:
    """Return the partition of this name. Raises PeerError."""
    for part in parts:
        if part.label == label:
            return part
    raise PeerError(f"partition table: no partition {label!r}, expected one of {', '.join(p.label for p in parts)}")


def check(parts: tuple[Part, ...], flash_bytes: int) -> None:
    """Raise PeerError that names the first two partitions that overlap, or the one that is out of place."""
    before: Part | None = None
    for part in sorted(parts, key=lambda p: p.offset):
        name = f"partition {part.label!r} at {part.offset:#x}"
        align = SLOT_ALIGN_BYTES if part.type == APP else SECTOR_BYTES
        if part.offset % align or part.size % SECTOR_BYTES or not part.size:
            raise PeerError(
                f"{name}: size {part.size:#x}, expected an offset that is a multiple of {align:#x} and a size of whole sectors"
            )
        if part.offset < TABLE_END:
            raise PeerError(
                f"{name}: overlaps bootloader and partition table, which end at {TABLE_END:#x}; move it behind them"
            )
        if before is not None and part.offset < before.end:
            raise PeerError(
                f"{name}: overlaps {before.label!r}, which ends at {before.end:#x}; move it, or make that one smaller"
            )
        if part.end > flash_bytes:
            raise PeerError(f"{name}: ends at {part.end:#x}, the flash at {flash_bytes:#x}; take a larger --flash")
        before = part


def encode_table(parts: tuple[Part, ...]) -> bytes:
    """Return the table as ESP-IDF reads it, with its MD5 row, TABLE_BYTES long."""
    rows = b"".join(_ROW.pack(_ROW_MAGIC, p.type, p.subtype, p.offset, p.size, p.label.encode(), 0) for p in parts)
    # MD5 is what the format has for its checksum.
    rows += _DIGEST_MAGIC + b"\xff" * 14 + hashlib.md5(rows, usedforsecurity=False).digest()
    return rows.ljust(TABLE_BYTES, b"\xff")


def decode_table_untrusted(table: bytes) -> tuple[Part, ...]:
    """Return the rows of a table, unjudged (see check). Raises PeerError if it is none, or its MD5 row does not match."""
    parts = []
    for at in range(0, len(table) - _ROW.size + 1, _ROW.size):
        row = table[at : at + _ROW.size]
        if row[:2] == _DIGEST_MAGIC:
            if row[16:] != hashlib.md5(table[:at], usedforsecurity=False).digest():
                raise PeerError(
                    f"partition table: the MD5 at {TABLE_AT + at:#x} does not match its rows: the file is damaged"
                )
            break
        magic, kind, subtype, offset, size, label, _ = _ROW.unpack(row)
        if magic != _ROW_MAGIC:
            break
        parts.append(Part(kind, subtype, offset, size, label.partition(b"\0")[0].decode("utf-8", "replace")))
    if not parts:
        raise PeerError(f"no partition table at {TABLE_AT:#x}: expected rows that start with aa 50")
    return tuple(parts)
