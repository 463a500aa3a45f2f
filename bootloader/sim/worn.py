"""Flash that wears out or goes wrong: sectors that refuse or ignore an operation, keep some bits, or cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from bootloader.sim.images import SECTOR, Flash

ERASE_REFUSED, ERASE_IGNORED = "erase refused", "erase ignored"
PROGRAM_REFUSED, PROGRAM_IGNORED = "program refused", "program ignored"
WEAK, STUCK, UNREADABLE = "weak bits", "stuck bits", "unreadable"
KINDS = (ERASE_REFUSED, ERASE_IGNORED, PROGRAM_REFUSED, PROGRAM_IGNORED, WEAK, STUCK, UNREADABLE)
# In sectors of a log every third record has a place that goes wrong, so that a sector is alike again after PERIOD of them; elsewhere
# every third 512 bytes. Programming leaves a bit of a weak place as it was; a bit of a stuck one is 0 for ever.
PERIOD = 3
RECORD_BYTES = {0xD: 32, 0xE: 32, 0x3FA: 256, 0x3FB: 256}
_REST_BYTES = 512


def _and(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "big") & int.from_bytes(b, "big")).to_bytes(len(a), "big")


@lru_cache
def _pattern(kind: str, size: int) -> bytes:
    """Return, for a sector with places of `size` bytes, which bits stay unprogrammed (WEAK), or can be 1 (STUCK)."""
    out = bytearray(b"\xff" * SECTOR if kind == STUCK else SECTOR)
    for place in range(SECTOR // size):
        if kind == WEAK and place % PERIOD == 1:
            out[place * size : (place + 1) * size] = b"\x10\0\0\0" * (size // 4)
        if kind == STUCK and place % PERIOD == 2:
            out[place * size + (8, 2, size - 6)[place // PERIOD % 3]] = 0xF7
    return bytes(out)


def _of(kind: str, number: int) -> bytes:
    return _pattern(kind, RECORD_BYTES.get(number, _REST_BYTES))


Faults = Mapping[int, str]


class Refused(OSError):
    """The flash reports that it did not do it."""


def settled(kind: str | None, number: int, content: bytes) -> bytes:
    """Return what a sector with this fault holds when it should hold `content`."""
    if kind != STUCK:
        return content
    return _and(content, _of(STUCK, number))


class WornFlash(Flash):
    """`faults`: sector number to kind. Raises Refused, which is an OSError as esp32.Partition's."""

    __slots__ = ("faults",)

    def __init__(self, sectors: dict[int, bytes] | None = None, faults: Faults | None = None) -> None:
        super().__init__(sectors)
        self.faults = dict(faults or {})
        for number, kind in self.faults.items():
            if kind == STUCK:
                self.sectors[number] = settled(kind, number, self.sectors.get(number, self.BLANK))

    def copy(self) -> WornFlash:
        made = WornFlash(self.sectors)  # which are settled
        made.faults = self.faults
        return made

    def read(self, offset: int, size: int) -> bytes:
        if UNREADABLE in self.faults.values():
            for number in range(offset // SECTOR, (offset + size - 1) // SECTOR + 1):
                if self.faults.get(number) == UNREADABLE:
                    raise Refused(5, f"sector {number:#x} cannot be read")
        return super().read(offset, size)

    def erase(self, offset: int) -> None:
        number = offset // SECTOR
        kind = self.faults.get(number)
        if kind == ERASE_REFUSED:
            raise Refused(5, f"sector {number:#x} is not erased")
        if kind != ERASE_IGNORED:
            super().erase(offset)
            self.sectors[number] = settled(kind, number, self.sectors[number])

    def program(self, offset: int, data: bytes) -> None:
        number, at = divmod(offset, SECTOR)
        kind = self.faults.get(number)
        if kind == PROGRAM_REFUSED:
            raise Refused(5, f"sector {number:#x} is not programmed")
        if kind == WEAK:
            data = bytes(a | b for a, b in zip(data, _of(WEAK, number)[at : at + len(data)], strict=True))
        if kind != PROGRAM_IGNORED:
            super().program(offset, data)
            self.sectors[number] = settled(kind, number, self.sectors[number])

    def force(self, offset: int, content: bytes) -> None:
        """Set a sector to what a power cut within an erase left, as far as the fault lets it."""
        number = offset // SECTOR
        if self.faults.get(number) not in (ERASE_REFUSED, ERASE_IGNORED):
            self.sectors[number] = settled(self.faults.get(number), number, content)
