"""The agent's zstd decoder, on real MicroPython (viper) and as plain bytecode: right where python-zstandard is, and safe."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

from dfud.errors import PeerError
from dfud.package.apply import decode_frame_untrusted
from dfud.package.build import parameters
from tests.amounts import sampled
from tests.package.test_build import changed, code
from tests.real_parts import require
from tests.vectors.make_chunks import below_huffman, below_sequences, below_weights

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).with_name("zcheck.py")
INTERPRETERS = ["micropython", "cpython"]
LEVELS = (1, 5, 12, 19)


def decode_all(interpreter: str, cases: list[dict[str, object]], tmp_path: Path) -> list[str]:
    (tmp_path / "cases").write_text("".join(json.dumps(case) + "\n" for case in cases))
    arguments = [str(CHECK), str(ROOT / "devicefw"), str(tmp_path / "cases")]
    if interpreter == "micropython":
        run = subprocess.run([require("micropython"), "-X", "heapsize=64M", *arguments], capture_output=True, text=True)
        head = "viper micropython"
    else:
        run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        head = "plain cpython"
    assert run.returncode == 0, run.stdout[-500:] + run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert lines[0] == head
    assert len(lines) == len(cases) + 1
    return lines[1:]


def frame_of(data: bytes, prefix: bytes, level: int) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters(level)).compress(data)


def case(frame: bytes, prefix: bytes, size: int) -> dict[str, object]:
    return {"frame": frame.hex(), "prefix": prefix.hex(), "size": size}


@pytest.mark.parametrize(
    ("interpreter", "levels"), [*sampled(("micropython", (1, 19)), ("micropython", LEVELS)), ("cpython", LEVELS)]
)
def test_frames_of_every_level_and_kind_of_data_decode(interpreter: str, levels: tuple[int, ...], tmp_path: Path) -> None:
    rng = random.Random(3)
    datas = [
        b"a",
        b"a" * 100_000,
        bytes(range(256)) * 40,
        rng.randbytes(9000),
        code(130_000),
        code(40_000, 7),
        bytes(rng.choice(b"abcdefg ") for _ in range(60_000)),
        b"".join(b"%d, " % (n * n) for n in range(9000)),
        (rng.randbytes(50) + b"x" * 70) * 300,
        # Every byte value among the literals, unevenly: a Huffman table with 256 symbols.
        bytes(min(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(20_000)) + bytes(range(256)),
    ]
    cases, expected = [], []
    for data in datas:
        for level in levels:
            for prefix in (b"", code(30_000), changed(data)[:50_000]):
                cases.append(case(frame_of(data, prefix, level), prefix, len(data)))
                expected.append(str(zlib.crc32(data)))
    assert decode_all(interpreter, cases, tmp_path) == expected


@pytest.mark.parametrize(
    ("interpreter", "count"), [*sampled(("micropython", 500), ("micropython", 3000)), *sampled(("cpython", 200), ("cpython", 300))]
)
def test_mutilated_frames_are_refused_or_decode_as_the_reference_does(interpreter: str, count: int, tmp_path: Path) -> None:
    seed = 11
    rng = random.Random(seed)
    prefix = code(5000)
    good = [
        (frame_of(d, prefix, level), len(d)) for level in (1, 19) for d in (code(6000), changed(prefix), b"ab" * 2000)
    ]
    cases: list[dict[str, object]] = []
    for _ in range(count):
        frame, size = rng.choice(good)
        data = bytearray(frame)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((20, 10_000))))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(1, len(data)) :]
        cases.append(case(bytes(data), prefix, rng.choice((size, size, size + 1, max(1, size - 1), 4096))))
    answers = decode_all(interpreter, cases, tmp_path)
    refused = 0
    for number, (one, answer) in enumerate(zip(cases, answers, strict=True)):
        frame, size = bytes.fromhex(str(one["frame"])), int(str(one["size"]))
        try:
            reference = decode_frame_untrusted(frame, prefix, size)
        except PeerError:
            # The device may take some frames that libzstd refuses (it checks less); the chunk's CRC judges those.
            refused += answer.startswith("error")
            continue
        assert answer == str(zlib.crc32(reference)), f"seed {seed} case {number}: {answer}"
    assert refused > len(cases) // 4


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_rubbish_is_refused(interpreter: str, tmp_path: Path) -> None:
    rng = random.Random(5)
    cases = [case(rng.randbytes(rng.randrange(60)), b"prefix", 100) for _ in range(2000)]
    # With a plausible head, the rubbish gets as far as the tables.
    cases += [
        case(
            b"\x00\x58" + bytes([5 | rng.randrange(8) << 3, 1 + rng.randrange(2), 0]) + rng.randbytes(60),
            b"prefix",
            100,
        )
        for _ in range(2000)
    ]
    answers = decode_all(interpreter, cases, tmp_path)
    assert sum(a.startswith("error") for a in answers) > 3900


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_huffman_table_with_symbols_beyond_every_weight_is_refused(interpreter: str, tmp_path: Path) -> None:
    """Its description says that weight after weight does not occur: up to 600 of them."""
    cases = []
    for size in (3, 20, 23, 25, 40, 63, 90, 127):
        description = b"\x10\xfe" + b"\xff" * (size - 2)
        content = bytes([size]) + description + b"\x01"
        literals = (2 | 10 << 4 | len(content) << 14).to_bytes(3, "little") + content + b"\0"
        head = (len(literals) << 3 | 2 << 1 | 1).to_bytes(3, "little")
        cases.append(case(b"\0\x58" + head + literals, b"prefix", 100))
    for answer in decode_all(interpreter, cases, tmp_path):
        assert answer.startswith("error"), answer


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_stream_read_below_its_start_is_refused(interpreter: str, tmp_path: Path) -> None:
    """Zeros for ever, or, where viper loads words unsigned, whatever stands gigabytes behind the frame."""
    frames = [(below_huffman(), 3500 + 1023), (below_sequences(), 3500 + 30 * 33), (below_weights(), 3500 + 3)]
    answers = decode_all(interpreter, [case(frame, b"", size) for frame, size in frames], tmp_path)
    assert answers == ["error sequence -7", "error sequence -4", "error weights"]
    for frame, size in frames:
        with pytest.raises(PeerError):
            decode_frame_untrusted(frame, b"", size)
