"""The reference decoder: packages back to images, with python-zstandard. Also what tests compare the devices' decoders with."""

from __future__ import annotations

import hashlib
import zlib

import zstandard

from dfud.errors import PeerError
from dfud.package.file import PackageFile
from dfud.wire.chunk import PAGE_BYTES, Chunk, decode_chunk_untrusted
from dfud.wire.messages import Kind


def decode_frame_untrusted(payload: bytes, prefix: bytes, size: int) -> bytes:
    """Decode one magicless frame that continues `prefix` to exactly `size` bytes. Raises PeerError."""
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    decoder = zstandard.ZstdDecompressor(
        dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << 27
    )
    try:
        stream = decoder.decompressobj(read_across_frames=False)
        data = stream.decompress(payload)
        if not stream.eof or stream.unused_data:
            raise PeerError("chunk: its payload is not exactly one frame")
    except zstandard.ZstdError as error:
        raise PeerError(f"chunk: {error}") from None
    if len(data) != size:
        raise PeerError(f"chunk: decodes to {len(data)} bytes, expected {size}")
    return data


def apply_package(package: PackageFile, base: bytes | None) -> bytes:
    """Return the image. Raises PeerError that names the chunk if a chunk, the base or the result is not what it should be."""
    if package.base_sha256 is not None and (base is None or hashlib.sha256(base).digest() != package.base_sha256):
        raise PeerError("the package starts from another image than the one given")
    image = bytearray()
    for number, data in enumerate(package.chunks):
        chunk = decode_chunk_untrusted(data)
        if chunk.number != number:
            raise PeerError(f"chunk {number}: says that it is {chunk.number}")
        try:
            image += decode_chunk(chunk, package, base, bytes(image))
        except PeerError as error:
            raise PeerError(f"chunk {number}: {error}") from None
    if hashlib.sha256(image).digest() != package.sha256:
        raise PeerError("the package decodes to an image with another SHA-256 than it says")
    return bytes(image)


def decode_chunk(chunk: Chunk, package: PackageFile, base: bytes | None, written: bytes) -> bytes:
    """Return the bytes that one chunk writes. `written`: the image before it (kind 1)."""
    first = chunk.page * PAGE_BYTES
    size = min(package.size - first, chunk.pages * PAGE_BYTES)
    if size <= 0 or first != len(written):
        raise PeerError(f"fills page {chunk.page}, expected page {len(written) // PAGE_BYTES}")
    prefix = written if package.kind == Kind.FULL else base or b""
    data = decode_frame_untrusted(chunk.payload, prefix, size)
    if zlib.crc32(data) != chunk.crc:
        raise PeerError("decodes to other bytes than its header says")
    return data
