"""The reference decoder: packages back to images, with python-zstandard. Also what tests compare the devices' decoders with."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import zstandard

from dfud.errors import PeerError
from dfud.package.file import PackageFile
from dfud.package.table import HISTORY_BYTES, HISTORY_PIECE_BYTES, TABLE_MAX_BYTES, decode_table_untrusted, segments
from dfud.package.view import transform
from dfud.package.view_numpy import view
from dfud.wire.chunk import PAGE_BYTES, Chunk, decode_chunk_untrusted
from dfud.wire.messages import Kind


def decode_frame_untrusted(payload: bytes, prefix: bytes, size: int | None, limit: int = 1 << 27) -> bytes:
    """Decode one magicless frame that continues `prefix` to exactly `size` bytes, or to any number up to `limit`.

    Raises PeerError; whatever the frame says, no more memory than that is taken.
    """
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    decoder = zstandard.ZstdDecompressor(
        dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << 27
    )
    most = limit if size is None else size
    try:
        says = zstandard.get_frame_parameters(payload, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size
        if most < says != zstandard.CONTENTSIZE_UNKNOWN:
            raise PeerError(f"chunk: says that it has {says} bytes, expected at most {most}")
        data = decoder.decompress(payload, max_output_size=max(most, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PeerError(f"chunk: not one frame of at most {most} bytes: {error}") from None
    if size is not None and len(data) != size:
        raise PeerError(f"chunk: decodes to {len(data)} bytes, expected {size}")
    return data


def apply_package(
    package: PackageFile, base: bytes | None, progress: Callable[[int, int], None] = lambda done, total: None
) -> bytes:
    """Return the image. progress: its bytes done, and all of them.

    Raises PeerError that names the chunk if a chunk, the base or the result is not what it should be.
    """
    if package.base_sha256 is not None and (base is None or hashlib.sha256(base).digest() != package.base_sha256):
        raise PeerError("the package starts from another image than the one given")
    image = bytearray()
    mapped: Mapped | None = None
    for number, data in enumerate(package.chunks):
        chunk = decode_chunk_untrusted(data)
        if chunk.number != number:
            raise PeerError(f"chunk {number}: says that it is {chunk.number}")
        try:
            if package.kind == Kind.MAPPED and number == 0:
                mapped = Mapped(chunk, package.size, base or b"")
            image += decode_chunk(chunk, package, base, bytes(image), mapped)
        except PeerError as error:
            raise PeerError(f"chunk {number}: {error}") from None
        progress(len(image), package.size)
    if hashlib.sha256(image).digest() != package.sha256:
        raise PeerError("the package decodes to an image with another SHA-256 than it says")
    return bytes(image)


def read_table_untrusted(payload: bytes) -> tuple[bytes, bytes]:
    """Return the address table in the payload of a mapped delta's first chunk, and the frame behind it. Raises PeerError."""
    length, at = 0, 0
    for shift in (0, 7):
        if at == len(payload):
            raise PeerError("chunk: cut short")
        length |= (payload[at] & 127) << shift
        at += 1
        if payload[at - 1] < 128:
            break
    else:
        raise PeerError("chunk: its table is too long")
    end = at + (length >> 1)
    if end > len(payload):
        raise PeerError("chunk: its table is cut short")
    table = payload[at:end]
    if length & 1:
        table = decode_frame_untrusted(table, b"", None, TABLE_MAX_BYTES)
    return table, payload[end:]


class Mapped:
    """What all chunks of a mapped delta need: the table, and the old image as it makes it look."""

    def __init__(self, chunk: Chunk, size: int, base: bytes) -> None:
        """Read the table in the first chunk of a package for an image of `size` bytes. Raises PeerError."""
        packed, self.frame = read_table_untrusted(chunk.payload)
        self.table = decode_table_untrusted(packed, segments(base), size)
        self.crc = zlib.crc32(packed)
        self.prefix = view(base, self.table)[0]

    def history(self, written: bytes) -> bytes:
        """Return what stands behind the view in the prefix of the chunk that follows `written`."""
        if not self.table.history:
            return b""
        first = max(0, len(written) - HISTORY_BYTES)
        return b"".join(
            transform(written[at : at + HISTORY_PIECE_BYTES], at, 0, self.table.new)[0]
            for at in range(first, len(written), HISTORY_PIECE_BYTES)
        )

    def image_of(self, first: int, form: bytes) -> bytes:
        """Return the bytes of the image whose absolute form a chunk gave, which fills it from `first` on."""
        out, carry = [], 0
        for at in range(0, len(form), PAGE_BYTES):
            page, carry = transform(form[at : at + PAGE_BYTES], first + at, carry, self.table.new, inverse=True)
            out.append(page)
        return b"".join(out)


def decode_chunk(
    chunk: Chunk, package: PackageFile, base: bytes | None, written: bytes, mapped: Mapped | None = None
) -> bytes:
    """Return the bytes that one chunk writes. `written`: the image before it; `mapped`: the table's (kind 3)."""
    first = chunk.page * PAGE_BYTES
    size = min(package.size - first, chunk.pages * PAGE_BYTES)
    table_only = mapped is not None and not chunk.number and not chunk.pages
    if first != len(written) or (size <= 0 and not table_only):
        raise PeerError(f"fills page {chunk.page}, expected page {len(written) // PAGE_BYTES}")
    prefix = written if package.kind == Kind.FULL else base or b""
    frame, crc = chunk.payload, 0
    if mapped is not None:
        prefix = mapped.prefix + mapped.history(written)
        if not chunk.number:
            frame, crc = mapped.frame, mapped.crc
    data = b"" if table_only and not frame else decode_frame_untrusted(frame, prefix, size)
    if mapped is not None:
        data = mapped.image_of(first, data)
    if zlib.crc32(data, crc) != chunk.crc:
        raise PeerError("decodes to other bytes than its header says")
    return data
