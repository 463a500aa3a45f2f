"""devicefw/dfu/banks.py as plain Python, over the bootloader's model of flash; and images for banks."""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bootloader.sim.images import SECTOR, STATE_AT, Flash, trailer
from dfud.wire.subset import encode

DEVICEFW = Path(__file__).parents[2] / "devicefw"
if str(DEVICEFW) not in sys.path:
    sys.path.insert(0, str(DEVICEFW))

# The agent's own, which have no types.
banks: Any = import_module("dfu.banks")
agent_flash: Any = import_module("dfu.flash")
State: Any = import_module("dfu.state").State

BANK_AT, BANK_BYTES = (0x10000, 0x20000), 3 * SECTOR
OLD, NEW = (hashlib.sha256(name).digest() * 160 for name in (b"old", b"new"))  # more than a sector


def app_envelope(data: bytes, sequence: int, *, flags: int = 4, between: tuple[int, int] | None = None, **over: Any) -> bytes:
    """Return the unsigned envelope of an app image."""
    fields = {"app": "lamps", "version": f"1.{sequence}", "hardware": "esp32c3", "floor": 0} | over
    said: dict[int, Any] = {0: 1, 1: fields["app"], 2: fields["version"], 3: fields["hardware"], 4: sequence, 5: len(data)}
    said |= {6: hashlib.sha256(data).digest(), 7: flags}
    if fields["floor"]:
        said[8] = fields["floor"]
    if between is not None:
        said[11] = list(between)
    return encode([encode(said), b"", b""])


class Part:
    """esp32.Partition over a Flash: programs are cut at sectors, as the chip's driver does."""

    def __init__(self, flash: Flash, at: int, size: int) -> None:
        self._flash, self._at, self._size = flash, at, size

    def info(self) -> tuple[Any, ...]:
        return (1, 0, self._at, self._size, "", False)

    def readblocks(self, block: int, buffer: Any, offset: int = 0) -> None:
        buffer[:] = self._flash.read(self._at + block * SECTOR + offset, len(buffer))

    def writeblocks(self, block: int, buffer: Any, offset: int) -> None:
        self._flash.program(self._at + block * SECTOR + offset, bytes(buffer))

    def ioctl(self, operation: int, block: int) -> None:
        self._flash.erase(self._at + block * SECTOR)


def found(flash: Flash) -> Any:
    """Return the banks as a start finds them."""
    parts = [Part(flash, at, BANK_BYTES) for at in BANK_AT]
    return banks.find(parts, State(Part(flash, STATE_AT, 2 * SECTOR)), bytearray(SECTOR))


def put(flash: Flash, number: int, data: bytes, envelope: bytes) -> None:
    """Fill a bank as a factory would."""
    flash.put(BANK_AT[number], data.ljust(BANK_BYTES - SECTOR, b"\xff"))
    flash.put(BANK_AT[number] + BANK_BYTES - SECTOR, trailer(envelope).ljust(SECTOR, b"\xff"))


def install(found: Any, data: bytes, envelope: bytes) -> None:
    """Do the flash operations of an update into the idle bank, as dfu.update does."""
    banks.begin(found)
    last = BANK_BYTES // SECTOR - 1
    if not agent_flash.blank(found.idle, last * SECTOR, SECTOR):
        agent_flash.erase(found.idle, last)
    for at in range(0, len(data), SECTOR):
        page = data[at : at + SECTOR]
        if not agent_flash.holds(found.idle, at, page):
            agent_flash.erase(found.idle, at // SECTOR)
            agent_flash.write(found.idle, at, page)
    if agent_flash.envelope_of(found.idle, BANK_BYTES) != envelope:
        agent_flash.erase(found.idle, last)
        agent_flash.write_trailer(found.idle, BANK_BYTES, envelope)
    previous = int(found.manifest is not None)
    found.state.append(slot=1 - found.slot, phase=1, crashes=0, previous=previous, outcome=0, reset=0, tried=0)
