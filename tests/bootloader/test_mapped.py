"""The core's mapped deltas against dfud's, on vectors and on noise; and what they take of memory."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from bootloader.sim.boot import ELF
from bootloader.sim.images import SLOTS, STAGE_AT, STATE_AT, Flash, envelope, stage, state
from bootloader.sim.scenarios import calls
from dfud.package.apply import read_table_untrusted
from dfud.package.build import build_mapped
from dfud.package.table import Table, encode_table, segments
from dfud.package.view_numpy import view
from dfud.wire.chunk import Chunk, decode_chunk_untrusted, encode_chunk
from tests.bootloader import core
from tests.bootloader.machine import machine
from tests.package.test_mapped import images, tables
from tests.real_parts import require

VECTORS = json.loads(Path(__file__).parents[1].joinpath("vectors", "mapped.json").read_text())


@pytest.mark.parametrize("step", [1 << 20, 1, 700])
def test_views_are_as_in_the_vectors(step: int) -> None:
    for case in VECTORS["views"]:
        error, found = core.view(bytes.fromhex(case["old"]), bytes.fromhex(case["table"]), step=step)
        assert (error, found.hex()) == (0, case["view"]), case["name"]


@pytest.mark.parametrize("case", VECTORS["packages"], ids=lambda c: c["name"])
def test_packages_of_the_vectors_are_installed(case: dict[str, object]) -> None:
    data = b"".join(bytes.fromhex(c) for c in case["chunks"])  # type: ignore[attr-defined]
    base, size = bytes.fromhex(str(case["base"])), int(str(case["size"]))
    error, count, image = core.chunks(data, 3, size, base)
    assert (error, count) == (0, len(case["chunks"]))  # type: ignore[arg-type]
    assert hashlib.sha256(image).hexdigest() == case["sha256"]
    assert core.chunks(data, 3, size, base, fresh=False) == (0, count, image)


def test_tables_are_taken_and_refused_as_in_the_vectors() -> None:
    found = VECTORS["tables"]
    old = bytes.fromhex(found["old"])
    for good in found["accepted"]:
        assert core.view(old, bytes.fromhex(good), found["size"])[0] == 0
    for case in found["refused"]:
        assert core.view(old, bytes.fromhex(case["hex"]), found["size"])[0] == 11, case["why"]


@settings(deadline=None, max_examples=150)
@given(images() | st.binary(min_size=1, max_size=3000), tables(), st.sampled_from([97, 1024, 1 << 20]))
def test_the_core_sees_what_dfud_sees(old: bytes, table: Table, step: int) -> None:
    error, found = core.view(old, encode_table(table, segments(old)), step=step)
    assert error == 0
    assert found == view(old, table)[0]


@settings(deadline=None, max_examples=60)
@given(images(), images(), st.integers(4112, 9000), st.booleans())
def test_every_package_that_dfud_makes_is_installed(image: bytes, base: bytes, payload: int, history: bool) -> None:
    package = build_mapped(image, base, payload, history=history)
    assert core.chunks(b"".join(package.chunks), 3, len(image), base) == (0, len(package.chunks), image)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 3), st.integers(0, 1 << 16), st.integers(1, 255), st.booleans())
def test_a_damaged_package_is_refused_or_gives_the_image(number: int, at: int, mask: int, payload_only: bool) -> None:
    case = VECTORS["packages"][number]
    chunks = [bytearray.fromhex(c) for c in case["chunks"]]
    place = at % sum(len(c) for c in chunks)
    for c in chunks:
        if place < len(c):
            c[place] ^= mask
            break
        place -= len(c)
    base, size = bytes.fromhex(case["base"]), case["size"]
    error, _, image = core.chunks(b"".join(chunks), 3, size, base)
    assert error or hashlib.sha256(image).hexdigest() == case["sha256"]


def test_a_package_without_its_table_is_refused() -> None:
    case = VECTORS["packages"][3]
    chunks = [bytes.fromhex(c) for c in case["chunks"]]
    first = decode_chunk_untrusted(chunks[0])
    _, frame = read_table_untrusted(first.payload)
    assert len(chunks) > 1
    bare = [encode_chunk(Chunk(0, 0, first.pages, first.crc, payload)) for payload in (frame, b"\xff\xff" + frame, b"\x85")]
    for wrong in (chunks[1:], *([one] for one in bare)):
        assert core.chunks(b"".join(wrong), 3, case["size"], bytes.fromhex(case["base"]))[0] == 11


def test_matches_reach_over_many_pages_of_the_same_chunk() -> None:
    rng = random.Random(3)
    piece = images_of(rng, 7000)
    base = images_of(random.Random(4), 3000)
    image = piece + piece[5000:] + piece[24:] * 3
    for history in (False, True):
        package = build_mapped(image, base, 65536, history=history)
        assert core.chunks(b"".join(package.chunks), 3, len(image), base)[::2] == (0, image)


def images_of(rng: random.Random, size: int) -> bytes:
    from tests.package.test_mapped import code, esp

    return esp([(0x3C000020, rng.randbytes(40)), (0x42000020, code(rng, size))])


STACK_LOW, STACK_HIGH = 0x3FCDC710, 0x3FCDE110
PAYLOAD_BYTES = 4112
RAM_MAX_BYTES = 16384


def test_decoding_takes_no_more_than_16_kilobytes() -> None:
    """The structures of the decoder, a payload, and all of the stack that an installation touches."""
    require("unicorn")
    require("riscv-gcc")
    case = VECTORS["packages"][4]  # with history, and entropy tables
    old, new = calls("old"), calls("new", 8)
    deepest = 0
    for base, image, chunks in (
        (old, new, list(build_mapped(new, old, PAYLOAD_BYTES).chunks)),
        (bytes.fromhex(case["base"]), None, [bytes.fromhex(c) for c in case["chunks"]]),
    ):
        flash = Flash()
        flash.install(0, old, envelope(old))
        if image is None:  # installed, if not booted: it is no application
            flash.install(0, base, envelope(base))
            image = core.chunks(b"".join(chunks), 3, case["size"], base)[2]
        digest = hashlib.sha256(base).digest()
        flash.put(STAGE_AT, stage(chunks, envelope(image, sequence=2), kind=3, base=digest))
        flash.put(STATE_AT, state(slot=0, phase=2))
        bootloader = machine()
        result = bootloader.boot(flash, reset_reason=1, store=[0] * 8, sram=b"\xa5" * 0x60000)
        assert flash.read(SLOTS[1], len(image)) == image, result.console
        memory = bootloader.sram.raw[0x4000:]
        stack = memory[STACK_LOW - 0x3FC80000 : STACK_HIGH - 0x3FC80000]
        deepest = max(deepest, len(stack.lstrip(b"\xa5")))
    sizes = {name: _symbols()[name] for name in ("zstd", "mapped")}
    total = sum(sizes.values()) + PAYLOAD_BYTES + deepest
    print(f"{sizes}, payload {PAYLOAD_BYTES}, stack {deepest}: {total} bytes")
    assert deepest > 500
    assert total <= RAM_MAX_BYTES


def _symbols() -> dict[str, int]:
    """Return the sizes of the shipped ELF's objects."""
    with ELF.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        return {s.name: s["st_size"] for s in table.iter_symbols() if s["st_info"]["type"] == "STT_OBJECT"}
