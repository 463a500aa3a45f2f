"""Where the bytes of a package go: by segment of the image, and by what each byte of the image was made from. Pure."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from dfud.errors import PeerError
from dfud.model.espimage import parse_esp_image_untrusted
from dfud.package.apply import read_table_untrusted
from dfud.package.file import PackageFile
from dfud.package.table import HISTORY_BYTES
from dfud.package.zstd_frame import read_frame_untrusted
from dfud.wire.chunk import PAGE_BYTES, Chunk, decode_chunk_untrusted
from dfud.wire.messages import Kind

# What a byte of the image is made from, in the order in which a picture lets one hide another.
LITERAL, MAPPED, REPEATED, COPIED = range(4)
ORIGINS = ("literal", "mapped", "repeated", "copied")
# ESP32-C3 TRM, "System and Memory": the windows that a segment of an image can lie in.
_WINDOWS = (
    (0x3C000000, 0x3C800000, "DROM"),
    (0x42000000, 0x42800000, "IROM"),
    (0x40370000, 0x403E0000, "IRAM"),
    (0x3FC80000, 0x3FCE0000, "DRAM"),
    (0x50000000, 0x50002000, "RTC"),
)


class Part(msgspec.Struct, frozen=True):
    """A stretch of the image; `origins`: its bytes by ORIGINS; `cost_bytes`: what it takes of the package's frames."""

    name: str
    address: int | None
    offset: int
    size: int
    origins: dict[str, int]
    cost_bytes: float


class ChunkReport(msgspec.Struct, frozen=True):
    number: int
    page: int
    pages: int
    payload: int
    sequences: int
    literals: int
    matched: int


class Report(msgspec.Struct, frozen=True):
    """table_bytes: the address table as it is sent; overhead_bytes: heads of chunks and frames, entropy tables.

    The parts' costs, table_bytes and overhead_bytes add up to `bytes`. mapped_known: the base was there to compare with.
    """

    id: str
    kind: int
    size: int
    sha256: str
    base_sha256: str | None
    bytes: int
    chunks: list[ChunkReport]
    table_bytes: int
    overhead_bytes: float
    sequences: int
    literals: int
    matched: int
    mapped_known: bool
    parts: list[Part]


Origins = npt.NDArray[np.uint8]


def report_untrusted(
    package: PackageFile,
    *,
    image: bytes | None = None,
    base: bytes | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Report, Origins]:
    """Return the report and, for each byte of the image, its origin.

    With the decoded `image` there is a part for each of its segments, and with the `base`, too, copied bytes are told from
    mapped ones: those that the view changed on the way. progress: bytes of the image done, and all. Raises PeerError.
    """
    origins = np.full(package.size, COPIED, np.uint8)
    costs = np.zeros(package.size, np.float32)
    known = image is not None and (base is not None or package.base_sha256 is None)
    whole = np.frombuffer(image, np.uint8) if image is not None else None
    source = np.frombuffer(base, np.uint8) if base is not None else None
    chunks, overhead, table_bytes = [], 0.0, 0
    history = 0
    for data in package.chunks:
        chunk = decode_chunk_untrusted(data)
        frame = chunk.payload
        if package.kind == Kind.MAPPED and not chunk.number:
            table, frame = read_table_untrusted(chunk.payload)
            table_bytes = len(chunk.payload) - len(frame)
            # docs/delta-format.md, "Table": version, then the flags, of which bit 0 says history.
            history = HISTORY_BYTES if len(table) > 1 and table[1] & 1 else 0
        overhead += len(data) - len(chunk.payload)
        if frame or chunk.pages:
            found, spent = _chunk(chunk, frame, package, history, origins, costs, whole, source if known else None)
            overhead += spent
        else:
            found = ChunkReport(
                number=chunk.number,
                page=chunk.page,
                pages=0,
                payload=len(chunk.payload),
                sequences=0,
                literals=0,
                matched=0,
            )
        chunks.append(found)
        progress(min(package.size, (chunk.page + chunk.pages) * PAGE_BYTES), package.size)
    parts = [_part(*where, origins, costs) for where in _segments(image, package.size)]
    if image is not None and (rest := package.size - sum(part.size for part in parts)):
        parts.append(_rest(rest, _part("image", None, 0, package.size, origins, costs), parts))
    report = Report(
        id=package.id.hex(),
        kind=int(package.kind),
        size=package.size,
        sha256=package.sha256.hex(),
        base_sha256=package.base_sha256.hex() if package.base_sha256 else None,
        bytes=package.total_bytes,
        chunks=chunks,
        table_bytes=table_bytes,
        overhead_bytes=overhead,
        sequences=sum(chunk.sequences for chunk in chunks),
        literals=sum(chunk.literals for chunk in chunks),
        matched=sum(chunk.matched for chunk in chunks),
        mapped_known=known,
        parts=parts,
    )
    return report, origins


