"""Write inputs that are right into the corpus, for the fuzzers to start from: python -m bootloader.fuzz.seeds"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import zstandard

from bootloader.sim.images import (
    SECTOR,
    envelope,
    image,
    key,
    key_id,
    key_record,
    public,
    stage,
    state,
    trailer,
)
from dfud.package.apply import read_table_untrusted
from dfud.package.build import build_full, parameters
from dfud.wire.chunk import decode_chunk_untrusted

CORPUS = Path(__file__).with_name("corpus")
VECTORS = Path(__file__).parents[2] / "tests" / "vectors" / "mapped.json"


def frame(data: bytes, prefix: bytes, level: int) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters(level))
    return compressor.compress(data)


def seeds() -> dict[str, bytes]:
    """Return name -> input."""
    out: dict[str, bytes] = {}
    small = image("seed", 2000)
    out["image/plain"] = small
    out["image/trailer"] = small.ljust(8192, b"\xff") + trailer(envelope(small))
    out["image/mapped"] = image("m", segments=[(0x3C000020, bytes(64)), (0x40380000, b"\x01\xa0\x01\xa0")])
    signed = envelope(small, signer=key(1), add=(public(key(2)),), revoke=(key_id(key(3)),), floor=3, sequence=70000)
    out["frame/envelope"] = envelope(small)
    out["frame/signed"] = signed
    chunks = list(build_full(image("seed", 9000), 4112).chunks)
    out["frame/chunk"] = chunks[0]
    text = b"".join(b"%d bottles of beer on the wall, " % i for i in range(300))
    for level in (1, 3, 9, 19):
        for name, data in (("text", text), ("noise", small), ("zeros", bytes(9000)), ("short", b"abc")):
            for prefix in (b"", text[:2000] + bytes(80)):
                head = struct.pack("<BH", len(prefix) // 16, len(data) - 1)
                kept = prefix[: len(prefix) // 16 * 16]
                out[f"zstd/{name}-{level}-{len(prefix)}"] = head + kept + frame(data, kept, level)
    out["zstd/chunk"] = struct.pack("<BH", 0, len(image("seed", 9000)) - 1) + decode_chunk_untrusted(chunks[0]).payload
    records = [(0, state(slot=0)), (0, state(seq=2, slot=1, phase=1)), (2, key_record(key(1)))]
    staged = stage(chunks, envelope(image("seed", 9000)))
    body = bytes(12)
    for place, record in [*records, (0, state(seq=3, phase=2)), (4, staged[:SECTOR]), (5, staged[SECTOR:])]:
        size = max(0, (len(record) - 1).bit_length() - 5)
        body += bytes([place << 3 | min(size, 7)]) + record[:SECTOR].ljust(32 << min(size, 7), b"\xff")
    out["record/all"] = body
    begin = b"\x03" + b"\x00\x01" + b"\xff" * 32 + envelope(image("seed", 1500))
    chunk = b"\x04" + build_full(image("seed", 1500), 4112).chunks[0]
    frames = [b"\x01", b"\x02\x03", begin, chunk, b"\x05", b"\x06"]
    out["recovery/whole"] = b"".join(struct.pack("<H", len(f)) + f for f in frames)
    vectors = json.loads(VECTORS.read_text())
    for number, case in enumerate(vectors["views"]):
        old, table = bytes.fromhex(case["old"]), bytes.fromhex(case["table"])
        out[f"mapped/view-{number}"] = _mapped(old, table, len(old), number & 1) + bytes.fromhex(case["view"])
    for number, case in enumerate(vectors["packages"]):
        if len(case["base"]) < 16000:
            found = [decode_chunk_untrusted(bytes.fromhex(c)).payload for c in case["chunks"]]
            pages = read_table_untrusted(found[0])[1] or found[1]
            head = _mapped(bytes.fromhex(case["base"]), bytes.fromhex(case["table"]), case["size"], 1)
            out[f"mapped/package-{number}"] = head + pages
    return out


def _mapped(old: bytes, table: bytes, size: int, step: int) -> bytes:
    """Return the input of fuzz/mapped.c up to what is both a form and a frame."""
    return struct.pack("<HHHBB", len(old), len(table), size - 1, 0, step) + old + table


def main() -> None:
    for name, data in seeds().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
