"""Leaving a package to the bootloader: its chunks go to dfu_stage as they are, and are decoded at the next start."""

import asyncio
import hashlib
import struct

from dfu import flash
from dfu.chunk import chunk_head
from dfu.errors import PackError

STAGE_MAGIC = 0x47554644
HEAD_MAX = 32
TABLE_SIZE = 0x4000


def fits(part, total, chunks, kind):
    """Say whether a package of `total` bytes has room, with its padding, and with what the bootloader needs for kind 3."""
    return total + 3 * chunks + (TABLE_SIZE if kind == 3 else 0) <= part.info()[3] - flash.SECTOR


class Stage:
    """Appends chunks behind the first sector, which holds the transfer under way until all of them are there."""

    def __init__(self, part, package):
        self.part, self.package = part, package
        self.rewind()

    def rewind(self):
        self.at = flash.SECTOR

    def skip(self, count):
        """Find the place behind `count` chunks that are there already. Raises PackError if they are not."""
        for _ in range(count):
            self.at += self._length() + 3 & ~3

    def _length(self):
        """Return the length of the chunk that is stored at self.at. Raises PackError if there is none."""
        size = self.part.info()[3]
        if self.at + HEAD_MAX > size:
            raise PackError("behind the stage")
        length = chunk_length(flash.read(self.part, self.at, HEAD_MAX))
        if self.at + length > size:
            raise PackError("behind the stage")
        return length

    async def add(self, buffer, length, number):
        """Store one chunk; programming the same bytes twice, after a power cut, is harmless."""
        found = chunk_head(buffer, length)
        if found[0] != number:
            raise PackError("place")
        end = self.at + (length + 3 & ~3)
        if end > self.part.info()[3]:
            raise PackError("too long for the stage")
        first = -(-self.at // flash.SECTOR)
        for sector in range(first, -(-end // flash.SECTOR)):
            if not flash.blank(self.part, sector * flash.SECTOR, flash.SECTOR):
                flash.erase(self.part, sector)
                await asyncio.sleep(0)
        view = memoryview(buffer)
        whole = length & ~3
        flash.write(self.part, self.at, view[:whole])
        if whole != length:
            flash.write(self.part, self.at + whole, bytes(view[whole:length]) + b"\xff" * (4 - length % 4))
        self.at = end

    async def whole(self, chunks):
        """Say whether what is stored is the package, by its name."""
        digest = hashlib.sha256()
        self.rewind()
        for _ in range(chunks):
            length = self._length()
            for i in range(0, length, 512):
                digest.update(flash.read(self.part, self.at + i, min(512, length - i)))
            self.at += length + 3 & ~3
            await asyncio.sleep(0)
        return digest.digest()[:16] == self.package

    def close(self, chunks, kind, base, envelope):
        """Write the header in place of the transfer under way. Cut in between, the package is fetched once more."""
        size = self.at - flash.SECTOR
        head = struct.pack("<IIII", STAGE_MAGIC, chunks, size, kind) + (base or b"\xff" * 32)
        head += struct.pack("<I", len(envelope)) + envelope + b"\xff" * (-len(envelope) % 4)
        flash.erase(self.part, 0)
        flash.write(self.part, 0, head + struct.pack("<I", flash.crc32(head)))


def chunk_length(head):
    """Return the length of the chunk that begins with these bytes. Raises PackError."""
    p = 1
    for _ in range(4):
        x = head[p]
        p += 1 + {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(x, 0)
    size = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(head[p], 0)
    if head[0] != 0x95 or not size:
        raise PackError("chunk")
    return p + 1 + size + int.from_bytes(head[p + 1 : p + 1 + size], "big")


def envelope_of(part):
    """Return the envelope in the stage's header, or b""."""
    head = flash.read(part, 0, 56 + flash.TRAILER_MAX)
    magic, length = struct.unpack_from("<I", head)[0], struct.unpack_from("<I", head, 48)[0]
    end = 52 + (length + 3 & ~3)
    if magic != STAGE_MAGIC or length > flash.TRAILER_MAX or struct.unpack_from("<I", head, end)[0] != flash.crc32(head[:end]):
        return b""
    return bytes(head[52 : 52 + length])
