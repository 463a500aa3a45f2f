"""How many instructions the bootloader's decoder takes: the shipped ELF under Unicorn installs the package from the stage.

The flash and the SHA-256 are the ROM's and the hardware's and count as nothing, so what is counted is decoding, and some
thousands of instructions of the bootloader's own.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

from unicorn import UC_HOOK_CODE
from unicorn.unicorn_py3 import unicorn as _binding

from bootloader.sim.boot import Bootloader
from bootloader.sim.images import Flash, envelope, stage, state
from dfud.package.file import PackageFile

ROOT = Path(__file__).parents[1]
STAGE_BYTES = 0x60000 - 4096
POWER_ON = 1
SLOT_INSTALLED = 1
INSTALL = 2
# Unicorn calls this for every instruction; a callback in Python would take minutes.
COUNTER = "void count(void *uc, unsigned long long at, unsigned size, void *to) { ++*(unsigned long long *)to; }\n"


class NotInstalled(Exception):
    """The bootloader does not take the package; the message is what it said."""


def counter() -> Any:
    """Return the counting callback, compiled by this machine's compiler."""
    directory = ROOT / "build" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "count.so"
    if not library.exists():
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=COUNTER, text=True, check=True)
    return ctypes.CDLL(str(library)).count


def fits(package: PackageFile) -> bool:
    return sum(len(chunk) + 3 & ~3 for chunk in package.chunks) <= STAGE_BYTES


def instructions(package: PackageFile, old: bytes, new: bytes) -> int:
    """Return the instructions from the reset to the entry of the installed image. Raises NotInstalled."""
    flash = Flash()
    flash.install(0, old, envelope(old, sequence=1))
    signed = envelope(new, sequence=2)
    base = package.base_sha256 or b"\xff" * 32
    flash.put(0x39A000, stage(list(package.chunks), signed, kind=package.kind, base=base))
    flash.put(0xD000, state(slot=0, phase=INSTALL))
    machine = Bootloader()
    total = ctypes.c_ulonglong(0)
    handle = ctypes.c_size_t()
    library, engine = _binding.uclib, machine.uc._uch
    address = ctypes.cast(counter(), ctypes.c_void_p)
    add = library.uc_hook_add
    begin, end = ctypes.c_uint64(1), ctypes.c_uint64(0)
    failed = add(engine, ctypes.byref(handle), UC_HOOK_CODE, address, ctypes.byref(total), begin, end)
    assert not failed, f"unicorn: error {failed}"
    result = machine.boot(flash, reset_reason=POWER_ON, store=[0] * 8)
    if result.slot != SLOT_INSTALLED:
        raise NotInstalled(result.console)
    assert flash.read(0x1C0000, len(new)) == new, "another image was installed"
    return total.value
