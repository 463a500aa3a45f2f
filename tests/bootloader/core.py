"""The core as a library of this machine, with the undefined-behaviour sanitizer on."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from pathlib import Path

from tests.parts import require

ROOT = Path(__file__).parents[2]
FLASH_BYTES = 4 << 20


@functools.cache
def core() -> ctypes.CDLL:
    require("cc")
    subprocess.run(["make", "-s", "-C", str(ROOT / "bootloader"), "host"], check=True)
    library = ctypes.CDLL(str(ROOT / "build" / "bootloader" / "libdfucore.so"))
    library.host_sizes.restype = ctypes.c_uint32
    return library


def zstd(frame: bytes, size: int, prefix: bytes = b"") -> tuple[int, bytes]:
    """Return (error, output); the output's buffer is exactly `size`."""
    out = ctypes.create_string_buffer(size) if size else ctypes.create_string_buffer(1)
    error = core().host_zstd(frame, len(frame), prefix, len(prefix), out, size)
    return error, out.raw[:size]


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
