"""Writes chunks.json anew: `python tests/vectors/make_chunks.py`. Only when the format changes; the tests read the file."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

from dfud.package.build import build_delta, build_full
from dfud.wire.chunk import Chunk, decode_chunk_untrusted, encode_chunk


def block(kind: int, size: int, content: bytes, last: bool) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + content


def below(literals: bytes, sequences: bytes) -> bytes:
    """Return a frame whose last block lies over the end of a page: the state of its streams is kept between two runs of the loop."""
    content = literals + sequences
    return b"\x00\x58" + block(1, 3500, b"a", False) + block(2, len(content), content, True)


def below_huffman() -> bytes:
    """1023 literals of one bit each, out of a stream that holds none."""
    content = b"\x80\x10" + b"\x01"
    return below((2 | 1023 << 4 | len(content) << 14).to_bytes(3, "little") + content, b"\0")


def below_sequences() -> bytes:
    """30 matches whose offsets have 2 bits each, out of a stream that holds none."""
    return below(b"\0", b"\x1e\x54" + bytes([0, 2, 30]) + b"\x01")


def below_weights() -> bytes:
    """Two states of weights, out of a stream that holds no bits for them."""
    content = b"\x03\x00\x7e\x01" + b"\xff\x01"
    return below((2 | 3 << 4 | len(content) << 14).to_bytes(3, "little") + content, b"\0")


def main() -> None:
    rng = random.Random(20)
    words = [rng.randbytes(4) for _ in range(200)]
    base = b"".join(rng.choice(words) for _ in range(2500)) + b"end"
    image = base[:4000] + rng.randbytes(30) + base[4100:9000] + b"tail" * 40
    packages = []
    full = build_full(image, 4112)
    for name, package in (
        ("full, several chunks", full),
        ("full of one byte", build_full(b"x", 4112)),
        ("delta", build_delta(image, base, 4112)),
    ):
        packages.append(
            {
                "name": name,
                "kind": int(package.kind),
                "size": package.size,
                "sha256": package.sha256.hex(),
                "base": base.hex() if package.base_sha256 else "",
                "chunks": [chunk.hex() for chunk in package.chunks],
            }
        )
    chunk = decode_chunk_untrusted(full.chunks[0])
    payload = chunk.payload

    def bad(why: str, payload: bytes, **changes: int) -> dict[str, str]:
        head = {"number": 0, "page": 0, "pages": chunk.pages, "crc": chunk.crc, **changes}
        return {"why": why, "hex": encode_chunk(Chunk(**head, payload=payload)).hex()}

    refused = [
        bad("another crc", payload, crc=zlib.crc32(b"")),
        bad("cut short", payload[:-1]),
        bad("a byte behind the frame", payload + b"\0"),
        bad("with the magic number", b"\x28\xb5\x2f\xfd" + payload),
        bad("too few pages", payload, pages=0),
        bad("beyond the image", payload, page=100),
        bad("a dictionary identifier", bytes([payload[0] | 1, payload[1], 7]) + payload[2:]),
        bad("a checksum", bytes([payload[0] | 4]) + payload[1:]),
        bad("a reserved block type", payload[:2] + bytes([payload[2] | 6]) + payload[3:]),
        bad("a match before the prefix", bytes.fromhex("00588d0000" + "0804010000010025000040")),
        bad("Huffman literals read below the start of their stream", below_huffman(), pages=2),
        bad("sequences read below the start of their stream", below_sequences(), pages=2),
        bad("Huffman weights read below the start of their stream", below_weights(), pages=2),
        {"why": "no array", "hex": "80"},
        {"why": "four items", "hex": "94000000c40100"},
    ]
    out = {"packages": packages, "refused": {"size": len(image), "chunks": refused}}
    Path(__file__).with_name("chunks.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
