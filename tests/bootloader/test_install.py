"""Packages that an agent staged, decoded by the bootloader."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest

from bootloader.sim.images import (
    KEYS_AT,
    SECTOR,
    SLOTS,
    STAGE_AT,
    STATE_AT,
    Flash,
    envelope,
    image,
    key,
    key_record,
    stage,
    state,
)
from bootloader.sim.scenarios import calls
from dfud.package.apply import read_table_untrusted
from dfud.package.build import build_delta, build_full, build_mapped
from dfud.wire.chunk import decode_chunk_untrusted, encode_chunk
from tests.bootloader.machine import NEW, OLD, SIGNER, boot, crash

BASE = hashlib.sha256(OLD).digest()


def staged(chunks: list[bytes] | None = None, *, kind: int = 1, base: bytes = BASE, described: bytes = b"", **values: int) -> Flash:
    flash = Flash()
    flash.install(0, OLD, envelope(OLD))
    flash.put(STATE_AT, state(**{"slot": 0, "phase": 2, **values}))
    found = list(build_full(NEW, 4112).chunks) if chunks is None else chunks
    flash.put(STAGE_AT, stage(found, described or envelope(NEW, version="1.1", sequence=2), kind=kind, base=base))
    return flash


def test_a_full_package_is_installed_and_booted_on_trial() -> None:
    flash = staged()
    found = boot(flash)
    assert found.slot == 1
    assert "installing into slot 1" in found.console
    assert flash.read(SLOTS[1], len(NEW)) == NEW
    assert (flash.state()["phase"], flash.state()["previous"]) == (1, 1)
    assert [crash(flash).slot for _ in range(3)] == [1, 1, 0]


def test_a_delta_is_installed_from_the_running_image() -> None:
    changed = bytearray(image("old", 30000))
    base = bytes(changed)
    changed = bytearray(image("old", 30000, segments=[(0x3FC96600, b"new!" * 20), (0x40380000, base[120:29000])]))
    data = bytes(changed)
    package = build_delta(data, base, 4112)
    flash = staged(list(package.chunks), kind=2, base=hashlib.sha256(base).digest(), described=envelope(data, sequence=2))
    flash.install(0, base, envelope(base))
    assert boot(flash).slot == 1
    assert flash.read(SLOTS[1], len(data)) == data
    assert package.total_bytes < len(data) // 10


CALLS_OLD, CALLS_NEW = calls("calls", 0), calls("calls too", 8)
MAPPED = list(build_mapped(CALLS_NEW, CALLS_OLD, 4112).chunks)


def staged_mapped(chunks: list[bytes], base: bytes = CALLS_OLD) -> Flash:
    flash = staged(chunks, kind=3, base=hashlib.sha256(base).digest(), described=envelope(CALLS_NEW, sequence=2))
    flash.install(0, CALLS_OLD, envelope(CALLS_OLD))
    return flash


def test_a_mapped_delta_is_installed_from_the_running_image() -> None:
    flash = staged_mapped(MAPPED)
    assert boot(flash).slot == 1
    assert flash.read(SLOTS[1], len(CALLS_NEW)) == CALLS_NEW
    assert sum(len(c) for c in MAPPED) * 5 < build_delta(CALLS_NEW, CALLS_OLD, 4112).total_bytes


def test_a_second_installation_of_a_mapped_delta_writes_the_state_only() -> None:
    flash = staged_mapped(MAPPED)
    boot(flash)
    flash.put(STATE_AT + 64, state(seq=9, slot=0, phase=2))
    before = flash.operations
    assert boot(flash).slot == 1
    assert flash.operations - before == 1


@pytest.mark.parametrize("what", ["another base", "no table", "the table's crc", "the table of another version", "too long"])
def test_a_mapped_delta_that_is_wrong_changes_nothing_that_runs(what: str) -> None:
    table = decode_chunk_untrusted(MAPPED[0])
    _, frame = read_table_untrusted(table.payload)
    if what == "another base":
        flash, number = staged_mapped(MAPPED, CALLS_NEW), 13
    elif what == "no table":
        flash, number = staged_mapped([encode_chunk(type(table)(0, 0, table.pages, table.crc, frame)), *MAPPED[1:]]), 11
    elif what == "the table's crc":
        flash, number = staged_mapped([encode_chunk(type(table)(0, 0, table.pages, table.crc ^ 1, table.payload)), *MAPPED[1:]]), 11
    elif what == "the table of another version":
        raw = b"\x02\0\0\0"
        stored = b"\0\x50" + (len(raw) << 3 | 1).to_bytes(3, "little") + raw
        payload = bytes([len(stored) << 1 | 1]) + stored
        flash, number = staged_mapped([encode_chunk(type(table)(0, 0, 0, zlib.crc32(raw), payload)), *MAPPED[1:]]), 11
    else:
        flash, number = staged_mapped([*MAPPED, *[b"\x95" + bytes(4000)] * 94]), 14
    before = {k: v for k, v in flash.sectors.items() if k < 0x1C0 and k > 0x10}
    found = boot(flash)
    assert found.slot == 0
    assert f"not installed, error {number}" in found.console
    assert before == {k: v for k, v in flash.sectors.items() if k < 0x1C0 and k > 0x10}


def test_sectors_that_are_right_are_left_alone() -> None:
    flash = staged()
    boot(flash)
    flash.put(STATE_AT + 64, state(seq=9, slot=0, phase=2))
    before = flash.operations
    assert boot(flash).slot == 1
    assert flash.operations - before == 1  # the state record


@pytest.mark.parametrize(
    ("flash", "number"),
    [
        (staged(kind=4), 18),
        (staged(list(build_delta(NEW, OLD, 4112).chunks), kind=2, base=bytes(32)), 13),
        (staged(described=envelope(NEW, sequence=2, app="other")), 10),
        (staged(described=envelope(NEW, sequence=2, hardware="esp32s3")), 10),
        (staged(described=envelope(NEW, sequence=2, size=0x1B0000)), 15),
        (staged(described=envelope(OLD, sequence=2)), 12),
        (staged(accept=3), 5),
        (staged(described=envelope(NEW, sequence=2, floor=3)), 10),
        (staged(floor=1, accept=1, described=envelope(NEW, sequence=0)), 5),
        (staged(list(build_full(NEW, 4112).chunks)[1:]), 11),
    ],
    ids=["kind", "base", "app", "hardware", "size", "other image", "accept", "own floor", "floor", "first chunk missing"],
)
def test_what_may_not_be_installed_is_said_and_the_old_image_goes_on(flash: Flash, number: int) -> None:
    flash = Flash(flash.sectors)
    found = boot(flash)
    assert found.slot == 0
    assert f"not installed, error {number}" in found.console
    assert (flash.state()["phase"], flash.state()["outcome"]) == (0, 7)
    record = flash.diagnostics()[-1]
    assert (record[8], struct.unpack_from("<I", record, 12)[0]) == (5, number)


def test_a_downgrade_that_the_manifest_allows_is_installed() -> None:
    assert boot(staged(accept=3, described=envelope(NEW, sequence=2, flags=1))).slot == 1


def test_a_chunk_that_decodes_to_something_else_is_refused() -> None:
    chunks = list(build_full(NEW, 4112).chunks)
    first = decode_chunk_untrusted(chunks[0])
    wrong = type(first)(first.number, first.page, first.pages, first.crc ^ 1, first.payload)
    flash = staged([encode_chunk(wrong), *chunks[1:]])
    assert boot(flash).slot == 0
    assert flash.state()["outcome"] == 7


def test_only_a_trusted_key_may_have_signed() -> None:
    for signer, slot in ((SIGNER, 1), (key(7), 0), (None, 0)):
        flash = staged(described=envelope(NEW, signer=signer, sequence=2))
        flash.install(0, OLD, envelope(OLD, signer=SIGNER))
        flash.put(KEYS_AT, key_record(SIGNER))
        assert boot(flash).slot == slot


@pytest.mark.parametrize("at", [0, 4, 8, 12, 20, 48, 60, 100])
def test_a_damaged_stage_header_is_refused(at: int) -> None:
    flash = staged()
    flash.put(STAGE_AT + at, bytes([flash.read(STAGE_AT + at, 1)[0] ^ 1]))
    assert boot(flash).slot == 0
    assert flash.state()["outcome"] == 7
    assert SECTOR == 4096
