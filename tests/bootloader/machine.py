"""The bootloader's ELF for tests, and the fixtures of a device."""

from __future__ import annotations

import functools

from bootloader.sim.boot import ELF, Bootloader, BootResult
from bootloader.sim.images import KEYS_AT, STATE_AT, Flash, envelope, image, key, key_record, state
from tests.real_parts import require

POWER_ON, SOFTWARE, WATCHDOG, USB = 0x1, 0xC, 0x10, 0x15
PANIC = 0x80040004
OLD, NEW = image("old", 5000), image("new", 9000)
SIGNER = key(1)


@functools.cache
def machine() -> Bootloader:
    return Bootloader(ELF)


def boot(flash: Flash, reason: int = POWER_ON, *, store0: int = 0, store6: int = 0, sram: bytes | None = None) -> BootResult:
    """Boot once; the registers are thrown away."""
    require("unicorn")
    require("riscv-gcc")
    return machine().boot(flash, reset_reason=reason, store=[store0, 0, 0, 0, 0, 0, store6, 0], sram=sram)


def crash(flash: Flash) -> BootResult:
    return boot(flash, SOFTWARE, store6=PANIC)


def device(*, signed: bool = False, **values: int) -> Flash:
    """Return a flash with OLD in slot 0 and NEW in slot 1; `values` go into the state record."""
    signer = SIGNER if signed else None
    flash = Flash()
    flash.install(0, OLD, envelope(OLD, signer=signer))
    flash.install(1, NEW, envelope(NEW, signer=signer, version="1.1", sequence=2))
    if signed:
        flash.put(KEYS_AT, key_record(SIGNER))
    flash.put(STATE_AT, state(**{"slot": 1, "phase": 1, "previous": 1, **values}))
    return flash
