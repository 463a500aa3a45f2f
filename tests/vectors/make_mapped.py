"""Writes mapped.json anew: `python tests/vectors/make_mapped.py`. Only when the format changes; the tests read the file."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import zstandard

from dfud.package.build import build_mapped, parameters
from dfud.package.table import Segment, Table, decode_table_untrusted, encode_table, segments
from dfud.package.view import VIEW_BYTES, View, transform
from dfud.package.apply import apply_package, read_table_untrusted
from dfud.wire.chunk import PAGE_BYTES, Chunk, decode_chunk_untrusted, encode_chunk

DROM, IROM, DRAM, IRAM = 0x3C000020, 0x42000020, 0x3FC90000, 0x40380000
A0, A1, RA, T0, S0, SP = 10, 11, 1, 5, 8, 2


def esp(*parts: tuple[int, bytes], tail: bytes = b"") -> bytes:
    out = bytearray(24)
    out[0], out[1], out[12] = 0xE9, len(parts), 5
    for address, data in parts:
        out += struct.pack("<II", address, len(data)) + data
    return bytes(out) + tail


def jal(rd: int, offset: int) -> bytes:
    o = offset & 0x1FFFFF
    return struct.pack(
        "<I", (o >> 20) << 31 | (o >> 1 & 0x3FF) << 21 | (o >> 11 & 1) << 20 | (o >> 12 & 0xFF) << 12 | rd << 7 | 0x6F
    )


def upper(operation: int, rd: int, value: int) -> bytes:
    return struct.pack("<I", value + 0x800 & 0xFFFFF000 | rd << 7 | operation)


def lui(rd: int, value: int) -> bytes:
    return upper(0x37, rd, value)


def auipc(rd: int, offset: int) -> bytes:
    return upper(0x17, rd, offset)


def op(operation: int, function: int, rd: int, base: int, offset: int) -> bytes:
    return struct.pack("<I", (offset & 0xFFF) << 20 | base << 15 | function << 12 | rd << 7 | operation)


def addi(rd: int, base: int, offset: int) -> bytes:
    return op(0x13, 0, rd, base, offset)


def lw(rd: int, base: int, offset: int) -> bytes:
    return op(0x03, 2, rd, base, offset)


def jalr(rd: int, base: int, offset: int) -> bytes:
    return op(0x67, 0, rd, base, offset)


def sw(source: int, base: int, offset: int) -> bytes:
    return struct.pack(
        "<I", (offset >> 5 & 127) << 25 | source << 20 | base << 15 | 2 << 12 | (offset & 31) << 7 | 0x23
    )


def half(value: int) -> bytes:
    return struct.pack("<H", value)


def bne(offset: int) -> bytes:
    o = offset & 0x1FFF
    return struct.pack(
        "<I", (o >> 12) << 31 | (o >> 5 & 63) << 25 | 11 << 20 | 10 << 15 | 1 << 12 | (o >> 1 & 15) << 8 | (o >> 11 & 1) << 7 | 0x63
    )


def short_jump(function: int, offset: int) -> bytes:
    """c.j (5) or c.jal (1)."""
    o, bits = offset & 0xFFF, ((11, 12), (4, 11), (9, 10), (8, 9), (10, 8), (6, 7), (7, 6), (3, 5), (2, 4), (1, 3), (5, 2))
    return half(function << 13 | 1 | sum((o >> source & 1) << to for source, to in bits))


def short_branch(function: int, offset: int) -> bytes:
    """c.beqz (6) or c.bnez (7) of s0."""
    o, bits = offset & 0x1FF, ((8, 12), (4, 11), (3, 10), (7, 6), (6, 5), (2, 4), (1, 3), (5, 2))
    return half(function << 13 | 1 | sum((o >> source & 1) << to for source, to in bits))


def c_lwsp(rd: int) -> bytes:
    return half(0x4002 | rd << 7)


RET, NOP, MV_A0_A1, LI_A0, CALL_A0, C_JAL = map(half, (0x8082, 0x0001, 0x852E, 0x4501, 0x9502, 0x2011))
DATA = DRAM + 0x7F0  # so that its lui must change as soon as it moves on

# What stands in the code, one after the other; most map to other bytes.
PIECES: list[tuple[str, Callable[[int], bytes]]] = [
    ("jal ra forwards and back", lambda pc: jal(RA, 0x2000) + jal(RA, -0x10) + jal(0, 0x404)),
    ("auipc and jalr, to the ROM too", lambda pc: auipc(RA, 0x1234) + jalr(RA, RA, 0x234) + auipc(T0, 0x40000100 - pc - 8) + jalr(T0, T0, (0x100 - pc - 8) & 0xFFF)),
    ("auipc and a load, a store, addi", lambda pc: auipc(A0, -0x5000) + lw(A1, A0, -4) + auipc(A0, 0x123800) + sw(A1, A0, -2048) + auipc(A0, 0x800) + addi(A0, A0, 2047)),
    ("auipc without a use, with another's use, of x0", lambda pc: auipc(A0, 0x1000) + MV_A0_A1 + NOP + auipc(A0, 0x1000) + lw(A0, A1, 8) + auipc(0, 0x1000) + lw(A0, 0, 8)),
    ("lui and addi", lambda pc: lui(A0, DATA) + addi(A0, A0, DATA & 0xFFF)),
    ("lui, a load and a store", lambda pc: lui(A0, DATA) + lw(A1, A0, DATA & 0xFFF) + sw(A1, A0, (DATA + 4) & 0xFFF)),
    ("lui, a use out of reach", lambda pc: lui(A0, DATA) + lw(A1, A0, DATA & 0xFFF) + lw(A1, A0, 0x7FC)),
    ("lui, used after 23 others", lambda pc: lui(S0, DATA) + NOP * 23 + addi(S0, S0, DATA & 0xFFF)),
    ("lui, used after 24 others", lambda pc: lui(S0, DATA) + NOP * 24 + addi(S0, S0, DATA & 0xFFF)),
    ("lui, overwritten by a compressed instruction", lambda pc: lui(A0, DATA) + LI_A0 + addi(A0, A0, 4) + lui(A0, DATA) + lw(A1, A0, DATA & 0xFFF) + LI_A0 + lw(A1, A0, DATA & 0xFFF)),
    ("lui, lost to a call", lambda pc: lui(A0, DATA) + lw(A1, A0, DATA & 0xFFF) + jal(RA, 0x100) + lw(A1, A0, DATA & 0xFFF) + lui(A0, DATA) + lw(A1, A0, DATA & 0xFFF) + CALL_A0 + sw(A1, A0, 0)),
    ("lui, kept over a call in s0", lambda pc: lui(S0, DATA) + lw(A1, S0, DATA & 0xFFF) + C_JAL + jalr(RA, A1, 0) + sw(A1, S0, DATA & 0xFFF)),
    ("lui, its use behind a branch and a jump", lambda pc: lui(A0, DATA) + struct.pack("<I", 0x00B50463) + addi(A0, A0, DATA & 0xFFF) + lui(A0, DATA) + jal(0, 8) + addi(A0, A0, DATA & 0xFFF)),
    ("lui of no address, of x0", lambda pc: lui(A0, 0x12345000) + addi(A0, A0, 0x678) + lui(0, DATA) + addi(A0, 0, 5)),
    ("lui, looked ahead from over calls in s0, not in a0", lambda pc: lui(S0, DATA) + C_JAL + jalr(RA, A1, 0) + CALL_A0 + addi(S0, S0, DATA & 0xFFF) + lui(A0, DATA) + CALL_A0 + addi(A0, A0, DATA & 0xFFF)),
    ("lui, kept over what restores s0", lambda pc: lui(S0, DATA) + lw(A1, S0, DATA & 0xFFF) + c_lwsp(S0) + lw(A1, S0, DATA & 0xFFF) + lw(S0, SP, 300) + RET + lw(A1, S0, DATA & 0xFFF)),
    ("lui, looked ahead from over what restores s0", lambda pc: lui(S0, DATA) + c_lwsp(S0) + lw(S0, SP, 300) + addi(A0, S0, DATA & 0xFFF)),
    ("lui, overwritten from the stack in a0, from elsewhere in s0", lambda pc: lui(A0, DATA) + lw(A1, A0, DATA & 0xFFF) + c_lwsp(A0) + lw(A1, A0, DATA & 0xFFF) + lui(S0, DATA) + lw(A1, S0, DATA & 0xFFF) + lw(S0, A1, 8) + lw(A1, S0, DATA & 0xFFF)),
    ("branches within, over a step, out of what is known", lambda pc: bne(8) + bne(0xFFE) + NOP + bne(-0x1000) + bne(-4) + bne(0xFF0)),
    ("lui that carries", lambda pc: lui(A0, DRAM + 0x800) + addi(A0, A0, -2048) + lui(A0, DRAM) + addi(A0, A0, 2047)),
]
# Steps so near that every kind of branch reaches over one of them, to a place so far off that not all of the offset has room.
NEAR = Table(0b10, (), (IROM, IROM + 0x10, IROM + 0x20, IROM + 0x40), (0x100, 0x102, -0x7F00, 0x12344))
TABLE = Table(0b10, (), (DROM, DRAM + 0x100, IRAM, IROM, IROM + 0x1000), (0x40, 0x24, 0x10000, 0x1234 & ~1, -0x22))


def rubble(rng: random.Random, size: int) -> bytes:
    """Instructions of which most are references, or overwrite what one needs."""
    out = bytearray()
    while len(out) < size:
        kind, register = rng.randrange(12), rng.choice([1, 2, 5, 8, 10, 15, 0])
        use = rng.getrandbits(12) << 20 | register << 15 | rng.choice([1, 8, 10, 20]) << 7 | rng.choice([0x67, 0x13, 0x2003, 0x2023])
        if kind == 0:
            out += jal(register, rng.randrange(-4096, 4096, 2))
        elif kind == 1:
            out += auipc(register, rng.randrange(-9000, 9000)) + struct.pack("<I", use)
        elif kind in (2, 3):
            out += lui(register, rng.choice((IROM, DROM, DRAM, IRAM, 0x12345000)) + rng.randrange(1 << 12))
        elif kind in (4, 5):
            out += struct.pack("<I", use)
        elif kind == 6:
            out += half(rng.getrandbits(14) << 2 | rng.randrange(3))
        elif kind == 7:
            out += rng.randbytes(2)
        elif kind == 8:
            out += bne(rng.randrange(-4096, 4096, 2))
        elif kind == 9:
            out += rng.choice((short_jump(1, rng.randrange(-2048, 2048, 2)), short_branch(7, rng.randrange(-256, 256, 2))))
        elif kind == 10:
            out += rng.choice((c_lwsp(rng.choice((8, 10, 9))), lw(rng.choice((8, 10, 18)), SP, 16)))
        else:
            out += rng.choice((RET, CALL_A0, C_JAL, LI_A0, struct.pack("<I", 0x0FF0000F | 8 << 7)))
    return bytes(out[:size])


def place(build: Callable[[int], bytes], before: bytes = b"") -> bytes:
    return before + build(IROM + len(before)) + RET


def body(rng: random.Random, size: int, moved: int = 0) -> bytes:
    """Code of about `size` bytes with all kinds of references; `moved`: how far everything behind its middle stands from where it was."""
    out = bytearray()
    rng = random.Random(rng.random())
    targets = [rng.randrange(0, size, 2) for _ in range(40)]
    inserted = False
    while len(out) < size:
        if moved and not inserted and len(out) > size // 2:
            out += NOP * (moved // 2)
            inserted = True
        pc = IROM + len(out)

        def where(target: int) -> int:
            return IROM + target + (moved if target > size // 2 else 0)

        k = rng.randrange(11)
        target, data = where(rng.choice(targets)), DRAM + 4 * rng.randrange(600) + (moved and 8)
        if k == 0:
            out += jal(RA, target - pc)
        elif k == 1:
            out += auipc(RA, target - pc) + jalr(RA, RA, (target - pc) & 0xFFF)
        elif k == 2:
            out += lui(A0, data) + rng.choice([addi(A0, A0, data & 0xFFF), lw(A1, A0, data & 0xFFF), sw(A1, A0, data & 0xFFF)])
        elif k == 3:
            out += auipc(A0, data - pc) + rng.choice([addi, lw])(A0, A0, (data - pc) & 0xFFF)
        elif k == 4:
            out += rng.choice([RET, NOP, MV_A0_A1, LI_A0, CALL_A0])
        elif k == 9:
            near = where(target if abs(target - len(out)) < 3000 else len(out) // 2 * 2 - (moved if inserted else 0) + rng.randrange(-40, 40, 2))
            out += bne(near - pc)
        elif k == 10:
            near = where(max(0, len(out) - (moved if inserted else 0) + rng.randrange(-200, 200, 2)))
            out += short_jump(5, near - pc) if rng.random() < 0.5 else short_branch(6, near - pc)
        elif k == 5:
            out += half(rng.getrandbits(14) << 2 | rng.randrange(3))
        else:
            out += op(0x13, rng.randrange(1, 8), rng.randrange(32), rng.randrange(32), rng.getrandbits(12))
    return bytes(out)


def main() -> None:
    views = []

    def case(name: str, old: bytes, table: Table) -> None:
        packed = encode_table(table, segments(old))
        views.append({"name": name, "old": old.hex(), "table": packed.hex(), "view": View(old, table).whole().hex()})

    for name, build in PIECES:
        case(name, esp((DRAM, bytes(4)), (IROM, place(build))), TABLE)
    for function in (1, 5):
        code = b"".join(short_jump(function, offset) for offset in (2, 0x20, -2, 0x7FE, -0x800, 0x10, -6, 0x3E, 0x2A, -0x20, 0x154))
        case(f"short jumps, function {function}", esp((IROM, bytes(4)), (IROM, code * 4)), NEAR)
    for function in (6, 7):
        code = b"".join(short_branch(function, offset) for offset in (2, 0x20, -2, 0xFE, -0x100, 0x10, -6, 0x3E, 0x2A, -0x20, 0x54))
        case(f"short branches, function {function}", esp((IROM, bytes(4)), (IROM, code * 4)), NEAR)
    code = b"".join(bne(offset) + NOP for offset in (2, 0x20, -2, 0xFFE, -0x1000, 0x10, -6, 0x3E, 0x2AA, -0x20, 0x554))
    case("branches", esp((IROM, bytes(4)), (IROM, code * 2)), NEAR)
    case("a branch of code at address 0", esp((0, bytes(4)), (0, code)), Table(2, (), (0, 8), (4, 8)))
    case("a branch that the end cuts", esp((IROM, bytes(4)), (IROM, NOP * 20 + bne(-0x20)[:2])), NEAR)
    pointers = struct.pack("<8I", DROM, DROM + 4, DRAM + 0x104, IROM + 0x1000, 0x40000100, IRAM, 0x3C07FFFF, 0x3C080000)
    for cut in range(4):
        case(f"data, {cut} bytes over", esp((DROM, pointers + pointers[:cut]), (IROM, RET)), TABLE)
        code = place(PIECES[0][1]) + jal(RA, 8)[: 2 + cut] + half(0x17)[:cut]
        case(f"code that ends in the middle, {cut}", esp((DROM, pointers), (IROM, code)), TABLE)
    for back in (0, 2, 4, 6):
        # over the border of a view page, for data and for code
        filler = NOP * ((VIEW_BYTES - 24 - 8 - 16 - 8 - back) // 2)
        code = filler + PIECES[2][1](IROM) + PIECES[4][1](IROM) + NOP * 4
        case(f"references over a view page's border, {back}", esp((DRAM, bytes(16)), (IROM, code)), TABLE)
        case(f"a branch over a view page's border, {back}", esp((DRAM, bytes(16)), (IROM, filler + bne(-0x800) + NOP)), NEAR)
        for before in (250, 252, 254, 256, 258):
            # a lui that the preroll still sees, or does not
            code = NOP * ((VIEW_BYTES - 24 - 8 - 16 - 8 - before) // 2) + lui(S0, DATA - 32) + NOP * (before // 2) + addi(A0, S0, DATA - 32 & 0xFFF)
            case(f"lui {before} bytes before its use, {back}", esp((DRAM, bytes(16)), (IROM, NOP * (back // 2) + code)), TABLE)
    case("data over a view page's border", esp((DROM, bytes(VIEW_BYTES - 34) + pointers)), Table(0, (), TABLE.starts, TABLE.shifts))
    case("no header", b"\0" + esp((DROM, pointers))[1:], TABLE)
    case("a segment that does not fit", esp((DROM, pointers), (IROM, place(PIECES[0][1])))[:-4], TABLE)
    case("seventeen segments", esp(*[(DROM, pointers)] * 17), TABLE)
    case("an empty table", esp((DROM, pointers), (IROM, place(PIECES[0][1]))), Table(2))
    case("the first entry above everything", esp((DROM, pointers), (IROM, place(PIECES[1][1]))), Table(2, (), (0xF0000000,), (4,)))

    for seed in range(10):
        # anything at all, at odd places, with a table that has steps everywhere
        rng = random.Random(seed)
        parts = []
        for address in rng.sample((IROM, IROM + 0x800, DROM, DRAM, IRAM, 0xFFFFFFF0, 0), 3):
            size = rng.choice((1021, 2090, 3002))
            words = (rng.choice((IROM, DROM, DRAM)) + rng.randrange(1 << 12) for _ in range(size // 4))
            parts.append((address, rubble(rng, size) if rng.random() < 0.7 else struct.pack(f"<{size // 4}I", *words) + b"\x20" * (size % 4)))
        old = esp(*parts, tail=rng.randbytes(7))
        places = (where + rng.randrange(1 << 12) for where, _ in parts for _ in range(40))
        starts = sorted({p & 0xFFFFFFFF for p in places})
        case(f"rubble {seed}", old, Table(rng.randrange(1, 8), (), starts, [rng.randrange(-6000, 6000) for _ in starts]))

    rng = random.Random(6)
    noise = rng.random()
    text = b"".join(rng.choice([b"valve ", b"pump ", b"motor ", b"ok "]) for _ in range(150))
    # so many bytes that instructions lie over the borders of pages, and that the code's end is not a whole instruction
    def image(moved: int) -> bytes:
        table = b"".join(struct.pack("<I", IROM + 400 * i + (moved if 400 * i > 4500 else 0)) for i in range(20))
        code = body(random.Random(seed), 9000, moved)
        return esp((DROM, table + text[: 700 + moved] + bytes(-(700 + moved) % 4)), (IROM, code[: len(code) & ~3]), (DRAM, bytes(range(64))), tail=b"tail!")

    rough = rubble(random.Random(11), 9001)
    # over a page's border an instruction whose second half looks like a jal
    rough = rough[:4020] + NOP * 21 + struct.pack("<I", 0x00EF0513) + NOP * 30 + rough[4126:]
    packages = []
    for name, old, new, history in (
        ("moved", image(0), image(30), False),
        ("back", image(30), image(0), False),
        ("the same", image(0), image(0), False),
        ("from nothing like it", esp((DROM, text)), image(30), False),
        ("from nothing like it, with history", esp((DROM, text)), image(30), True),
        ("rubble", esp((IROM, rough)), esp((IROM, rough[:6002] + NOP * 3 + rough[6002:])), False),
        ("rubble, with history", esp((DROM, text)), esp((IROM, rough + NOP * 5 + rough)), True),
    ):
        package = build_mapped(new, old, 4112, history=history)
        assert apply_package(package, old) == new
        chunks = [decode_chunk_untrusted(c) for c in package.chunks]
        packed, frame = read_table_untrusted(chunks[0].payload)
        encoded = list(package.chunks)
        if name == "back":  # the table by itself, as if nothing fitted beside it
            stored = zstandard.ZstdCompressor(compression_params=parameters(19)).compress(packed)
            alone = Chunk(0, 0, 0, zlib.crc32(packed), bytes([len(stored) << 1 & 127 | 129, len(stored) >> 6]) + stored)
            rest = Chunk(1, 0, chunks[0].pages, zlib.crc32(new[: chunks[0].pages * PAGE_BYTES]), frame)
            chunks = [alone, rest, *(msgspec.structs.replace(c, number=c.number + 1) for c in chunks[1:])]
            encoded = [encode_chunk(c) for c in chunks]
        table = decode_table_untrusted(packed, segments(old), len(new))
        whole = View(old, table).whole()
        forms: list[int] = []
        for chunk in chunks:
            carry = 0
            for first in range(chunk.page * PAGE_BYTES, (chunk.page + chunk.pages) * PAGE_BYTES, PAGE_BYTES):
                form, carry = transform(new[first : first + PAGE_BYTES], first, carry, table.new)
                forms.append(zlib.crc32(form))
        packages.append(
            {
                "name": name,
                "base": old.hex(),
                "size": len(new),
                "sha256": package.sha256.hex(),
                "table": packed.hex(),
                "view_crc": [zlib.crc32(whole[i : i + VIEW_BYTES]) for i in range(0, len(whole), VIEW_BYTES)],
                "form_crc": forms,
                "chunks": [c.hex() for c in encoded],
            }
        )

    old, size = esp((DROM, pointers), (IROM, place(PIECES[0][1]))), 500
    good = encode_table(Table(2, (Segment(100, 40, IROM),), (5, 9), (1, -1)), segments(old))

    def number(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes(out) + bytes([value])

    def one(offset: int, length: int, address: int = 0) -> bytes:
        """A table with one segment, said from nothing (code is 0)."""
        return b"\1\0\1" + number(2 * offset) + number(2 * length) + number(2 * address) + b"\0"

    refused = [
        {"why": why, "hex": data.hex()}
        for why, data in (
            ("empty", b""),
            ("version 2", b"\2" + good[1:]),
            *((f"cut to {n}", good[:n]) for n in range(1, len(good))),
            ("a byte behind it", good + b"\0"),
            ("flags of 18 bits", b"\1\x80\x80\x08\0\0"),
            ("17 segments", b"\1\0\x11" + b"\0\0\0" * 17 + b"\0"),
            ("a segment beyond the image", one(400, 102)),
            ("a segment that begins behind the image", one(502, 0)),
            ("an odd offset", one(3, 8)),
            ("an odd address", one(4, 8, 1)),
            ("segments that overlap", b"\1\0\2" + number(20) + number(20) + b"\0" + number(38) + number(20) + b"\0" + b"\0"),
            ("two entries at one place", b"\1\0\0\2\5\0\0\0"),
            ("a start above 2^32", b"\1\0\0\2" + number(0xFFFFFFFF) + b"\1\0\0"),
            ("2049 entries", b"\1\0\0" + number(2049) + b"\1" * 2049 + b"\0" * 2049),
            ("a number of six bytes", b"\1\0\0\1\x80\x80\x80\x80\x80\0\0"),
            ("a number above 2^32", b"\1\0\0\1\xff\xff\xff\xff\x1f\0"),
        )
    ]
    out = {
        "views": views,
        "packages": packages,
        "tables": {"old": old.hex(), "size": size, "accepted": [good.hex(), "01000000", one(400, 100).hex()], "refused": refused},
    }
    Path(__file__).with_name("mapped.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
