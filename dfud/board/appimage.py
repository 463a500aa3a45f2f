"""An app image: the user's program as one read-only pack of files, which a device mounts from one of its banks. docs/app.md.

The format is the agent's own pack (devicefw/board/pack.py): no byte is lost to blocks, and a device needs no more for it than it has
already. Reproducible: the same folder gives the same bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from dfud.board.flashmap import SIZES, bank_capacity
from dfud.board.software import APP_FOLDER, MARCH, app_files, pack
from dfud.errors import PeerError

MAGIC = b"DFUP"
ENTRY = "main.mpy"
INDEX_MAX = 16384  # it stays in the device's RAM


class AppImage(msgspec.Struct, frozen=True):
    """data: what is published; files: their sizes by path; confirms: whether anything in it calls dfu.confirm()."""

    data: bytes
    files: dict[str, int]
    confirms: bool


def build(folder: Path, flash: str = "4MB", march: str = MARCH) -> AppImage:
    """Return the image of an application's folder, whose main.py has `async def main()`. flash: of the layout whose bank takes it.

    Raises PeerError: no main.py, something does not compile (with its line), or it is too large for a bank.
    """
    found, confirms = app_files(folder, march)
    files = {path.removeprefix(APP_FOLDER + "/"): data for path, data in found.items()}
    index = sum(len(path.encode()) + 10 for path in files)
    if index > INDEX_MAX:
        raise PeerError(
            f"{folder}: {len(files)} files whose names take {index} bytes of the device's RAM, expected at most {INDEX_MAX}"
        )
    data = pack(files)
    check_size(len(data), flash, str(folder), files={path: len(content) for path, content in files.items()})
    return AppImage(data=data, files={path: len(content) for path, content in files.items()}, confirms=confirms)


def check_size(size: int, flash: str, what: str, *, files: dict[str, int] | None = None) -> None:
    """Raise PeerError if an app image of `size` bytes fits no bank of this flash's layout."""
    room = bank_capacity(flash)
    if size <= room:
        return
    largest = sorted((files or {}).items(), key=lambda item: -item[1])[:3]
    named = f" (the largest: {', '.join(f'{path} {n}' for path, n in largest)})" if largest else ""
    larger = [name for name in SIZES if bank_capacity(name) >= size]
    told = f", or --flash {larger[0]} for boards that have it" if larger else ""
    raise PeerError(
        f"{what}: the app image has {size} bytes, expected at most {room} for a bank of {flash}{named}: leave files out{told}"
    )


def files_untrusted(data: bytes) -> dict[str, int]:
    """Return the sizes of an app image's files by path. Raises PeerError if it is none, or cannot be started."""
    if data[:4] != MAGIC or len(data) < 6:
        raise PeerError("no app image: expected what `dfuctl app-image build` makes, which begins with DFUP")
    (size,) = struct.unpack_from("<H", data, 4)
    index, files, at = data[6 : 6 + size], {}, 0
    while at < len(index):
        end = index.find(b"\0", at + 1)
        if index[at] or end < 0 or end + 9 > len(index) or len(index) != size:
            raise PeerError("app image: its index is damaged: build it again")
        name = index[at + 1 : end].decode("utf-8", "replace")
        place, length = struct.unpack_from("<II", index, end + 1)
        if place < 6 + size or place + length > len(data):
            raise PeerError(f"app image: {name} lies outside of it: the file is cut off")
        files[name] = length
        at = end + 9
    if ENTRY not in files:
        raise PeerError(
            f"app image: no {ENTRY} in it: a device could not start it; build it with `dfuctl app-image build`"
        )
    return files
