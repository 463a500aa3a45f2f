"""A download of stock MicroPython as far as a simulator can have one: a merged file, whose application is a simulated board's."""

from __future__ import annotations

from bootloader.sim.images import image
from devicefw.sim.firmware import build
from dfud.board.flashmap import APP, DATA, Part, encode_table

# ESP-IDF's single application table, as ESP32_GENERIC_C3 is built with.
STOCK_TABLE = (
    Part(DATA, 0x02, 0x9000, 0x6000, "nvs"),
    Part(DATA, 0x01, 0xF000, 0x1000, "phy_init"),
    Part(APP, 0x00, 0x10000, 0x1F0000, "factory"),
)


def micropython(version: str, start: str = "", code: bytes = b"") -> bytes:
    """Return an application image; start: what this build of MicroPython runs before boot.py, as a frozen module would."""
    return build(start, version, code)


def download(application: bytes, *, table: tuple[Part, ...] = STOCK_TABLE) -> bytes:
    """Return the merged file around an application, as it is downloaded."""
    flash = bytearray(b"\xff" * 0x10000) + application
    second_stage, rows = image("stage2"), encode_table(table)
    flash[: len(second_stage)] = second_stage
    flash[0x8000 : 0x8000 + len(rows)] = rows
    return bytes(flash)
