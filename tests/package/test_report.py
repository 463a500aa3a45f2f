"""Where the bytes of packages go: every byte of the image has an origin and every byte of the package is accounted for."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from devicefw.sim.firmware import build
from dfud.errors import PeerError
from dfud.package.build import build_delta, build_full, build_mapped, parameters
from dfud.package.file import PackageFile, make
from dfud.package.report import COPIED, LITERAL, MAPPED, REPEATED, report_untrusted, window
from dfud.package.zstd_frame import Sequence, read_frame_untrusted
from dfud.wire.chunk import Chunk, decode_chunk_untrusted, encode_chunk
from tests.package.test_build import changed, code


def frame_of(data: bytes, prefix: bytes, level: int) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters(level)).compress(data)


def replayed(sequences: list[Sequence], data: bytes, prefix: bytes) -> bytes:
    """What the sequences make, given that the literals are right."""
    out = bytearray(prefix)
    for one in sequences:
        at = len(out) - len(prefix)
        out += data[at : at + one.literals]
        assert one.offset <= len(out)
        for _ in range(one.match):
            out.append(out[-one.offset])
    return bytes(out[len(prefix) :])


DATAS = {
    "one byte": b"a",
    "one long run": b"a" * 100_000,
    "code": code(130_000),
    "noise": random.Random(3).randbytes(9000),
    "letters": bytes(random.Random(1).choices(b"abcdefg ", k=60_000)),
    "numbers": b"".join(b"%d, " % (n * n) for n in range(9000)),
    "several blocks": code(300_000, 4) + random.Random(8).randbytes(140_000) + b"x" * 200_000,
    "repeats": (random.Random(2).randbytes(50) + b"x" * 70) * 300,
}


@pytest.mark.parametrize("data", DATAS.values(), ids=DATAS)
@pytest.mark.parametrize("level", [1, 5, 12, 19])
def test_sequences_make_the_data_and_their_bits_add_up(data: bytes, level: int) -> None:
    for prefix in (b"", code(30_000), changed(data)[:50_000]):
        frame = frame_of(data, prefix, level)
        found = read_frame_untrusted(frame)
        assert replayed(found.sequences, data, prefix) == data
        bits = found.overhead_bits + sum(s.literal_bits + s.match_bits for s in found.sequences)
        assert bits == pytest.approx(8 * len(frame))
        assert 0 < found.overhead_bits <= 8 * len(frame)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 3), st.binary(max_size=80), st.integers(0, 90))
def test_rubbish_is_refused_with_one_error(rubbish: bytes, which: int, patch: bytes, at: int) -> None:
    good = frame_of(code(3000), code(1000), (1, 5, 12, 19)[which])
    for data in (rubbish, b"\x00\x58" + rubbish, good[:at] + patch + good[at + len(patch) :], good[:at]):
        try:
            read_frame_untrusted(data)
        except PeerError:
            pass


def test_a_damaged_frame_does_not_pass_for_more_than_its_pages() -> None:
    whole = build_full(code(100_000), 16384)
    wrong = make(1, 1000, whole.sha256, None, whole.chunks)
    with pytest.raises(PeerError, match=r"chunk 0: decodes to more than its pages hold|expected 1000"):
        report_untrusted(wrong)


def images() -> tuple[bytes, bytes]:
    old = code(150_000)
    new = bytearray(old)
    new[70_000:70_000] = b"something that is not there yet, and long enough to be seen" * 3
    return build("print(1)\n", "1.0", old), build("print(2)\n", "1.1", bytes(new))


def test_every_byte_of_the_package_is_accounted_for() -> None:
    old, new = images()
    for package, base in ((build_full(new, 6144), None), (build_delta(new, old, 6144), old)):
        seen: list[tuple[int, int]] = []
        report, origins = report_untrusted(package, image=new, base=base, progress=lambda *a, to=seen: to.append(a))
        assert sum(part.cost_bytes for part in report.parts) + report.overhead_bytes == pytest.approx(
            report.bytes, abs=1
        )
        assert sum(part.size for part in report.parts) == len(new) == len(origins)
        assert [part.name for part in report.parts if part.name != "padding"] == [
            "DROM",
            "IROM",
            "IRAM",
            "DRAM",
            "headers",
        ]
        for part in report.parts:
            assert sum(part.origins.values()) == part.size
        assert report.mapped_known and report.literals == (origins == LITERAL).sum()
        assert report.literals + report.matched == len(new)
        assert len(seen) == len(package.chunks) and seen[-1] == (len(new), len(new))
        assert (origins == MAPPED).sum() == 0, "these kinds change nothing on the way"


def test_a_delta_copies_the_base_and_sends_what_is_new() -> None:
    old, new = images()
    report, origins = report_untrusted(build_delta(new, old, 6144), image=new, base=old)
    assert (origins == COPIED).sum() > 140_000
    at = new.index(b"something that is not there yet")
    assert set(origins[at + 4 : at + 50].tolist()) == {LITERAL}
    assert (origins[at + 70 : at + 150] == REPEATED).all(), "its second half is copied from its first"
    irom = next(part for part in report.parts if part.name == "IROM")
    assert irom.cost_bytes > report.bytes / 2 - report.overhead_bytes


def test_what_a_mapped_delta_takes_from_the_image_before_is_repeated() -> None:
    """A table that says history: frames see the image so far, between the base's view and their own output."""
    old, new = images()
    noise = random.Random(4).randbytes(3000)
    new += noise + random.Random(5).randbytes(5000) + noise  # too much for one chunk
    for history in (False, True):
        report, origins = report_untrusted(build_mapped(new, old, 6144, history=history), image=new, base=old)
        assert sum(part.cost_bytes for part in report.parts) + report.overhead_bytes + report.table_bytes == pytest.approx(
            report.bytes, abs=1
        )
        assert (origins[-2900:] == REPEATED).mean() > 0.9 if history else (origins[-2900:] == LITERAL).mean() > 0.9


def test_without_the_base_the_image_is_one_part() -> None:
    old, new = images()
    report, origins = report_untrusted(build_delta(new, old, 6144))
    assert (report.mapped_known, [part.name for part in report.parts]) == (False, ["image"])
    with_base = report_untrusted(build_delta(new, old, 6144), image=new, base=old)[1]
    assert (origins == with_base).all()


def test_bytes_that_the_view_changed_are_mapped() -> None:
    """A package whose frames continue something else than the base: as kind 3 does, whatever its view."""
    base, view = code(20_000), bytearray(code(20_000))
    view[5000:5004] = b"\x00\x01\x02\x03"
    chunk = decode_chunk_untrusted(build_delta(bytes(view), bytes(view), 6144).chunks[0])
    without_a_table = encode_chunk(Chunk(0, 0, chunk.pages, chunk.crc, b"\0" + chunk.payload))
    package = PackageFile(bytes(16), 3, len(view), bytes(32), bytes(32), [without_a_table])
    report, origins = report_untrusted(package, image=bytes(view), base=base)
    assert (origins != COPIED).nonzero()[0].tolist() == [n for n in range(5000, 5004) if base[n] != view[n]]
    assert report.parts[0].origins["mapped"] == (origins == MAPPED).sum() > 0


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0x3C0A0020, "DROM"),
        (0x42000020, "IROM"),
        (0x40380000, "IRAM"),
        (0x3FC90000, "DRAM"),
        (0, "padding"),
        (0x400D0020, "0x400d0020"),
    ],
)
def test_segments_have_the_names_of_their_memories(address: int, name: str) -> None:
    assert window(address) == name
