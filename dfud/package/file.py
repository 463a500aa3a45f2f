"""A package as a file: what `dfuctl package make` writes and what dfud keeps. docs/packages.md, "The file".

    magic     8 bytes "dfudpkg1"
    header    msgpack array [kind, size, sha256 bin 32, base sha256 bin 32 or empty, chunk lengths]
    chunks    one behind the other

The name of the package is computed from the chunks when it is read, so a torn file never passes for a whole one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgpack  # type: ignore[import-untyped]  # it ships no annotations
import msgspec

from dfud.errors import PeerError
from dfud.wire.chunk import CHUNK_MAX_BYTES, package_id
from dfud.wire.messages import Kind

MAGIC = b"dfudpkg1"
ENCODER = 3  # grows when the same images would give other packages; part of the cache's key
CHUNKS_MAX = 1 << 20


class PackageFile(msgspec.Struct, frozen=True):
    """id: 16 bytes; size and sha256 are the image's; base_sha256: None if the package starts from nothing."""

    id: bytes
    kind: int
    size: int
    sha256: bytes
    base_sha256: bytes | None
    chunks: Sequence[bytes]

    @property
    def total_bytes(self) -> int:
        return sum(map(len, self.chunks))


def make(kind: int, size: int, sha256: bytes, base_sha256: bytes | None, chunks: Sequence[bytes]) -> PackageFile:
    return PackageFile(package_id(chunks), kind, size, sha256, base_sha256, chunks)


def write_package(package: PackageFile) -> bytes:
    header = [
        int(package.kind),
        package.size,
        package.sha256,
        package.base_sha256 or b"",
        [len(chunk) for chunk in package.chunks],
    ]
    return b"".join([MAGIC, msgpack.packb(header), *package.chunks])


def read_package_untrusted(data: bytes) -> PackageFile:
    """Read a package file whole; raises PeerError for anything else. Chunks are not decoded here."""
    if not data.startswith(MAGIC):
        raise PeerError("not a package: it does not start with dfudpkg1")
    unpacker = msgpack.Unpacker(max_array_len=CHUNKS_MAX, max_bin_len=32, max_map_len=0, max_buffer_size=len(data) + 1)
    unpacker.feed(data[len(MAGIC) :])
    try:
        header = unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise PeerError(f"package: its header cannot be read: {type(error).__name__}") from None
    position = len(MAGIC) + unpacker.tell()
    if type(header) is not list or len(header) != 5:
        raise PeerError("package: its header is no array of 5")
    kind, size, sha256, base, lengths = header
    if type(kind) is not int or kind not in list(Kind) or type(size) is not int or not 0 < size < 1 << 32:
        raise PeerError("package: kind or size out of range")
    if type(sha256) is not bytes or len(sha256) != 32 or type(base) is not bytes or len(base) not in (0, 32):
        raise PeerError("package: a digest has not 32 bytes")
    if type(lengths) is not list or not lengths:
        raise PeerError("package: no chunks")
    chunks = []
    for number, length in enumerate(lengths):
        if type(length) is not int or not 0 < length <= CHUNK_MAX_BYTES or position + length > len(data):
            raise PeerError(f"package: chunk {number} does not fit the file")
        chunks.append(data[position : position + length])
        position += length
    if position != len(data):
        raise PeerError(f"package: {len(data) - position} bytes behind the last chunk")
    return make(kind, size, sha256, base or None, chunks)
