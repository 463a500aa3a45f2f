"""Boards without dfud's bootloader, for tests: a flash as a stock build with two OTA slots has it, and images for it."""

from __future__ import annotations

from dfud.board.flashmap import APP, DATA, TABLE_AT, Part, encode_table

# MicroPython's ports/esp32/partitions-4MiB-ota.csv.
OTA_TABLE = (
    Part(DATA, 0x02, 0x9000, 0x4000, "nvs"),
    Part(DATA, 0x00, 0xD000, 0x2000, "otadata"),
    Part(DATA, 0x01, 0xF000, 0x1000, "phy_init"),
    Part(APP, 0x10, 0x10000, 0x180000, "ota_0"),
    Part(APP, 0x11, 0x190000, 0x180000, "ota_1"),
    Part(DATA, 0x81, 0x310000, 0xF0000, "vfs"),
)


def flashed(image: bytes, table: tuple[Part, ...] = OTA_TABLE, label: str = "ota_0") -> bytes:
    """Return a flash with the image where a first flashing puts it, otadata blank."""
    flash = bytearray(b"\xff" * 0x400000)
    rows, at = encode_table(table), next(part.offset for part in table if part.label == label)
    flash[TABLE_AT : TABLE_AT + len(rows)] = rows
    flash[at : at + len(image)] = image
    return bytes(flash)
