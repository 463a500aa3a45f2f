"""ESP-IDF's second stage, as far as it chooses what is booted: which entry in otadata counts, rollback, and what it tries when an
image is not whole. Source: ESP-IDF, bootloader_utility.c; docs/other-boards.md says what it means for updates.

The flash is that of the board; its partition table says where everything is, as on the chip. Loading and mapping are not modelled.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import msgspec

from devicefw.sim.flash import FlashFile
from dfud.board.flashmap import APP, DATA, TABLE_AT, TABLE_BYTES, Part, decode_table_untrusted
from dfud.errors import PeerError
from dfud.model.espimage import CHIP_IDS, read_esp_image_untrusted

FACTORY = -1  # as the second stage numbers it
OTADATA, FACTORY_SUBTYPE, OTA_0 = 0x00, 0x00, 0x10
MACHINES = {
    "esp32": "Generic ESP32 module with ESP32",
    "esp32s2": "Generic ESP32S2 module with ESP32S2",
    "esp32s3": "Generic ESP32S3 module with ESP32S3",
    "esp32c3": "ESP32C3 module with ESP32C3",
    "esp32c6": "ESP32C6 module with ESP32C6",
}


def _shared() -> Any:
    """Return the boards' own module about otadata: there is one, for both sides."""
    spec = importlib.util.spec_from_file_location("otadata", Path(__file__).parent / "shims" / "otadata.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


otadata: Any = _shared()


class Booted(msgspec.Struct, frozen=True):
    """slot: number of the OTA slot that is entered, FACTORY, or None: nothing can be booted."""

    slot: int | None
    console: str


class Window:
    """One partition of a flash, by offsets of its own."""

    def __init__(self, flash: Any, part: Part) -> None:
        self._flash, self._at = flash, part.offset

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._flash.read(self._at + offset, size))

    def erase(self, offset: int) -> None:
        self._flash.erase(self._at + offset)

    def program(self, offset: int, data: bytes) -> None:
        self._flash.program(self._at + offset, data)


def table_of(flash: Any) -> tuple[Part, ...]:
    return decode_table_untrusted(flash.read(TABLE_AT, TABLE_BYTES))


def slots_of(parts: tuple[Part, ...]) -> list[Part]:
    """Return ota_0, ota_1 and so on, as far as they follow one another."""
    found: list[Part] = []
    while part := next((p for p in parts if p.type == APP and p.subtype == OTA_0 + len(found)), None):
        found.append(part)
    return found


def whole(flash: Any, part: Part, chip: str) -> bool:
    """Say whether the partition holds an image for the chip whose checksum and SHA-256 are right."""
    try:
        image = read_esp_image_untrusted(io.BytesIO(bytes(flash.read(part.offset, part.size))), part.size)
    except PeerError:
        return False
    return image.chip_id == CHIP_IDS[chip]


class EspIdf:
    """A chip's second stage. rollback: it was built with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE, as MicroPython's are since 1.21."""

    def __init__(self, chip: str, *, rollback: bool = True) -> None:
        self.chip, self.rollback = chip, rollback

    def boot(self, flash: FlashFile | Any, **reset: Any) -> Booted:
        """Choose what is booted, and write what goes with it. Raises what the flash raises: a power cut."""
        parts = table_of(flash)
        slots = slots_of(parts)
        factory = next((p for p in parts if p.type == APP and p.subtype == FACTORY_SUBTYPE), None)
        data = next((p for p in parts if p.type == DATA and p.subtype == OTADATA), None)
        chosen, blank = self._chosen(Window(flash, data), len(slots), factory) if data else (FACTORY, False)
        said = []
        tries = [*range(chosen, FACTORY - 1, -1), *range(chosen + 1, len(slots))]
        for index in tries:
            part = factory if index == FACTORY else slots[index]
            if part is None:
                continue
            if whole(flash, part, self.chip):
                if blank and index != FACTORY and data:
                    otadata.write(Window(flash, data), 0, index + 1, otadata.VALID)
                said.append(f"I boot: Loaded app from partition at offset {part.offset:#x}")
                return Booted(index, "\n".join(said))
            said.append(f"E boot: {'Factory app' if index == FACTORY else f'OTA app slot {index}'} is not bootable")
        return Booted(None, "\n".join([*said, "E boot: No bootable app partitions in the partition table"]))

    def _chosen(self, data: Window, count: int, factory: Part | None) -> tuple[int, bool]:
        """Return the index to begin with, and whether otadata is as it came from the factory."""
        found = [list(entry) for entry in otadata.entries(data)]
        if self.rollback:
            for which in (0, 1):
                if found[which][1] == otadata.PENDING:
                    found[which][1] = otadata.ABORTED
                    otadata.write(data, which, found[which][0], otadata.ABORTED, found[which][2])
        if not count or (otadata.out(found[0]) and otadata.out(found[1])):
            if factory is not None:
                return FACTORY, False
            return 0, not (otadata.whole(found[0]) or otadata.whole(found[1]))
        which = otadata.active(found)
        if which < 0:
            return FACTORY, False
        if self.rollback and found[which][1] == otadata.NEW:
            otadata.write(data, which, found[which][0], otadata.PENDING)
        return (found[which][0] - 1) % count, False
