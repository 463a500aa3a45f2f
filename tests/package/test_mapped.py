"""The mapped delta: both readings of docs/delta-format.md agree, nothing is lost, and what is damaged is refused."""

from __future__ import annotations

import json
import random
import resource
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.package import build, view_numpy
from dfud.package.apply import apply_package, decode_frame_untrusted, read_table_untrusted
from dfud.package.build import build_mapped, build_package
from dfud.package.file import PackageFile, make, read_package_untrusted, write_package
from dfud.package.mapping import make_tables
from dfud.package.table import Segment, Table, decode_table_untrusted, encode_table, segments, varint
from dfud.package.view import PAGE_BYTES, VIEW_BYTES, View, transform
from dfud.wire.chunk import Chunk, decode_chunk_untrusted, encode_chunk
from dfud.wire.messages import Kind
from tests.amounts import sampled

VECTORS = json.loads(Path(__file__).parents[1].joinpath("vectors", "mapped.json").read_text())
ADDRESSES = (0x42000020, 0x3C000020, 0x3FC80000, 0x40380000, 0xFFFFFFF0, 0x42000021, 0)


def esp(parts: list[tuple[int, bytes]], tail: bytes = b"") -> bytes:
    head = bytearray(24)
    head[0], head[1], head[12] = 0xE9, len(parts), 5
    return bytes(head) + b"".join(struct.pack("<II", a, len(d)) + d for a, d in parts) + tail


def code(rng: random.Random, size: int) -> bytes:
    """Instructions of which most are references, or overwrite what one needs."""
    out = bytearray()
    while len(out) < size:
        kind, register = rng.randrange(12), rng.choice([1, 2, 5, 8, 10, 15, 0])
        use = rng.getrandbits(12) << 20 | register << 15 | rng.choice([1, 10, 20]) << 7
        use |= rng.choice([0x67, 0x13, 0x2003, 0x2023])
        if kind == 0:
            out += struct.pack("<I", rng.getrandbits(20) << 12 | register << 7 | 0x6F)
        elif kind == 1:
            out += struct.pack("<II", rng.getrandbits(20) << 12 | register << 7 | 0x17, use)
        elif kind in (2, 3):
            out += struct.pack("<I", rng.choice([0x42000, 0x3C000, 0x3FC80, 0x3FC81, 12]) << 12 | register << 7 | 0x37)
        elif kind in (4, 5):
            out += struct.pack("<I", use)
        elif kind == 6:
            out += struct.pack("<H", rng.getrandbits(16) & ~3 | rng.randrange(3))
        elif kind == 7:
            out += rng.randbytes(2)
        elif kind == 8:
            out += struct.pack("<I", rng.getrandbits(25) << 7 | 0x63)
        elif kind == 9:
            out += struct.pack("<H", rng.choice([1, 5, 6, 7]) << 13 | rng.getrandbits(11) << 2 | 1)
        elif kind == 10:
            # what may be a restore
            load = rng.choice([8, 10, 18]) << 7 | 2 << 15 | 0x2003
            out += rng.choice([struct.pack("<I", load), struct.pack("<H", 0x4002 | rng.choice([8, 10, 9]) << 7)])
        else:
            out += struct.pack("<H", rng.choice([0x8082, 0x9082, 0x2001, 0x4501]))
    return bytes(out[:size])


@st.composite
def images(draw: st.DrawFn) -> bytes:
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.sampled_from([0, 1, 2, 3, 4, 7, 500, 1021, 3002, 8999]))
        parts.append(
            (draw(st.sampled_from(ADDRESSES)), code(rng, size) if draw(st.booleans()) else rng.randbytes(size))
        )
    return esp(parts, draw(st.binary(max_size=40)))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    starts = sorted(draw(st.sets(st.integers(0x3C000000, 0x42002000) | st.integers(0, 0xFFFFFFFF), max_size=12)))
    shifts = [draw(st.integers(-9000, 9000) | st.integers(-(1 << 31), (1 << 31) - 1)) for _ in starts]
    return Table(draw(st.integers(0, 15)), (), starts, shifts, draw(st.booleans()))


@pytest.mark.parametrize("case", VECTORS["views"], ids=lambda c: c["name"])
def test_views_are_as_in_the_vectors(case: dict[str, str]) -> None:
    old = bytes.fromhex(case["old"])
    table = decode_table_untrusted(bytes.fromhex(case["table"]), segments(old), 1 << 20)
    assert View(old, table).whole().hex() == case["view"]
    assert view_numpy.view(old, table)[0].hex() == case["view"]


