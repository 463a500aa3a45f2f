"""The frame around a piece of a package: docs/protocol.md, "Package and chunks". The payload is dfud.package's business."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from dfud.errors import PeerError
from dfud.wire.messages import PAYLOAD_MAX_BYTES
from dfud.wire.subset import decode_untrusted, encode

PAGE_BYTES = 4096
PAGES_MAX = 1024
HEADER_MAX_BYTES = 1 + 5 + 5 + 1 + 5 + 5
CHUNK_MAX_BYTES = HEADER_MAX_BYTES + PAYLOAD_MAX_BYTES


class Chunk(msgspec.Struct, frozen=True):
    """crc is CRC-32 of the decoded bytes; payload is a zstd frame without its magic number. The first of kind 3 begins with the
    address table, which the crc covers, too, and may have no pages besides."""

    number: int
    page: int
    pages: int
    crc: int
    payload: bytes


def encode_chunk(chunk: Chunk) -> bytes:
    return encode([chunk.number, chunk.page, chunk.pages, chunk.crc, chunk.payload])


def decode_chunk_untrusted(data: bytes | memoryview) -> Chunk:
    """Read one chunk from exactly `data`; raises PeerError."""
    items = decode_untrusted(data, limit_bytes=CHUNK_MAX_BYTES)
    if type(items) is not list or len(items) != 5:
        raise PeerError("chunk: expected an array of 5")
    number, page, pages, crc, payload = items
    for what, value, high in (
        ("number", number, 1 << 20),
        ("page", page, 1 << 20),
        ("pages", pages, PAGES_MAX),
        ("crc", crc, (1 << 32) - 1),
    ):
        if type(value) is not int or value > high:
            raise PeerError(f"chunk: {what} is no integer up to {high}")
    if type(payload) is not bytes or not payload:
        raise PeerError("chunk: no payload")
    return Chunk(number, page, pages, crc, payload)


def package_id(chunks: Iterable[bytes]) -> bytes:
    """Return the 16-byte name of the package that consists of these encoded chunks."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()[:16]
