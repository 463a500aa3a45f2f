"""The core as a library of this machine, with the undefined-behaviour sanitizer on."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from pathlib import Path

from filelock import FileLock

from tests.real_parts import require

ROOT = Path(__file__).parents[2]
FLASH_BYTES = 4 << 20


def made(*targets: str) -> None:
    """Have make bring targets of the bootloader up to date; one worker at a time, for they share what they are made of."""
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / ".bootloader.lock"):
        subprocess.run(["make", "-s", "-C", str(ROOT / "bootloader"), *targets], check=True)


@functools.cache
def core() -> ctypes.CDLL:
    require("cc")
    made("host")
    library = ctypes.CDLL(str(ROOT / "build" / "bootloader" / "libdfucore.so"))
    library.host_sizes.restype = ctypes.c_uint32
    return library


def zstd(frame: bytes, size: int, prefix: bytes = b"") -> tuple[int, bytes]:
    """Return (error, output); the output's buffer is exactly `size`."""
    out = ctypes.create_string_buffer(size) if size else ctypes.create_string_buffer(1)
    error = core().host_zstd(frame, len(frame), prefix, len(prefix), out, size)
    return error, out.raw[:size]


@functools.cache
def _flash() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(FLASH_BYTES)


def view(old: bytes, table: bytes, size: int = 1 << 20, step: int = 1 << 20) -> tuple[int, bytes]:
    """Return (error, the old image's view), asked for in pieces of `step` bytes."""
    out = ctypes.create_string_buffer(len(old) + 1)
    error = core().host_view(_flash(), old, len(old), table, len(table), size, out, step)
    return error, out.raw[: len(old)]


def chunks(data: bytes, kind: int, size: int, base: bytes, *, fresh: bool = True) -> tuple[int, int, bytes]:
    """Return (error, chunks that were taken, the slot's first `size` bytes); fresh: the slot was blank before."""
    flash, result = _flash(), (ctypes.c_uint32 * 2)()
    if fresh:
        ctypes.memset(ctypes.addressof(flash) + 0x1C0000, 0xFF, 0x1B0000)
    error = core().host_chunks(flash, kind, size, base, len(base), data, len(data), result)
    assert result[1] == 0, "a flash operation outside of what may be written"
    return error, result[0], ctypes.string_at(ctypes.addressof(flash) + 0x1C0000, size)


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    return bool(core().host_verify(key, signature, message, len(message)))


def envelope(data: bytes) -> tuple[int, list[int]]:
    """Return (error, [sequence, size, keys added, keys revoked])."""
    result = (ctypes.c_uint32 * 4)()
    return core().host_envelope(data, len(data), result), list(result)


def chunk(data: bytes) -> tuple[int, list[int]]:
    """Return (error, [number, page, pages, crc, payload's length, bytes used])."""
    result = (ctypes.c_uint32 * 6)()
    return core().host_chunk(data, len(data), result), list(result)
