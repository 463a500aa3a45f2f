"""The file system of a board: littlefs, as MicroPython's VfsLfs2 on an ESP32 makes and mounts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfud.errors import PeerError

BLOCK_BYTES = 4096
# VfsLfs2's own: a file is kept inline up to the size of the cache, and one with a smaller cache reads a part of it.
_READ = _PROG = _LOOKAHEAD = 32
_CACHE = 128
# Every littlefs 2 reads this version; MicroPython of before 1.22 no newer one.
_DISK_VERSION = 0x00020000


def _littlefs() -> Any:
    try:
        import littlefs
    except ImportError:
        raise PeerError("littlefs-python is not installed: python -m pip install 'dfud[board]'") from None
    return littlefs


def _errors() -> tuple[type[Exception], ...]:
    return (OSError, _littlefs().LittleFSError)


def _mount(size: int, data: bytes | None) -> Any:
    littlefs = _littlefs()
    context = littlefs.UserContext(size)
    if data is not None:
        context.buffer = bytearray(data)
    return littlefs.LittleFS(
        context=context,
        mount=False,
        block_size=BLOCK_BYTES,
        block_count=size // BLOCK_BYTES,
        read_size=_READ,
        prog_size=_PROG,
        cache_size=_CACHE,
        lookahead_size=_LOOKAHEAD,
        # A board that has written to it may have made it a newer one.
        disk_version=_DISK_VERSION if data is None else 0,
    )


def build(files: Mapping[str, bytes], size: int) -> bytes:
    """Return a file system of `size` bytes with these files, by path ("lib/dfu/agent.mpy"). The same files give the same bytes.

    Raises PeerError if they do not fit, with how much they are.
    """
    fs = _mount(size, None)
    fs.format()
    fs.mount()
    try:
        for path in sorted(files):
            parent = path.rpartition("/")[0]
            if parent:
                fs.makedirs(parent, exist_ok=True)
            with fs.open(path, "wb") as file:
                file.write(files[path])
    except _errors() as error:
        total = sum(len(data) for data in files.values())
        raise PeerError(
            f"file system: {len(files)} files of {total} bytes do not fit into {size} ({error}; a file takes at least a block of "
            f"{BLOCK_BYTES}): make the application smaller, or take a board with more flash and --flash 8MB or 16MB"
        ) from None
    fs.unmount()
    return bytes(fs.context.buffer)


def read_untrusted(data: bytes) -> tuple[dict[str, int], int]:
    """Return (size of each file by its path, blocks in use). Raises PeerError if this is no littlefs."""
    fs = _mount(len(data), data)
    try:
        fs.mount()
        sizes = {}
        for folder, _, names in fs.walk("/"):
            for name in names:
                path = f"{folder.rstrip('/')}/{name}"
                sizes[path] = int(fs.stat(path).size)
        return sizes, int(fs.used_block_count)
    except _errors() as error:
        raise PeerError(f"no littlefs that can be read: {error}") from None


def content_untrusted(data: bytes, path: str) -> bytes:
    """Return what a file holds. Raises PeerError."""
    fs = _mount(len(data), data)
    try:
        fs.mount()
        with fs.open(path, "rb") as file:
            return bytes(file.read())
    except _errors() as error:
        raise PeerError(f"{path}: {error}") from None
