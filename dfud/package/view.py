"""The view of an old image and the absolute form of a new one, instruction by instruction as docs/delta-format.md has it.

This is the reading to compare other implementations with; dfud.package.view_numpy does the same for whole images at once.
Nothing here fails for any bytes: what looks like a reference and is none costs bytes in a package, never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfud.package.table import MASK, Mapper, Segment, Table, segments

VIEW_BYTES = 2048  # the view restarts here
PREROLL_BYTES = 256
LOOK_AHEAD = 24  # instructions
PAGE_BYTES = 4096  # the absolute form restarts here
CALLER_SAVED = 0xF003FCE0  # t0-t2, a0-a7, t3-t6
SP = 2
JAL, AUIPC, LUI, JALR, LOAD, STORE, ADDI, BRANCH, FENCE = 0x6F, 0x17, 0x37, 0x67, 0x03, 0x23, 0x13, 0x63, 0x0F


# Where the bits of an offset stand, from the lowest on: (how many, from which of the instruction, to which of the offset).
Runs = tuple[tuple[int, int, int], ...]
JUMP: Runs = ((10, 21, 1), (1, 20, 11), (8, 12, 12), (1, 31, 20))
BRANCHES: Runs = ((4, 8, 1), (6, 25, 5), (1, 7, 11), (1, 31, 12))
SHORT_JUMP: Runs = ((3, 3, 1), (1, 11, 4), (1, 2, 5), (1, 7, 6), (1, 6, 7), (2, 9, 8), (1, 8, 10), (1, 12, 11))
SHORT_BRANCH: Runs = ((2, 3, 1), (2, 10, 3), (1, 2, 5), (2, 5, 6), (1, 12, 8))


def sign(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def offset_in(word: int, runs: Runs) -> int:
    """Return the signed offset of a jump or a branch."""
    value = 0
    for count, at, to in runs:
        value |= (word >> at & (1 << count) - 1) << to
    return sign(value, runs[-1][2] + 1)


def with_offset(word: int, runs: Runs, offset: int) -> int:
    """Return the instruction with as many bits of the offset as it has room for."""
    for count, at, to in runs:
        mask = (1 << count) - 1
        word = word & ~(mask << at) | (offset >> to & mask) << at
    return word


def branch(word: int) -> Runs:
    """Return where a branch or a short jump has its offset; () for any other instruction. Compressed ones are 16 bits."""
    if word & 3 == 3:
        return BRANCHES if word & 0x7F == BRANCH else ()
    if word & 3 == 1:
        return SHORT_JUMP if word >> 13 & 3 == 1 else SHORT_BRANCH if word >> 13 >= 6 else ()
    return ()


def use(word: int) -> tuple[int, int]:
    """Return (base register, 12-bit offset) of addi, jalr, a load or a store; register 0 for anything else."""
    operation, function = word & 0x7F, word >> 12 & 7
    if operation == LOAD or (operation in (ADDI, JALR) and not function):
        return word >> 15 & 31, sign(word >> 20, 12)
    if operation == STORE:
        return word >> 15 & 31, sign(word >> 25 << 5 | word >> 7 & 31, 12)
    return 0, 0


def use_with(word: int, offset: int) -> int:
    if word & 0x7F == STORE:
        return word & 0x01FFF07F | (offset & 0xFE0) << 20 | (offset & 31) << 7
    return word & 0xFFFFF | (offset & 0xFFF) << 20


def high(value: int) -> int:
    """Return what lui or auipc must hold so that a signed 12-bit offset leads to `value`."""
    return (value + 0x800) & 0xFFFFF000


def kept(register: int) -> bool:
    """Return whether calls leave the register alone; what loads it from the stack restores it, mostly before a return."""
    return not CALLER_SAVED >> register & 1


def written(word: int) -> int:
    """Return the register that a 32-bit instruction writes, or 0."""
    operation, register = word & 0x7F, word >> 7 & 31
    restores = operation == LOAD and word >> 15 & 31 == SP and kept(register)
    return 0 if operation in (BRANCH, STORE, FENCE) or restores else register


def written_compressed(half: int) -> int:
    quadrant, function = half & 3, half >> 13
    if quadrant == 0:
        return 8 + (half >> 2 & 7) if function in (0, 2, 3) else 0
    if quadrant == 1:
        if function == 4:
            return 8 + (half >> 7 & 7)
        return 1 if function == 1 else half >> 7 & 31 if function in (0, 2, 3) else 0
    if function == 4 and not half >> 2 & 31:
        return half >> 12 & 1
    register = half >> 7 & 31
    return register if function in (0, 4) or (function == 2 and not kept(register)) else 0


def calls_compressed(half: int) -> bool:
    return half & 0xE003 == 0x2001 or half & 0xF07F == 0x9002


def overwrites(word: int) -> int:
    """Return the registers, as a mask, that an instruction overwrites: compressed ones are the low 16 bits."""
    if word & 3 != 3:
        half = word & 0xFFFF
        return 1 << written_compressed(half) | (CALLER_SAVED if calls_compressed(half) else 0)
    calls = word & 0x7F in (JAL, JALR) and word >> 7 & 31
    return 1 << written(word) | (CALLER_SAVED if calls else 0)


class View:
    """The old image as `table` makes it look. length is the old image's."""

    def __init__(self, old: bytes, table: Table) -> None:
        self.old, self.code = old, table.code
        self.segments = segments(old)
        self.map = Mapper(table, self.segments)

    def whole(self) -> bytes:
        return b"".join(self.page(at) for at in range(0, len(self.old), VIEW_BYTES))

    def page(self, first: int) -> bytes:
        """Return the bytes of the page that begins at `first`, a multiple of VIEW_BYTES."""
        end = min(first + VIEW_BYTES, len(self.old))
        self._first, self._out = first, bytearray(self.old[first:end])
        for i, s in enumerate(self.segments):
            a, b = max(first, s.offset), min(end, s.offset + s.length)
            if a < b:
                (self._code if self.code >> i & 1 else self._data)(s, a, b)
        return bytes(self._out)

    def _word(self, at: int) -> int:
        return int.from_bytes(self.old[at : at + 4], "little")

    def _put(self, at: int, word: int, size: int = 4) -> None:
        for i in range(size):
            if 0 <= at + i - self._first < len(self._out):
                self._out[at + i - self._first] = word >> 8 * i & 255

    def _data(self, s: Segment, a: int, b: int) -> None:
        at = s.offset + (a - s.offset & ~3)
        while at < b and at + 4 <= s.offset + s.length:
            self._put(at, self.map(self._word(at)))
            at += 4

    def _code(self, s: Segment, a: int, b: int) -> None:
        end = s.offset + s.length
        at = s.offset + (max(a - PREROLL_BYTES - s.offset, 0) & ~1)
        bases: dict[int, tuple[int, int]] = {}  # register -> what lui put there, and what the view says that it did

        def forget(word: int) -> None:
            gone = overwrites(word)
            for r in [r for r in bases if gone >> r & 1]:
                del bases[r]

        while at < b and at + 2 <= end:
            word = self._word(at)
            size = 4 if word & 3 == 3 else 2
            if at + size > end:
                break
            if size == 2:
                word &= 0xFFFF
            operation, register = word & 0x7F, word >> 7 & 31
            pc = (s.address + at - s.offset) & MASK
            if runs := branch(word):
                target = self.map((pc + offset_in(word, runs)) & MASK)
                self._put(at, with_offset(word, runs, target - self.map(pc)), size)
                forget(word)
            elif size == 2:
                forget(word)
            elif operation == JAL:
                target = self.map((pc + offset_in(word, JUMP)) & MASK)
                self._put(at, word & 0xFFF | (target >> 1 & 0xFFFFF) << 12)
                forget(word)
            elif operation == AUIPC:
                forget(word)
                follower = self._word(at + 4) if at + 8 <= end else 0
                base, offset = use(follower)
                if register and base == register:
                    target = self.map((pc + (word & 0xFFFFF000) + offset) & MASK)
                    self._put(at, word & 0xFFF | high(target))
                    self._put(at + 4, use_with(follower, target))
                    forget(follower)
                    at += 4
            elif operation == LUI:
                forget(word)
                base = word & 0xFFFFF000
                address = (base + self._look_ahead(at + 4, end, register)) & MASK
                if register and self.map.known(address):
                    now = high(self.map(address))
                    self._put(at, word & 0xFFF | now)
                    bases[register] = (base, now)
            else:
                base, offset = use(word)
                if base in bases:
                    was, now = bases[base]
                    address = (was + offset) & MASK
                    if self.map.known(address):
                        offset = sign(self.map(address) - now, 32)
                        if -2048 <= offset < 2048:
                            self._put(at, use_with(word, offset))
                forget(word)
            at += size

    def _look_ahead(self, at: int, end: int, register: int) -> int:
        """Return the offset with which the register is used first, or 0."""
        for _ in range(LOOK_AHEAD):
            if at + 4 > end:
                break
            word = self._word(at)
            base, offset = use(word)
            if base == register:
                return offset
            if overwrites(word) >> register & 1:
                break
            at += 4 if word & 3 == 3 else 2
        return 0


