"""Flash that wears out or goes wrong: sectors that refuse or ignore an operation, keep some bits, or cannot be read."""

from __future__ import annotations

from collections.abc import Mapping

from bootloader.sim.images import SECTOR, Flash

ERASE_REFUSED, ERASE_IGNORED = "erase refused", "erase ignored"
PROGRAM_REFUSED, PROGRAM_IGNORED = "program refused", "program ignored"
WEAK, STUCK, UNREADABLE = "weak bits", "stuck bits", "unreadable"
KINDS = (ERASE_REFUSED, ERASE_IGNORED, PROGRAM_REFUSED, PROGRAM_IGNORED, WEAK, STUCK, UNREADABLE)
# Programming leaves a bit as it was in every other 512 bytes; some bits are 0 for ever, the first and last records' among them.
_WEAK = b"".join((b"\x10\0\0\0" * 128, bytes(512))) * (SECTOR // 1024)
_STUCK = bytearray(b"\xff" * SECTOR)
for _at in (40, 2050, SECTOR - 90):
    _STUCK[_at] = 0xF7
Faults = Mapping[int, str]


class Refused(OSError):
    """The flash reports that it did not do it."""


def settled(kind: str | None, content: bytes) -> bytes:
    """Return what a sector with this fault holds when it should hold `content`."""
    if kind != STUCK:
        return content
    return bytes(a & b for a, b in zip(content, _STUCK, strict=True))


class WornFlash(Flash):
    """`faults`: sector number to kind. Raises Refused, which is an OSError as esp32.Partition's."""

    __slots__ = ("faults",)

    def __init__(self, sectors: dict[int, bytes] | None = None, faults: Faults | None = None) -> None:
        super().__init__(sectors)
        self.faults = dict(faults or {})
        for number, kind in self.faults.items():
            if kind == STUCK:
                self.sectors[number] = settled(kind, self.sectors.get(number, self.BLANK))

    def copy(self) -> WornFlash:
        return WornFlash(self.sectors, self.faults)

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
            self.sectors[number] = settled(kind, self.sectors[number])

    def program(self, offset: int, data: bytes) -> None:
        number, at = divmod(offset, SECTOR)
        kind = self.faults.get(number)
        if kind == PROGRAM_REFUSED:
            raise Refused(5, f"sector {number:#x} is not programmed")
        if kind == WEAK:
            data = bytes(a | b for a, b in zip(data, _WEAK[at : at + len(data)], strict=True))
        if kind != PROGRAM_IGNORED:
            super().program(offset, data)
            self.sectors[number] = settled(kind, self.sectors[number])

    def force(self, offset: int, content: bytes) -> None:
        """Set a sector to what a power cut within an erase left, as far as the fault lets it."""
        number = offset // SECTOR
        if self.faults.get(number) not in (ERASE_REFUSED, ERASE_IGNORED):
            self.sectors[number] = settled(self.faults.get(number), content)
