"""devicefw/dfu/idf*.py as plain Python, over models of flash, NVS and ESP-IDF's bootloader: one board, from start to start."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootloader.sim.explore import torn
from bootloader.sim.images import SECTOR, Flash, image, public, trailer
from devicefw.sim.espidf import EspIdf, Window, otadata, slots_of, table_of, whole
from dfud.board.flashmap import APP, DATA, TABLE_AT, Part, encode_table
from dfud.wire.manifest import SIGNATURE_CONTEXT
from dfud.wire.subset import decode_untrusted, encode
from tests.devicefw.bankside import app_envelope

DEVICEFW = Path(__file__).parents[2] / "devicefw"
if str(DEVICEFW) not in sys.path:
    sys.path.insert(0, str(DEVICEFW))

CHIP = "esp32s3"
POWER_ON, RESET, WATCHDOG = 1, 2, 3  # machine.reset_cause()
SLOT_BYTES = 0x10000
TABLE = (
    Part(DATA, 0x02, 0x9000, 0x4000, "nvs"),
    Part(DATA, 0x00, 0xD000, 0x2000, "otadata"),
    Part(APP, 0x10, 0x10000, SLOT_BYTES, "ota_0"),
    Part(APP, 0x11, 0x20000, SLOT_BYTES, "ota_1"),
)
OLD, NEW = (image(tag, 6000, chip=9) for tag in ("old", "new"))
VERSIONS = {OLD: 1, NEW: 2}
NO_COLLECTOR = SimpleNamespace(collect=lambda: None)  # what the tests' own process holds takes it a tenth of a second, for each start


def envelope(data: bytes) -> bytes:
    return app_envelope(data, VERSIONS[data], flags=0, hardware=CHIP)


def identifier(private: Ed25519PrivateKey) -> bytes:
    return hashlib.sha256(public(private)).digest()[:8]


def signed(data: bytes, private: Ed25519PrivateKey, *, add: list[bytes], revoke: list[bytes]) -> bytes:
    """Return the envelope of an image whose manifest changes keys."""
    said = decode_untrusted(decode_untrusted(envelope(data), limit_bytes=1024)[0], limit_bytes=1024)
    said |= {9: add} | ({10: revoke} if revoke else {})
    manifest = encode(said)
    return encode([manifest, identifier(private), private.sign(SIGNATURE_CONTEXT + manifest)])


def put(flash: Flash, slot: int, data: bytes, said: bytes = b"") -> None:
    """Fill a slot: the image, blank, and its manifest behind it. said: another envelope."""
    at = TABLE[2 + slot].offset
    flash.put(at, data.ljust(SLOT_BYTES - SECTOR, b"\xff") + trailer(said or envelope(data)).ljust(SECTOR, b"\xff"))


def device(*, new: bool = True) -> Flash:
    """Return a flash as it was first flashed: OLD in slot 0, otadata blank; and NEW, whole, in the idle slot."""
    flash = Flash()
    flash.put(TABLE_AT, encode_table(TABLE))
    put(flash, 0, OLD)
    if new:
        put(flash, 1, NEW)
    return flash


class Reset(BaseException):
    """machine.reset()."""


class Forking(Flash):
    """Keeps what a power cut before or in each operation would have left, NVS with it. full: NVS takes nothing more."""

    __slots__ = ("cut", "full", "nvs")

    def __init__(self, sectors: dict[int, bytes], nvs: dict[str, bytes]) -> None:
        super().__init__(sectors)
        self.nvs = dict(nvs)
        self.full = False
        self.cut: list[tuple[Flash, dict[str, bytes]]] = []

    def erase(self, offset: int) -> None:
        self.cut += ((Flash(copy.sectors), dict(self.nvs)) for _, copy in torn(Flash(self.sectors), "erase", offset, b""))
        super().erase(offset)

    def program(self, offset: int, data: bytes) -> None:
        self.cut += ((Flash(copy.sectors), dict(self.nvs)) for _, copy in torn(Flash(self.sectors), "program", offset, data))
        super().program(offset, data)

    def commit(self, key: str, value: bytes) -> None:
        """NVS: whole, or not there."""
        if self.full:
            raise OSError(-0x1105, "ESP_ERR_NVS_NOT_ENOUGH_SPACE")
        self.cut.append((Flash(self.sectors), dict(self.nvs)))
        self.nvs[key] = value


def _esp32(flash: Forking, slot: int) -> Any:
    module: Any = ModuleType("esp32")
    parts = table_of(flash)

    class NVS:
        def __init__(self, namespace: str) -> None:
            assert namespace == "dfud"
            if flash.full and not flash.nvs:  # the namespace would be made
                raise OSError(-0x1105, "ESP_ERR_NVS_NOT_ENOUGH_SPACE")
            self._set: dict[str, bytes] = {}

        def get_blob(self, key: str, buffer: bytearray) -> int:
            if key not in flash.nvs:
                raise OSError(-0x1102, "ESP_ERR_NVS_NOT_FOUND")
            value = flash.nvs[key]
            if len(value) > len(buffer):
                raise OSError(-0x110C, "ESP_ERR_NVS_INVALID_LENGTH")
            buffer[: len(value)] = value
            return len(value)

        def set_blob(self, key: str, value: bytes) -> None:
            self._set[key] = bytes(value)

        def commit(self) -> None:
            for key, value in self._set.items():
                flash.commit(key, value)

    class Partition:
        TYPE_APP, TYPE_DATA, BOOT, RUNNING = 0, 1, 0, 1

        def __init__(self, name: str | int) -> None:
            label = f"ota_{slot}" if name == Partition.RUNNING else name
            self.part = next(part for part in parts if part.label == label)

        @staticmethod
        def find(kind: int, subtype: int = 0xFF) -> list[Partition]:
            return [Partition(p.label) for p in parts if p.type == kind and subtype in (0xFF, p.subtype)]

        def info(self) -> tuple[Any, ...]:
            return (*self.part, False)

        def readblocks(self, block: int, buffer: Any, offset: int = 0) -> None:
            buffer[:] = flash.read(self.part.offset + block * SECTOR + offset, len(buffer))

        def writeblocks(self, block: int, buffer: Any, offset: int) -> None:
            flash.program(self.part.offset + block * SECTOR + offset, bytes(buffer))

        def ioctl(self, operation: int, block: int) -> None:
            flash.erase(self.part.offset + block * SECTOR)

        def set_boot(self) -> None:
            if not whole(flash, self.part, CHIP):
                raise OSError(-5379, "ESP_ERR_OTA_VALIDATE_FAILED")
            otadata.set_boot(Window(flash, TABLE[1]), self.part.subtype - 0x10, len(slots_of(parts)))

        @staticmethod
        def mark_app_valid_cancel_rollback() -> None:
            if not otadata.mark_valid(Window(flash, TABLE[1])):
                raise OSError(-1)

    module.NVS, module.Partition = NVS, Partition
    return module


@contextmanager
def running(flash: Forking, slot: int, cause: int) -> Iterator[Any]:
    """Be the agent in this slot, at the beginning of a start; yields its Slots. What ends in machine.reset() is Reset."""
    machine: Any = ModuleType("machine")
    machine.reset_cause = lambda: cause

    def reset() -> None:
        raise Reset

    machine.reset = reset
    kept = {name: sys.modules.get(name) for name in ("esp32", "machine")}
    esp32 = _esp32(flash, slot)
    sys.modules.update(esp32=esp32, machine=machine)
    try:
        idfstart: Any = import_module("dfu.idfstart")
        idfstate: Any = import_module("dfu.idfstate")
        # RAM is none of the matter here: modules stay, and only what one start remembers is forgotten.
        idfstart.print = idfstart.clear = idfstate.clear = lambda *names: None
        errors: Any = import_module("dfu.errors")
        errors.gc = NO_COLLECTOR
        idfstate.settled.clear()
        slots = idfstart._Slots()
        idfstart.find(slots, esp32.Partition)
        idfstart.once(slots)
        yield slots
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def result(slots: Any) -> dict[int, Any] | None:
    """Return what the status would say of the last change of slots."""
    slots.diagnostics = None
    found: dict[int, Any] | None = import_module("dfu.result")._result(slots)
    return found


def confirmed(slots: Any) -> None:
    """Confirm what runs, as dfu.trial does."""
    m = import_module("dfu.manifest").stored(import_module("dfu.flash").envelope_of(slots.running, SLOT_BYTES))
    slots.state.append(**import_module("dfu.trial").confirmed(slots.state, m))


def switch(slots: Any) -> None:
    """As Update.switch()."""
    slots.state.append(slot=1 - slots.slot, phase=1, crashes=0, previous=1, outcome=0, reset=0, tried=0)


def told(slots: Any) -> None:
    slots.state.append(outcome=0, tried=0)
    import_module("dfu.idf").Ends().clear()


def end(slots: Any, code: int, text: str) -> None:
    import_module("dfu.idf").keep(slots.slot, code, text)


def boot(flash: Forking, *, rollback: bool = True) -> int | None:
    """Run the second stage; return the slot that it enters."""
    return EspIdf(CHIP, rollback=rollback).boot(flash).slot
