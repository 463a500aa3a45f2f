"""What a mapped delta starts from: the segments of the old image, and the table that says where its addresses went.

docs/delta-format.md, "Segments" and "Table". Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from dfud.errors import PeerError

VERSION = 1
TABLE_MAX_BYTES = 4096
ENTRIES_MAX = 2048
SEGMENTS_MAX = 16
GRANULE_BITS = 19
HISTORY_BYTES = 1 << 18
HISTORY_PIECE_BYTES = 256  # each of them is put into absolute form by itself
MASK = (1 << 32) - 1


class Segment(msgspec.Struct, frozen=True):
    """`length` bytes of a file from `offset` on, loaded to `address`."""

    offset: int
    length: int
    address: int


class Table(msgspec.Struct, frozen=True):
    """code: bit *k* set: segment *k* of the old image holds code. new: segments of code of the new image, in ascending order.
    starts, shifts: old addresses from starts[i] on moved by shifts[i] (signed), up to the next start. history: every frame's
    prefix ends with what the image has before the chunk, so chunks must come in order."""

    code: int = 0
    new: Sequence[Segment] = ()
    starts: Sequence[int] = ()
    shifts: Sequence[int] = ()
    history: bool = False


def segments(image: bytes) -> list[Segment]:
    """Return the segments of an ESP image; [] for anything else. The first that does not fit ends the list."""
    found: list[Segment] = []
    if len(image) < 24 or image[0] != 0xE9 or image[1] > SEGMENTS_MAX:
        return found
    at = 24
    for _ in range(image[1]):
        if at + 8 > len(image):
            break
        address, length = (int.from_bytes(image[at + i : at + i + 4], "little") for i in (0, 4))
        at += 8
        if length > len(image) - at:
            break
        found.append(Segment(at, length, address))
        at += length
    return found


def granules(found: Sequence[Segment]) -> frozenset[int]:
    """Return the 512 KB blocks, by number, that the segments touch in memory: what points there may be an address."""
    return frozenset(
        number & (MASK >> GRANULE_BITS)
        for s in found
        if s.address and s.length
        for number in range(s.address >> GRANULE_BITS, ((s.address + s.length - 1) >> GRANULE_BITS) + 1)
    )


class Mapper:
    """Says where an old address went."""

    def __init__(self, table: Table, found: Sequence[Segment]) -> None:
        self.starts, self.shifts, self.granules = table.starts, table.shifts, granules(found)

    def known(self, address: int) -> bool:
        return address >> GRANULE_BITS in self.granules

    def __call__(self, address: int) -> int:
        if not self.known(address):
            return address
        i = bisect_right(self.starts, address)
        return (address + self.shifts[i - 1]) & MASK if i else address


def varint(out: bytearray, value: int) -> None:
    """Append a number of 7 bits a byte, the lowest first."""
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 32) if value >> 31 else value


def _zigzag(value: int) -> int:
    value = _signed(value)
    return (value << 1 if value >= 0 else (-value << 1) - 1) & MASK


def encode_table(table: Table, old: Sequence[Segment]) -> bytes:
    """Return the table's bytes. Raises ValueError if it is too large."""
    out = bytearray([VERSION])
    varint(out, table.code << 1 | table.history)
    varint(out, len(table.new))
    like = _like(table.code, old)
    for i, new in enumerate(table.new):
        was = like[i] if i < len(like) else Segment(0, 0, 0)
        for value in (new.offset - was.offset, new.length - was.length, new.address - was.address):
            varint(out, _zigzag(value))
    varint(out, len(table.starts))
    before = 0
    for start in table.starts:
        varint(out, start - before)
        before = start
    before = 0
    for shift in table.shifts:
        varint(out, _zigzag(shift - before))
        before = shift
    if len(out) > TABLE_MAX_BYTES or len(table.starts) > ENTRIES_MAX:
        raise ValueError(f"a table of {len(table.starts)} entries, {len(out)} bytes")
    return bytes(out)


def fits(table: Table, old: Sequence[Segment]) -> bool:
    """Return whether the table is not too large."""
    try:
        encode_table(table, old)
    except ValueError:
        return False
    return True


def _like(code: int, old: Sequence[Segment]) -> list[Segment]:
    return [s for i, s in enumerate(old) if code >> i & 1]


def decode_table_untrusted(data: bytes, old: Sequence[Segment], size: int) -> Table:
    """Read a table for an old image with these segments and a new image of `size` bytes. Raises PeerError."""
    if not data or data[0] != VERSION or len(data) > TABLE_MAX_BYTES:
        raise PeerError(f"table: version {data[0] if data else 'missing'}, expected {VERSION}")
    position = 1

    def varint(high: int = MASK) -> int:
        nonlocal position
        value = 0
        for shift in range(0, 35, 7):
            if position == len(data):
                raise PeerError("table: cut short")
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value > high:
                    raise PeerError(f"table: {value}, expected at most {high}")
                return value
        raise PeerError("table: a number of more than 5 bytes")

    def signed() -> int:
        value = varint()
        return value >> 1 ^ -(value & 1)

    flags = varint((2 << SEGMENTS_MAX) - 1)
    code = flags >> 1
    like = _like(code, old)
    new: list[Segment] = []
    end = 0
    for i in range(varint(SEGMENTS_MAX)):
        was = like[i] if i < len(like) else Segment(0, 0, 0)
        found = Segment((was.offset + signed()) & MASK, (was.length + signed()) & MASK, (was.address + signed()) & MASK)
        if found.offset < end or found.length > size or found.offset > size - found.length:
            raise PeerError(f"table: segment {i} of the new image is not behind the others and inside the image")
        if (found.offset | found.address) & 1:
            raise PeerError(f"table: segment {i} of the new image lies at an odd place")
        end = found.offset + found.length
        new.append(found)
    count = varint(ENTRIES_MAX)
    starts: list[int] = []
    for i in range(count):
        gap = varint()
        start = (starts[-1] if starts else 0) + gap
        if start > MASK or (i and not gap):
            raise PeerError("table: addresses do not ascend")
        starts.append(start)
    shifts: list[int] = []
    for _ in range(count):
        shifts.append(_signed((shifts[-1] if shifts else 0) + signed()))
    if position != len(data):
        raise PeerError(f"table: {len(data) - position} bytes behind its end")
    return Table(code, new, starts, shifts, bool(flags & 1))
