"""A download of stock MicroPython as far as a test can have one: a merged file, whose application is a simulated board's."""

from __future__ import annotations

from pathlib import Path

from bootloader.sim.images import image
from devicefw.sim.firmware import build
from dfud.board.flashmap import APP, DATA, Part, encode_table

# ESP-IDF's single application table, as ESP32_GENERIC_C3 is built with.
STOCK_TABLE = (
    Part(DATA, 0x02, 0x9000, 0x6000, "nvs"),
    Part(DATA, 0x01, 0xF000, 0x1000, "phy_init"),
    Part(APP, 0x00, 0x10000, 0x1F0000, "factory"),
)
APPLICATION = """import asyncio

import dfu
import lamp


async def main():
    lamp.on()
    await asyncio.sleep_ms(50)
    dfu.confirm()
    print("app: confirmed")
"""
LAMP = """def on():
    print("app: lamp is on")
"""


def micropython(version: str, start: str = "") -> bytes:
    """Return an application image; start: code that this build of MicroPython runs before boot.py, as a frozen module would."""
    return build(start, version)


def download(application: bytes, *, table: tuple[Part, ...] = STOCK_TABLE) -> bytes:
    """Return the merged file around an application, as it is downloaded."""
    flash = bytearray(b"\xff" * 0x10000) + application
    second_stage, rows = image("stage2"), encode_table(table)
    flash[: len(second_stage)] = second_stage
    flash[0x8000 : 0x8000 + len(rows)] = rows
    return bytes(flash)


def application(folder: Path, text: str = APPLICATION) -> Path:
    """Write an application of two modules, return its folder."""
    folder.mkdir()
    (folder / "main.py").write_text(text)
    (folder / "lamp.py").write_text(LAMP)
    (folder / "colours.txt").write_text("red\n" * 100)
    return folder
