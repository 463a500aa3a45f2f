"""The board's flash on the host's side: a file, NOR rules, and the map of bootloader/FORMAT.md."""

from __future__ import annotations

from pathlib import Path

from dfud.board.flashmap import WITHOUT_BANKS

SIZE_BYTES = 4 << 20
SECTOR_BYTES = 4096
PARTITIONS = WITHOUT_BANKS["4MB"]  # of boards that carry their program in the image


def partition(label: str) -> tuple[int, int]:
    """Return (offset, size)."""
    return next((p[2], p[3]) for p in PARTITIONS if p[4] == label)


class PowerCut(Exception):
    """The power went away; what the flash holds is all that is left."""


class FlashFile:
    """`size` bytes in a file. `cut_at`: at this operation the power goes, before it or with half of it done. `faults`: number of
    a bad sector to "unreadable", "erase refused", "erase ignored", "program refused" or "program ignored"; what is refused is
    an OSError, here and on the board (shims/esp32.py).
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self.size = SIZE_BYTES
        self.operations = 0
        self.cut_at: int | None = None
        self.cut_how = "half"
        self.faults: dict[int, str] = {}
        if create:
            path.write_bytes(b"\xff" * SIZE_BYTES)
        else:
            self.size = path.stat().st_size

    def read(self, offset: int, size: int) -> bytes:
        for number, kind in self.faults.items():
            if kind == "unreadable" and offset < (number + 1) * SECTOR_BYTES and offset + size > number * SECTOR_BYTES:
                raise OSError(5, f"sector {number:#x}: {kind}")
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits: the old bytes AND `data`."""
        old = int.from_bytes(self.read(offset, len(data)), "big")
        new = (old & int.from_bytes(data, "big")).to_bytes(len(data), "big")
        if self._done(offset, "program"):
            self._operate(offset, new)

    def erase(self, offset: int) -> None:
        """Set one sector to ff."""
        if offset % SECTOR_BYTES:
            raise ValueError(f"erase at {offset:#x}: not a sector")
        if self._done(offset, "erase"):
            self._operate(offset, b"\xff" * SECTOR_BYTES)

    def _done(self, offset: int, operation: str) -> bool:
        """Say whether the sector does it."""
        kind = self.faults.get(offset // SECTOR_BYTES, "")
        if kind == f"{operation} refused":
            raise OSError(5, f"sector {offset // SECTOR_BYTES:#x}: {kind}")
        return kind != f"{operation} ignored"

    def _operate(self, offset: int, data: bytes) -> None:
        self.operations += 1
        if self.operations == self.cut_at:
            if self.cut_how != "before":
                self._put(offset, data[: len(data) // 2])
            raise PowerCut(f"at operation {self.operations}")
        self._put(offset, data)

    def _put(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def load(self, label: str, image: bytes) -> None:
        """Put an image into a slot as esptool would, the rest of the slot blank."""
        offset, size = partition(label)
        if len(image) > size:
            raise ValueError(f"{len(image)} bytes do not fit {label}")
        self._put(offset, image.ljust(size, b"\xff"))
