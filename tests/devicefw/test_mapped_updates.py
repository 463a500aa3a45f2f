"""Whole updates by the agent's own code with mapped deltas, on real MicroPython (viper) and as plain bytecode: right, or refused."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dfud.errors import PeerError
from dfud.package.apply import apply_package, read_table_untrusted
from dfud.package.build import FULL_LEVEL, build_delta, build_mapped, parameters
from dfud.package.file import PackageFile, make
from dfud.package.table import varint
from dfud.wire.chunk import PAGE_BYTES, Chunk, decode_chunk_untrusted, encode_chunk
from dfud.wire.manifest import Manifest, encode_manifest
from dfud.wire.messages import Command, Type, encode_command
from dfud.wire.subset import encode
from tests.amounts import sampled
from tests.real_parts import require

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "mapped.json").read_text())
INTERPRETERS = ["micropython", "cpython"]
CHUNK, BASE, INTERNAL = 8, 9, 13
Case = dict[str, Any]


def image_of(package: dict[str, Any]) -> tuple[bytes, bytes, PackageFile]:
    """Return (base, image, package) of one of the vectors."""
    base, chunks = bytes.fromhex(package["base"]), [bytes.fromhex(c) for c in package["chunks"]]
    found = make(3, package["size"], bytes.fromhex(package["sha256"]), hashlib.sha256(base).digest(), chunks)
    return base, apply_package(found, base), found


MOVED = image_of(VECTORS["packages"][0])


def case(base: bytes, image: bytes, package: PackageFile, **more: Any) -> Case:
    manifest = Manifest("lamps", "1.1", "esp32c3", 2, len(image), hashlib.sha256(image).digest())
    command = Command(
        type=Type.UPDATE,
        version="1.1",
        manifest=encode([encode_manifest(manifest), b"", b""]),
        package=package.id,
        kind=package.kind,
        size=len(image),
        chunks=len(package.chunks),
        total_bytes=package.total_bytes,
        base=more.pop("digest", package.base_sha256),
    )
    chunks = [chunk.hex() for chunk in package.chunks]
    return {"command": encode_command(command).hex(), "base": base.hex(), "chunks": chunks, **more}


def run(interpreter: str, cases: list[Case], tmp_path: Path) -> list[tuple[str, int, int, int, list[int]]]:
    """Return for each case: what was said, CRC-32 of the slot, operations on it, writes outside of it, chunks asked for."""
    uses = Counter(text for one in cases for text in (one["base"], *one["chunks"]))
    pool = {text: i for i, text in enumerate(text for text, count in uses.items() if count > 1)}
    shared = [one | {"base": pool.get(one["base"], one["base"]), "chunks": [pool.get(c, c) for c in one["chunks"]]} for one in cases]
    (tmp_path / "cases").write_text("".join(json.dumps(line) + "\n" for line in [list(pool), *shared]))
    arguments = [str(Path(__file__).with_name("mcheck.py")), str(ROOT / "devicefw"), str(tmp_path / "cases")]
    program = [require("micropython"), "-X", "heapsize=16M"] if interpreter == "micropython" else [sys.executable]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]
    name, *lines = done.stdout.splitlines()
    assert name == interpreter and len(lines) == len(cases)
    found = []
    for line in lines:
        said, crc, writes, outside, asked = line.split("|")
        found.append((said, int(crc), int(writes), int(outside), [int(n) for n in asked.split(",") if n]))
    return found


def several_chunks(history: bool = False) -> tuple[bytes, bytes, PackageFile]:
    """An image of several pages with a chunk for each of them, so that there is something to resume."""
    base, image, _ = MOVED
    noise = random.Random(1).randbytes(13000)
    image = image + noise + noise[:3000]
    package = build_mapped(image, base, 4112, history=history)
    assert len(package.chunks) >= 4
    return base, image, package


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_every_package_of_the_vectors_is_installed(interpreter: str, tmp_path: Path) -> None:
    found = [image_of(package) for package in VECTORS["packages"]]
    cases = [case(base, image, package) for base, image, package in found]
    for (base, image, package), answer in zip(found, run(interpreter, cases, tmp_path), strict=True):
        said, crc, writes, outside, asked = answer
        if image == base:
            assert (said, writes, asked) == (f"error {INTERNAL} this image is running already", 0, [])
            continue
        assert (said, crc, outside, asked) == ("written", zlib.crc32(image), 0, list(range(len(package.chunks))))
        assert writes >= 2 * -(-len(image) // PAGE_BYTES), "each page is erased and written"


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_another_base_is_refused_before_the_first_byte(interpreter: str, tmp_path: Path) -> None:
    base, image, package = MOVED
    other = bytearray(base)
    other[5000] ^= 1
    cases = [case(bytes(other), image, package), case(base, image, package, digest=bytes(32)), case(base, image, package, digest=b"")]
    for said, _, writes, _, asked in run(interpreter, cases, tmp_path):
        assert said == f"error {BASE} the package starts from another image"
        assert (writes, asked) == (0, [])


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_wrong_chunk_is_fetched_again_and_three_wrong_ones_end_it(interpreter: str, tmp_path: Path) -> None:
    base, image, package = several_chunks()
    cases = []
    for number, data in enumerate(package.chunks):
        damaged = bytearray(data)
        damaged[-2] ^= 0x40
        elsewhere = package.chunks[number - 1]
        for count in (1, 2, 3):
            wrong = {str(number): [bytes(damaged).hex(), elsewhere.hex(), data[:-1].hex()][:count]}
            cases.append(case(base, image, package, wrong=wrong))
    answers = run(interpreter, cases, tmp_path)
    for i, (said, crc, _, outside, asked) in enumerate(answers):
        number, count = i // 3, i % 3 + 1
        assert asked[: number + count] == [*range(number), *[number] * count]
        assert outside == 0
        if count < 3:
            assert (said, crc) == ("written", zlib.crc32(image))
        else:
            assert said.startswith(f"error {CHUNK} chunk {number}: ") and len(asked) == number + 3


@pytest.mark.parametrize("history", [False, True])
def test_a_power_cut_at_every_operation_goes_on_where_it_was(tmp_path: Path, history: bool) -> None:
    base, image, package = several_chunks(history)
    (_, _, total, _, _), *_ = run("micropython", [case(base, image, package)], tmp_path)
    assert total > 10
    answers = run("micropython", [case(base, image, package, cut=n) for n in range(1, total + 3 + len(package.chunks))], tmp_path)
    again = 0
    for number, (said, crc, _, outside, asked) in enumerate(answers, 1):
        where = f"cut at operation {number}: {said}, {asked}"
        assert (said, crc, outside) == ("written", zlib.crc32(image), 0), where
        assert len(asked) <= len(package.chunks) + 2, f"{where}: at most the table and one chunk are fetched twice"
        again += asked.count(0) == 2
    assert again > 3, "the table is fetched again where it was lost"


def test_staged_for_the_bootloader_it_is_stored_as_it_came(tmp_path: Path) -> None:
    base, image, package = several_chunks()
    said, _, writes, outside, asked = run("micropython", [case(base, image, package, stage=1)], tmp_path)[0]
    assert (said, writes, outside, asked) == ("written", 0, 0, list(range(len(package.chunks))))


def with_table(data: bytes, packed: bytes, image: bytes) -> bytes:
    """Return the first chunk of a package with another table; every second one is compressed."""
    chunk = decode_chunk_untrusted(data)
    _, frame = read_table_untrusted(chunk.payload)
    compressed = zlib.crc32(packed) & 1
    stored = zstandard.ZstdCompressor(compression_params=parameters(FULL_LEVEL)).compress(packed) if compressed else packed
    front = bytearray()
    varint(front, len(stored) << 1 | compressed)
    crc = zlib.crc32(image[: chunk.pages * PAGE_BYTES], zlib.crc32(packed))
    return encode_chunk(Chunk(0, 0, chunk.pages, crc, bytes(front) + stored + frame))


def table_alone(package: PackageFile, image: bytes) -> list[bytes]:
    """Return the package's chunks with the table in one of its own."""
    first, *others = map(decode_chunk_untrusted, package.chunks)
    table, frame = read_table_untrusted(first.payload)
    pages = Chunk(1, 0, first.pages, zlib.crc32(image[: first.pages * PAGE_BYTES]), frame)
    front = Chunk(0, 0, 0, zlib.crc32(table), first.payload[: len(first.payload) - len(frame)])
    later = [Chunk(c.number + 1, c.page, c.pages, c.crc, c.payload) for c in others]
    return [encode_chunk(c) for c in (front, pages, *later)]


