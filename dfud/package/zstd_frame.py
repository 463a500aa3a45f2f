"""What a frame consists of: its literals, its matches, and the bits that each of them costs. Pure; decodes no bytes.

Reads the same magicless frames as the devices (RFC 8878; docs/protocol.md), down to the sequences, but not the Huffman-coded
literals themselves: those are only counted.
"""

from __future__ import annotations

from typing import NamedTuple

from dfud.errors import PeerError

BLOCK_MAX_BYTES = 1 << 17
# RFC 8878, 3.1.1.3.2.1.1: extra bits of the codes of literal and match lengths.
_LL_EXTRA = (0,) * 16 + (1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
_ML_EXTRA = (0,) * 32 + (1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
# RFC 8878, 3.1.1.3.2.2: default distributions; -1 is "less than 1".
_LL_DEFAULT = (4, 3, *(2,) * 11, 1, 1, 1, *(2,) * 9, 3, 2, *(1,) * 5, *(-1,) * 4)
_OF_DEFAULT = (*(1,) * 6, 2, 2, 2, *(1,) * 15, *(-1,) * 5)
_ML_DEFAULT = (1, 4, 3, *(2,) * 6, *(1,) * 37, *(-1,) * 7)

Table = tuple[int, list[tuple[int, int, int]]]  # log2 of its size; per state: symbol, bits, base of the next state


class Sequence(NamedTuple):
    """`literals` bytes of their own, then `match` bytes from `offset` bytes back (0: the literals that end a block)."""

    literals: int
    match: int
    offset: int
    literal_bits: float
    match_bits: int


class Frame(NamedTuple):
    """overhead_bits: headers, entropy tables and padding, which belong to no byte in particular."""

    sequences: list[Sequence]
    overhead_bits: float


def _baselines(first: int, extra: tuple[int, ...]) -> list[int]:
    found = [first]
    for bits in extra[:-1]:
        found.append(found[-1] + (1 << bits))
    return found


_LL_BASE, _ML_BASE = _baselines(0, _LL_EXTRA), _baselines(3, _ML_EXTRA)


def read_frame_untrusted(payload: bytes) -> Frame:
    """Return what exactly one frame consists of. Raises PeerError for anything that is none."""
    try:
        return _Reader(payload).frame()
    except IndexError:
        raise PeerError("frame: cut short") from None


class _Backwards:
    """Bits from the end of a stream; the last byte's highest 1 is the mark. Behind the beginning there are zeros."""

    def __init__(self, data: bytes) -> None:
        if not data or not data[-1]:
            raise PeerError("frame: a bit stream has no end mark")
        self.data = data
        self.bit = len(data) * 8 - 9 + data[-1].bit_length()

    def take(self, count: int) -> int:
        if not count:
            return 0
        self.bit -= count
        low = self.bit
        if low < 0:
            return (int.from_bytes(self.data[: (low + count + 7) >> 3], "little") << -low) & (1 << count) - 1
        return int.from_bytes(self.data[low >> 3 : (low + count + 7) >> 3], "little") >> (low & 7) & (1 << count) - 1


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.repeated = [1, 4, 8]
        self.tables: list[Table | None] = [None, None, None]
        self.huffman = False
        self.sequences: list[Sequence] = []
        self.overhead_bits = 0.0

    def frame(self) -> Frame:
        descriptor = self._number(1)
        if descriptor & 0x0F:
            raise PeerError("frame: has a checksum, a dictionary identifier or reserved bits")
        self.at += 0 if descriptor & 0x20 else 1
        self.at += (descriptor >> 5 & 1, 2, 4, 8)[descriptor >> 6]
        self.overhead_bits += 8 * self.at
        last = 0
        while not last:
            head = self._number(3)
            self.overhead_bits += 24
            last, kind, size = head & 1, head >> 1 & 3, head >> 3
            if kind == 3 or size > BLOCK_MAX_BYTES:
                raise PeerError("frame: a block of an unknown type or size")
            stored = 1 if kind == 1 else size
            end = self.at + stored
            if end > len(self.data):
                raise PeerError("frame: cut short")
            if kind == 2:
                self._block(end)
            elif size:
                self.sequences.append(Sequence(size, 0, 0, 8.0 * stored, 0))
            self.at = end
        if self.at != len(self.data):
            raise PeerError("frame: bytes behind its last block")
        return Frame(self.sequences, self.overhead_bits)

    def _number(self, size: int) -> int:
        found = self.data[self.at : self.at + size]
        if len(found) < size:
            raise PeerError("frame: cut short")
        self.at += size
        return int.from_bytes(found, "little")

    def _block(self, end: int) -> None:
        begin = self.at
        literals, literal_bits = self._literals(end)
        count = self._number(1)
        if count >= 255:
            count = self._number(2) + 0x7F00
        elif count >= 128:
            count = (count - 128 << 8) + self._number(1)
        each = literal_bits / literals if literals else 0.0
        spent = 0.0
        if count:
            spent, literals = self._sequences(count, literals, each, end)
        if self.at > end or (not count and self.at != end):
            raise PeerError("frame: a block is longer than it says")
        if literals:
            self.sequences.append(Sequence(literals, 0, 0, literals * each, 0))
        self.overhead_bits += 8 * (end - begin) - literal_bits - spent

    def _literals(self, end: int) -> tuple[int, float]:
        """Return (how many there are, bits that they cost); leaves self.at behind them."""
        first = self.data[self.at]
        kind, form = first & 3, first >> 2 & 3
        if kind < 2:
            size = (1, 2, 1, 3)[form]
            count = self._number(size) >> (3 if size == 1 else 4)
            stored = count if kind == 0 else 1
            self.at += stored
            bits = 8.0 * stored if count else 0.0
        else:
            size, width = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
            head = self._number(size)
            count, stored = head >> 4 & (1 << width) - 1, head >> 4 + width
            behind = self.at + stored
            if kind == 2:
                length = self.data[self.at]
                self.at += 1 + (length if length < 128 else length - 126 >> 1)
                self.huffman = True
            elif not self.huffman:
                raise PeerError("frame: repeats a Huffman table that there is not")
            self.at += 6 if form else 0
            bits = 8.0 * (behind - self.at)
            if bits < 0:
                raise PeerError("frame: literals that are shorter than their table")
            self.at = behind
        if self.at > end or count > BLOCK_MAX_BYTES:
            raise PeerError("frame: literals are longer than their block")
        return count, bits

    def _sequences(self, count: int, literals: int, each: float, end: int) -> tuple[float, int]:
        """Return (bits that sequences cost, literals that are left)."""
        modes = self._number(1)
        if modes & 3:
            raise PeerError("frame: reserved bits of the sequences are set")
        ll_log, ll = self._table(0, modes >> 6, _LL_DEFAULT, 6, 9, 35)
        of_log, of = self._table(1, modes >> 4 & 3, _OF_DEFAULT, 5, 8, 31)
        ml_log, ml = self._table(2, modes >> 2 & 3, _ML_DEFAULT, 6, 9, 52)
        stream = _Backwards(self.data[self.at : end])
        take = stream.take
        a, b, c = take(ll_log), take(of_log), take(ml_log)
        begin = stream.bit
        for left in range(count - 1, -1, -1):
            before = stream.bit
            (ll_code, ll_bits, ll_next), (of_code, of_bits, of_next), (ml_code, ml_bits, ml_next) = ll[a], of[b], ml[c]
            value = (1 << of_code) + take(of_code)
            match = _ML_BASE[ml_code] + take(_ML_EXTRA[ml_code])
            length = _LL_BASE[ll_code] + take(_LL_EXTRA[ll_code])
            if left:
                a, c, b = ll_next + take(ll_bits), ml_next + take(ml_bits), of_next + take(of_bits)
            if stream.bit < 0 or length > literals:
                raise PeerError("frame: sequences are longer than their bits or literals")
            literals -= length
            offset = self._offset(value, length)
            self.sequences.append(Sequence(length, match, offset, length * each, before - stream.bit))
        if stream.bit:
            raise PeerError("frame: bits behind the last sequence")
        self.at = end
        return float(begin), literals

    def _offset(self, value: int, literals: int) -> int:
        """Return the distance that an offset's value stands for (RFC 8878, 3.1.1.5)."""
        one, two, three = self.repeated
        found = value - 3 if value > 3 else (one, two, three, one - 1)[value - (1 if literals else 0)]
        if found < 1:
            raise PeerError("frame: a match from 0 bytes back")
        if value != 1 or not literals:
            which = value + (0 if literals else 1)
            self.repeated = [found, one, three] if value <= 3 and which == 2 else [found, one, two]
        return found

    def _table(self, which: int, mode: int, default: tuple[int, ...], log: int, log_max: int, symbol_max: int) -> Table:
        found: Table | None
        if mode == 0:
            found = log, _build(default, log)
        elif mode == 1:
            symbol = self._number(1)
            if symbol > symbol_max:
                raise PeerError("frame: a code that there is not")
            found = 0, [(symbol, 0, 0)]
        elif mode == 2:
            found = self._described(log_max, symbol_max)
        else:
            found = self.tables[which]
        if found is None:
            raise PeerError("frame: repeats a table that there is not")
        self.tables[which] = found
        return found

    def _described(self, log_max: int, symbol_max: int) -> Table:
        """Read the description of an FSE table (RFC 8878, 4.1.1)."""
        bit = self.at * 8

        def take(count: int) -> int:
            nonlocal bit
            value = int.from_bytes(self.data[bit >> 3 : (bit + count + 7) >> 3], "little") >> (bit & 7)
            bit += count
            return value & (1 << count) - 1

        log = take(4) + 5
        if log > log_max:
            raise PeerError("frame: an entropy table is too large")
        left = (1 << log) + 1
        counts: list[int] = []
        while left > 1 and len(counts) <= symbol_max:
            width = left.bit_length()
            value = take(width)
            low, threshold = (1 << width - 1) - 1, (1 << width) - 1 - left
            if value & low < threshold:
                bit -= 1
                value &= low
            elif value > low:
                value -= threshold
            counts.append(value - 1)
            left -= abs(value - 1)
            while value == 1:
                repeat = take(2)
                counts += [0] * repeat
                if repeat != 3:
                    break
            if bit > 8 * len(self.data):
                break
        if left != 1 or len(counts) > symbol_max + 1 or bit > 8 * len(self.data):
            raise PeerError("frame: an entropy table does not add up")
        self.at = (bit + 7) >> 3
        return log, _build(tuple(counts), log)


def _build(counts: tuple[int, ...], log: int) -> list[tuple[int, int, int]]:
    """Spread the symbols over the states (RFC 8878, 4.1.1); `counts` add up to 1 << log."""
    size = 1 << log
    symbols = [0] * size
    high = size - 1
    for symbol, count in enumerate(counts):
        if count < 0:
            symbols[high] = symbol
            high -= 1
    at, step = 0, (size >> 1) + (size >> 3) + 3
    for symbol, count in enumerate(counts):
        for _ in range(count):
            symbols[at] = symbol
            at = at + step & size - 1
            while at > high:
                at = at + step & size - 1
    following = [abs(count) for count in counts]
    found = []
    for symbol in symbols:
        state = following[symbol]
        following[symbol] += 1
        bits = log - state.bit_length() + 1
        found.append((symbol, bits, (state << bits) - size))
    return found
