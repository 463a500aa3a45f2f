"""What the tests of boards share: downloads of the simulator's, and an application of two modules."""

from __future__ import annotations

from pathlib import Path

from devicefw.sim.stock import download, micropython

__all__ = ["application", "download", "micropython"]

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


def application(folder: Path, text: str = APPLICATION) -> Path:
    """Write an application of two modules, return its folder."""
    folder.mkdir()
    (folder / "main.py").write_text(text)
    (folder / "lamp.py").write_text(LAMP)
    (folder / "colours.txt").write_text("red\n" * 100)
    return folder