def transform(
    page: bytes, first: int, carry: int, code: Sequence[Segment], *, inverse: bool = False
) -> tuple[bytes, int]:
    """Put one page of the new image into absolute form, or back. Returns it and the carry for the page behind it.

    first: where the page stands in the image; carry: 2 if an instruction of the page before it reaches into it, else 0.
    """
    out = bytearray(page)
    carried = 0

    def word(at: int) -> int:
        return int.from_bytes(out[at - first : at - first + 4], "little")

    def put(at: int, value: int) -> None:
        out[at - first : at - first + 4] = (value & MASK).to_bytes(4, "little")

    for s in code:
        a, b = max(first, s.offset), min(first + len(page), s.offset + s.length)
        at = a + (carry if a == first and a > s.offset else 0)
        while at + 2 <= b:
            value = word(at)
            if value & 3 != 3:
                at += 2
                continue
            if at + 4 > b:
                carried = 2 if b == first + len(page) else 0
                break
            pc = s.address + at - s.offset
            register = value >> 7 & 31
            if value & 0x7F == JAL:
                if inverse:
                    put(at, with_offset(value, JUMP, (value >> 12 << 1) - pc))
                else:
                    put(at, value & 0xFFF | (pc + offset_in(value, JUMP) >> 1 & 0xFFFFF) << 12)
            elif value & 0x7F == AUIPC and at + 8 <= b:
                follower = word(at + 4)
                base, offset = use(follower)
                if register and base == register:
                    target = ((value & 0xFFFFF000) + offset + (-pc if inverse else pc)) & MASK
                    put(at, value & 0xFFF | high(target))
                    put(at + 4, use_with(follower, target))
                    at += 4
            at += 4
    return bytes(out), carried