@pytest.mark.parametrize("case", VECTORS["packages"], ids=lambda c: c["name"])
def test_packages_of_the_vectors_apply(case: dict[str, object]) -> None:
    package, base = package_of(case)
    image = apply_package(package, base)
    table = decode_table_untrusted(bytes.fromhex(str(case["table"])), segments(base), len(image))
    view = View(base, table).whole()
    assert [zlib.crc32(view[i : i + VIEW_BYTES]) for i in range(0, len(view), VIEW_BYTES)] == case["view_crc"]
    forms = []
    for data in package.chunks:
        chunk, carry = decode_chunk_untrusted(data), 0
        for first in range(chunk.page * PAGE_BYTES, (chunk.page + chunk.pages) * PAGE_BYTES, PAGE_BYTES):
            form, carry = transform(image[first : first + PAGE_BYTES], first, carry, table.new)
            forms.append(zlib.crc32(form))
    assert forms == case["form_crc"]


def package_of(case: dict[str, object]) -> tuple[PackageFile, bytes]:
    import hashlib

    base = bytes.fromhex(str(case["base"]))
    chunks = [bytes.fromhex(c) for c in case["chunks"]]  # type: ignore[attr-defined]
    sha256 = bytes.fromhex(str(case["sha256"]))
    return make(Kind.MAPPED, int(str(case["size"])), sha256, hashlib.sha256(base).digest(), chunks), base


def test_tables_are_taken_and_refused_as_in_the_vectors() -> None:
    found = VECTORS["tables"]
    old = segments(bytes.fromhex(found["old"]))
    for good in found["accepted"]:
        assert encode_table(decode_table_untrusted(bytes.fromhex(good), old, found["size"]), old).hex() == good
    for case in found["refused"]:
        with pytest.raises(PeerError, match="table: "):
            print(case["why"], decode_table_untrusted(bytes.fromhex(case["hex"]), old, found["size"]))


@given(st.binary(max_size=60), st.integers(0, 5000))
def test_whatever_is_read_as_a_table_is_one(data: bytes, size: int) -> None:
    old = [Segment(32, 100, 0x42000020), Segment(140, 400, 0x3C000000)]
    try:
        table = decode_table_untrusted(b"\1" + data, old, size)
    except PeerError:
        return
    assert decode_table_untrusted(encode_table(table, old), old, size) == table
    assert all(s.offset + s.length <= size for s in table.new)


@settings(deadline=None, max_examples=100)
@given(images() | st.binary(max_size=3000), tables())
def test_numpy_sees_what_the_slow_reading_sees(old: bytes, table: Table) -> None:
    assert view_numpy.view(old, table)[0] == View(old, table).whole()


@pytest.mark.parametrize("examples", sampled(20, 100))
def test_the_absolute_form_is_a_bijection(examples: int) -> None:
    settings(deadline=None, max_examples=examples)(given(images(), st.integers(1, 4))(there_and_back))()