def number(rng: random.Random) -> bytes:
    """A varint of any size, often one of those at which something ends."""
    value = rng.choice([0, 1, 2, 127, rng.randrange(128), rng.getrandbits(16), rng.getrandbits(32), 0xFFFFFFFF, 0x7FFFFFFF])
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def hostile_tables(rng: random.Random, good: bytes) -> bytes:
    """Tables that are nearly right: changed, made up, or with as many entries as there may be."""
    kind = rng.randrange(4)
    if kind == 0:
        data = bytearray(good)
        for _ in range(rng.choice((1, 2, 5))):
            data[rng.randrange(1, len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        return bytes(data)
    if kind == 1:
        count, flags = rng.randrange(200), rng.choice((4, 5))
        starts = [number(rng) if rng.random() < 0.02 else bytes([rng.randrange(1, 128)]) for _ in range(count)]
        head = bytes([1, flags, 0, count & 127 | 128, count >> 7]) if count > 127 else bytes([1, flags, 0, count])
        shifts = [number(rng) for _ in range(count)]
        if count:
            starts[0] = b"\x80\x80\x80\x90\x04"  # 0x42000000
        return head + b"".join(starts) + b"".join(shifts)
    if kind == 2:
        # Segments of the new image anywhere; often nearly inside it, and overlapping pages by odd sizes.
        n = rng.randrange(1, 4)
        return bytes([1, rng.choice((0, 4, 5, 7))]) + bytes([n]) + b"".join(number(rng) for _ in range(3 * n)) + b"\0"
    return bytes([1]) + b"".join(number(rng) for _ in range(rng.randrange(30)))


def hostile_chunk(rng: random.Random, data: bytes) -> bytes:
    chunk = decode_chunk_untrusted(data)
    kind = rng.randrange(4)
    payload = bytearray(chunk.payload)
    if kind == 0:
        # Any bytes at all in absolute form: what is taken back is code that no compiler wrote.
        text = bytes(rng.choice((0x6F, 0x17, 0x97, 0x03, 0x23, 0x67, 0xEF, 0x37, 0xB7, rng.randrange(256))) for _ in range(4096))
        frame = zstandard.ZstdCompressor(compression_params=parameters(1)).compress(text)
        return encode_chunk(Chunk(chunk.number, chunk.page, 1, chunk.crc, frame))
    if kind == 1:
        fields = [chunk.number, chunk.page, chunk.pages, chunk.crc]
        fields[rng.randrange(4)] = rng.choice([0, 1, 2, 31, 32, 33, 255, 1 << 20, 0xFFFFFFFF])
        return encode([*fields, bytes(payload)])
    for _ in range(rng.choice((1, 1, 2, 8))):
        payload[rng.randrange(len(payload))] = rng.randrange(256)
    return encode_chunk(Chunk(chunk.number, chunk.page, chunk.pages, chunk.crc, bytes(payload)))


@pytest.mark.parametrize(
    ("interpreter", "count"), [*sampled(("micropython", 300), ("micropython", 1500)), *sampled(("cpython", 60), ("cpython", 250))]
)
def test_hostile_chunks_write_nothing_outside_of_the_slot(interpreter: str, count: int, tmp_path: Path) -> None:
    """Under CPython every index of the inner loops is checked; under MicroPython the same code runs as viper, which checks none."""
    seed = 21
    rng = random.Random(seed)
    base, image, package = several_chunks()
    good, _ = read_table_untrusted(decode_chunk_untrusted(package.chunks[0]).payload)
    cases = []
    for _ in range(count):
        chunks = list(package.chunks)
        if rng.random() < 0.5:
            chunks[0] = with_table(chunks[0], hostile_tables(rng, good), image)
        else:
            at = rng.randrange(len(chunks))
            chunks[at] = hostile_chunk(rng, chunks[at])
        wrong = make(3, package.size, package.sha256, package.base_sha256, chunks)
        cases.append(case(base, image, wrong))
    counts = {"written": 0, "error": 0}
    for i, (said, crc, _, outside, _) in enumerate(run(interpreter, cases, tmp_path)):
        where = f"seed {seed} case {i}: {said}"
        assert outside == 0, where
        counts[said.split(" ", 1)[0]] += 1
        assert said != "written" or crc == zlib.crc32(image), where
    assert counts["error"] > 4 * counts["written"], counts


@pytest.mark.parametrize(
    ("interpreter", "count"), [*sampled(("micropython", 150), ("micropython", 600)), *sampled(("cpython", 20), ("cpython", 60))]
)
def test_hostile_tables_are_judged_as_dfud_does(interpreter: str, count: int, tmp_path: Path) -> None:
    """A table that both take leads to the same bytes: the chunk behind it is made with that table by dfud's own view."""
    rng = random.Random(5)
    base, image, package = several_chunks()
    alone = table_alone(package, image)
    good, _ = read_table_untrusted(decode_chunk_untrusted(package.chunks[0]).payload)
    cases, expected = [], []
    for _ in range(count):
        packed = hostile_tables(rng, good)
        chunks = [with_table(alone[0], packed, image), *alone[1:]]
        wrong = make(3, package.size, package.sha256, package.base_sha256, chunks)
        try:
            apply_package(wrong, base)
            expected.append("")
        except PeerError as error:
            expected.append("chunk 0" if str(error).startswith("chunk 0: ") else "later")
        cases.append(case(base, image, wrong))
    for i, ((said, *_), wanted) in enumerate(zip(run(interpreter, cases, tmp_path), expected, strict=True)):
        refused = "" if said == "written" else "chunk 0" if said.startswith(f"error {CHUNK} chunk 0: ") else "later"
        assert refused == wanted, f"case {i}: {said}, dfud: {wanted}"
    assert {"chunk 0", "later"} <= set(expected)


def test_kinds_without_a_table_refuse_one(tmp_path: Path) -> None:
    base, image, _ = MOVED
    package = build_delta(image, base, 4112)
    mapped = build_mapped(image, base, 4112)
    wrong = make(2, package.size, package.sha256, package.base_sha256, [mapped.chunks[0], *package.chunks[1:]])
    assert run("micropython", [case(base, image, wrong)], tmp_path)[0][0].startswith(f"error {CHUNK} chunk 0: ")


def test_a_sector_holds_its_page_only_when_every_byte_is_the_same() -> None:
    """What lets a page that stands in flash already be left alone after a power cut."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from dfu import flash
class Part:
    data = bytearray(i * 7 & 255 for i in range(8192))
    def readblocks(self, block, buffer, offset=0):
        at = 4096 * block + offset
        buffer[:] = self.data[at : at + len(buffer)]
page = Part.data[4096:7100]
print(flash.holds(Part(), 4096, memoryview(page)))
for at in (0, 127, 128, 3003):
    page[at] ^= 1
    print(flash.holds(Part(), 4096, memoryview(page)))
    page[at] ^= 1
"""
    command = [require("micropython"), "-c", program.replace("sys.argv[1]", repr(str(ROOT / "devicefw")))]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "False", "False", "False", "False"], run.stderr


def test_a_chunk_of_more_than_1024_pages_is_refused_by_server_and_agent() -> None:
    most, more = (encode_chunk(Chunk(1, 0, pages, 0, b"x")) for pages in (1024, 1025))
    assert decode_chunk_untrusted(most).pages == 1024
    with pytest.raises(PeerError, match="pages"):
        decode_chunk_untrusted(more)
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "devicefw")!r})
from dfu.chunk import chunk_head
from dfu.errors import PackError
print(chunk_head({most!r}, {len(most)})[2])
try:
    chunk_head({more!r}, {len(more)})
except PackError as error:
    print(error)
"""
    run = subprocess.run([require("micropython"), "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["1024", "chunk pages"], run.stderr