def _chunk(
    chunk: Chunk,
    frame: bytes,
    package: PackageFile,
    history: int,
    origins: Origins,
    costs: npt.NDArray[np.float32],
    whole: Origins | None,
    source: Origins | None,
) -> tuple[ChunkReport, float]:
    """Note the origin and cost in bits of each byte that this chunk fills; return its report and its overhead in bytes.

    history: how much of the image before the chunk may be copied from (kind 1: all of it).
    """
    first = at = chunk.page * PAGE_BYTES
    end = min(package.size, first + chunk.pages * PAGE_BYTES)
    before = first if package.kind == Kind.FULL else min(first, history)
    read = read_frame_untrusted(frame)
    literals = 0
    count = 0
    for one in read.sequences:
        if at + one.literals + one.match > end:
            raise PeerError(f"chunk {chunk.number}: decodes to more than its pages hold")
        if one.literals:
            origins[at : at + one.literals] = LITERAL
            costs[at : at + one.literals] = one.literal_bits / one.literals
            literals += one.literals
            at += one.literals
        if one.match:
            count += 1
            costs[at : at + one.match] = one.match_bits / one.match
            start = at - first - one.offset + before
            _match(at, one.match, start, package.kind == Kind.FULL, origins, whole, source)
            at += one.match
    if at != end:
        raise PeerError(f"chunk {chunk.number}: decodes to {at - first} bytes, expected {end - first}")
    sizes = (len(chunk.payload), count, literals, end - first - literals)
    return ChunkReport(chunk.number, chunk.page, chunk.pages, *sizes), read.overhead_bits / 8


def _match(
    at: int, size: int, start: int, full: bool, origins: Origins, whole: Origins | None, source: Origins | None
) -> None:
    """Note where a match's bytes come from. start: of what is copied, counted from behind the base."""
    if start >= 0:
        origins[at : at + size] = REPEATED
        return
    if full:
        raise PeerError("a match reaches before the beginning of the image")
    of_base = min(size, -start)
    if whole is not None and source is not None:
        begin = len(source) + start
        if begin < 0:
            raise PeerError("a match reaches before the beginning of the base")
        changed = whole[at : at + of_base] != source[begin : begin + of_base]
        origins[at : at + of_base] = np.where(changed, MAPPED, COPIED)
    origins[at + of_base : at + size] = REPEATED


def _segments(image: bytes | None, size: int) -> list[tuple[str, int | None, int, int]]:
    """Return (name, address, offset, size) of the image's segments; of the whole if it has none, as other firmware has."""
    try:
        found = parse_esp_image_untrusted(io.BytesIO(image or b""), size).segments
    except PeerError:
        return [("image", None, 0, size)]
    return [(window(one.address), one.address, one.offset, one.size) for one in found]


def _part(
    name: str, address: int | None, offset: int, size: int, origins: Origins, costs: npt.NDArray[np.float32]
) -> Part:
    counts = np.bincount(origins[offset : offset + size], minlength=len(ORIGINS))
    cost = float(costs[offset : offset + size].sum(dtype=np.float64)) / 8
    return Part(name, address, offset, size, dict(zip(ORIGINS, counts.tolist(), strict=True)), cost)


def _rest(size: int, all_of_it: Part, parts: list[Part]) -> Part:
    """Return what is in no segment: the image's own headers, checksum and hash."""
    origins = {name: count - sum(part.origins[name] for part in parts) for name, count in all_of_it.origins.items()}
    return Part("headers", None, 0, size, origins, all_of_it.cost_bytes - sum(part.cost_bytes for part in parts))


def window(address: int) -> str:
    """Return the name of the memory that a segment at this address lies in."""
    found = next((name for low, high, name in _WINDOWS if low <= address < high), f"{address:#010x}")
    return found if address else "padding"