def there_and_back(image: bytes, pages: int) -> None:
    code: list[Segment] = []
    for s in segments(image):
        if not (s.offset | s.address) & 1:
            code.append(s)
    slow, fast, back = [], view_numpy.Absolute(image, code), []
    for first in range(0, len(image), PAGE_BYTES * pages):
        end, carry = min(first + PAGE_BYTES * pages, len(image)), 0
        for at in range(first, end, PAGE_BYTES):
            form, following = transform(image[at : at + PAGE_BYTES], at, carry, code)
            assert transform(form, at, carry, code, inverse=True) == (image[at : at + PAGE_BYTES], following)
            slow.append(form)
            carry = following
        assert fast.of(first, end) == b"".join(slow[first // PAGE_BYTES :])
    inverse = view_numpy.Absolute(b"".join(slow), code, inverse=True)
    for first in range(0, len(image), PAGE_BYTES * pages):
        back.append(inverse.of(first, min(first + PAGE_BYTES * pages, len(image))))
    assert b"".join(back) == image


@settings(deadline=None, max_examples=40)
@given(
    images() | st.binary(min_size=1, max_size=9000),
    images() | st.binary(max_size=9000),
    st.integers(4112, 9000),
    st.booleans(),
)
def test_any_two_images_make_a_mapped_package_that_applies(
    image: bytes, base: bytes, payload: int, history: bool
) -> None:
    package = build_mapped(image, base, payload, history=history)
    assert apply_package(package, base) == image
    assert read_package_untrusted(write_package(package)) == package
    chunks = [decode_chunk_untrusted(c) for c in package.chunks]
    assert all(len(c.payload) <= payload for c in chunks) and [c.number for c in chunks] == list(range(len(chunks)))


def test_an_old_image_that_points_at_nothing_still_makes_a_package() -> None:
    """The same bytes, data in the old image, in the new one code with a jump in it: there is nothing to vote with."""
    halves = random.Random(5).randbytes(1000)
    same = bytes(b & 0xFC | 1 if i % 2 == 0 else b for i, b in enumerate(halves)) + b"\x6f\0\0\0" + bytes(16)
    old, new = (
        b"\xe9\1" + bytes(10) + b"\5" + bytes(11) + address.to_bytes(4, "little") + len(same).to_bytes(4, "little") + same
        for address in (0x3C000020, 0x42000020)
    )
    assert apply_package(build_mapped(new, old, 4112), old) == new


def program(moved: int, seed: int = 1) -> bytes:
    """Return an image whose functions call each other and use data; everything behind its middle is `moved`."""
    rng = random.Random(seed)
    out = bytearray()
    for i in range(4000):
        if i == 2000:
            out += b"\x01\0" * (moved // 2)
        target = rng.randrange(0, 56000, 2)
        offset = target + (moved if target >= 28000 else 0) - len(out) & 0x1FFFFF
        jal = (
            (offset >> 20) << 31 | (offset >> 1 & 0x3FF) << 21 | (offset >> 11 & 1) << 20 | (offset >> 12 & 0xFF) << 12
        )
        address = 0x3FC90000 + 4 * rng.randrange(3000) + moved
        upper = (address + 0x800 & 0xFFFFF000) | 10 << 7 | 0x37
        out += struct.pack(
            "<IIIH",
            upper,
            (address & 0xFFF) << 20 | 10 << 15 | 10 << 7 | 0x13,
            jal | 0xEF,
            rng.getrandbits(14) << 2 | 2,
        )
    out += bytes(-len(out) % 4)
    return esp([(0x3C000020, b"text" * 20), (0x42000020, bytes(out)), (0x3FC90000, bytes(16000 + moved))])


def test_moved_code_costs_next_to_nothing() -> None:
    old, new = program(0), program(16)
    kinds = 1 << Kind.FULL | 1 << Kind.DELTA
    plain = build_package(new, old, kinds=kinds, payload_bytes=4112)
    package = build_package(new, old, kinds=kinds | 1 << Kind.MAPPED, payload_bytes=4112)
    assert (package.kind, plain.kind) == (Kind.MAPPED, Kind.DELTA)
    assert package.total_bytes * 25 < plain.total_bytes
    assert package.total_bytes < 600
    assert apply_package(package, old) == new


def test_the_smallest_of_what_the_device_decodes_is_made() -> None:
    old, new = program(0), program(16)
    for kinds, kind in ((1 << 1, 1), (1 << 2, 2), (1 << 3, 3), (7 << 1, 3), (3 << 1, 2)):
        assert build_package(new, old, kinds=kinds, payload_bytes=4112).kind == kind
    # other architectures: nothing to map, and still an update
    text = b"".join(b"%d bottles, " % i for i in range(4000))
    assert build_package(text + b"more", text, kinds=7 << 1, payload_bytes=4112).kind == Kind.DELTA
    assert apply_package(build_package(text, old, kinds=1 << 3, payload_bytes=4112), old) == text


def test_chunks_that_look_back_are_smaller_and_the_same_with_any_number_of_threads() -> None:
    old = program(0)
    parts = segments(program(0, 2))
    fresh = program(0, 2)[parts[1].offset :][:20000]
    new = esp([(0x3C000020, b"text" * 20), (0x42000020, fresh + fresh[4000:] + fresh)])
    one, two = (build_mapped(new, old, 4112, history=True, workers=n) for n in (1, 3))
    assert one == two
    assert one.total_bytes * 4 < build_mapped(new, old, 4112, history=False).total_bytes * 3
    assert build_mapped(new, old, 4112) == one
    assert apply_package(one, old) == new


def test_a_table_can_be_held_small() -> None:
    old = program(0)
    steps = esp([(0x3C000020, b"text" * 20), (0x42000020, program(40)[segments(old)[1].offset :][:50000])])
    assert [len(t.starts) for t in make_tables(old, program(16), 1)] == [1]
    for entries in (0, 1, 5):
        package = build_mapped(steps, old, 4112, entries=entries)
        assert apply_package(package, old) == steps
        assert all(len(t.starts) <= entries for t in make_tables(old, steps, entries))


@pytest.mark.parametrize("number", range(2))
def test_a_damaged_chunk_is_refused(number: int) -> None:
    package, base = package_of(VECTORS["packages"][3])
    chunk = decode_chunk_untrusted(package.chunks[number])
    for wrong in (
        Chunk(chunk.number, chunk.page, chunk.pages, chunk.crc ^ 1, chunk.payload),
        Chunk(chunk.number, chunk.page + 1, chunk.pages, chunk.crc, chunk.payload),
        Chunk(chunk.number, chunk.page, chunk.pages - 1 if chunk.pages else 1, chunk.crc, chunk.payload),
        Chunk(chunk.number + 1, chunk.page, chunk.pages, chunk.crc, chunk.payload),
        Chunk(chunk.number, chunk.page, chunk.pages, chunk.crc, chunk.payload[:-1]),
    ):
        chunks = [*package.chunks[:number], encode_chunk(wrong), *package.chunks[number + 1 :]]
        with pytest.raises(PeerError, match=f"chunk {number}: "):
            apply_package(make(Kind.MAPPED, package.size, package.sha256, package.base_sha256, chunks), base)


def test_a_package_with_another_base_or_without_its_table_is_refused() -> None:
    package, base = package_of(VECTORS["packages"][0])
    with pytest.raises(PeerError, match="another image"):
        apply_package(package, base + b"x")
    chunk = decode_chunk_untrusted(package.chunks[0])
    _, frame = read_table_untrusted(chunk.payload)
    for payload in (frame, b"\x81\x81\x01" + frame, b"\xff\x7f" + frame, b"\x85", b"\x05" + frame):
        first = encode_chunk(Chunk(0, 0, chunk.pages, chunk.crc, payload))
        with pytest.raises(PeerError, match="chunk 0: (chunk|table): "):
            apply_package(make(Kind.MAPPED, package.size, package.sha256, package.base_sha256, [first]), base)


def test_a_table_too_large_to_share_a_chunk_travels_alone() -> None:
    package, base = package_of(VECTORS["packages"][1])
    first = decode_chunk_untrusted(package.chunks[0])
    assert (first.pages, read_table_untrusted(first.payload)[1]) == (0, b"")
    apply_package(package, base)
    # What is said to have pages has to bring them, and the other way around.
    for wrong in (Chunk(0, 0, 1, first.crc, first.payload), Chunk(0, 0, 0, first.crc, first.payload + b"\0")):
        chunks = [encode_chunk(wrong), *package.chunks[1:]]
        with pytest.raises(PeerError, match="chunk 0: "):
            apply_package(make(Kind.MAPPED, package.size, package.sha256, package.base_sha256, chunks), base)
    # As the encoder does it: 1200 entries of noise beside a page that hardly compresses.
    rng = random.Random(1)
    starts = sorted(rng.sample(range(0x42000020, 0x42070000), 1200))
    table = Table(0, (), starts, [rng.randrange(-60, 60) for _ in starts])
    front = build.table_front(encode_table(table, segments(base)))
    assert len(front) > 1000
    noise = rng.randbytes(9000)
    cut = list(build.cut(noise, lambda a, b: noise[a:b], 4112, front=len(front)))
    assert [(c.number, c.page, c.pages) for c in cut] == [(0, 0, 0), (1, 0, 1), (2, 1, 1), (3, 2, 1)]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 1 << 15), st.booleans())
def test_any_bytes_are_a_first_payload_or_refused(data: bytes, length: int, compressed: bool) -> None:
    front = bytearray()
    varint(front, length << 1 | compressed)
    for payload in (data, bytes(front) + data, bytes(front[:-1]) + data):
        try:
            table, frame = read_table_untrusted(payload)
        except PeerError:
            continue
        assert payload.endswith(frame) and len(table) <= 8191


def test_a_frame_that_says_more_than_it_may_takes_no_memory() -> None:
    # 16,000 blocks of one byte repeated 128 KB long: 2 GB, out of 64 KB
    bomb = b"\0\x60" + (b"\x02\x00\x10" + b"\xff") * 16_000 + b"\x01\0\0"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    front = bytearray()
    varint(front, 8191 << 1 | 1)
    with pytest.raises(PeerError, match="at most 4096 bytes"):
        decode_frame_untrusted(bomb, b"", 4096)
    with pytest.raises(PeerError, match="expected at most 4096"):
        decode_frame_untrusted(b"\xc0\x60" + b"\x7f" * 8 + bomb[2:], b"", 4096)
    with pytest.raises(PeerError, match="at most 4096 bytes"):
        read_table_untrusted(bytes(front) + bomb[:8188] + b"\x01\0\0")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KB"
