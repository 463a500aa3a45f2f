"""Making packages: docs/protocol.md, "Package and chunks". Pure, CPU-bound; worker.py runs it in its own process.

Chunks are as large as the device's payload allows, up to the whole image: heads of chunks and frames are a tenth of a
small update that is cut every 128 KB.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import msgspec
import zstandard

from dfud.errors import PeerError
from dfud.model.quickest import Candidate, worthwhile
from dfud.package.file import PackageFile, make
from dfud.package.mapping import make_tables
from dfud.package.table import ENTRIES_MAX, HISTORY_BYTES, HISTORY_PIECE_BYTES, Table, encode_table, segments, varint
from dfud.package.view_numpy import Absolute, view
from dfud.package.work import FULL_LEAST_US, work_ms
from dfud.wire.chunk import PAGE_BYTES, PAGES_MAX, Chunk, encode_chunk
from dfud.wire.messages import Kind

# Measured on rv32 code, 27 KB chunks (bench/delta.py): the last 256 KB as prefix give 0.1 % more bytes than all of it, in a
# sixth of the time, because every chunk indexes its prefix anew.
FULL_PREFIX_BYTES = 1 << 18
FULL_LEVEL = 19
# With the base digested once, a second level costs little; neither is always the smaller one.
DELTA_LEVELS = (12, 19)
WINDOW_LOG = 22
TRIALS_MAX = 5
# What is tried first says how much more fits: compressing a whole image to find out that it does not takes seconds.
FIRST_PAGES = 32
# A mapped delta that is larger than this part of the image holds much that is new: it gains 5 to 10 % by looking back at it.
HISTORY_PAYS = 25
# Chunks that look back are made in threads, so many pages in each: a chunk that ends with them costs about 100 bytes.
PART_PAGES = 128
PAGES_OF_ANY = 1 << 20

# How often each kind goes over the image, for the progress bar: a mapped delta finds its tables, tries two, looks back.
PASSES = {Kind.DELTA: 1, Kind.MAPPED: 4, Kind.FULL: 1}

Compress = Callable[[int, int], bytes]  # (first byte, end) of the image -> frame
Progress = Callable[[int, int], None]  # (pages done, all of them)
Seen = Callable[[int], None]  # so many pages more


def parameters(level: int) -> zstandard.ZstdCompressionParameters:
    """Return the settings of every frame: no magic number, no checksum, no dictionary identifier, no content size."""
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
        window_log=WINDOW_LOG,
    )


def prefix_compressor(prefix: bytes, level: int) -> zstandard.ZstdCompressor:
    """Return a compressor whose frames continue `prefix`, which is digested here, once."""
    if not prefix:
        return zstandard.ZstdCompressor(compression_params=parameters(level))
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    dictionary.precompute_compress(compression_params=parameters(level))
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters(level))


def _nobody(done: int, total: int = 0) -> None:
    pass


class _Counter:
    """Tells how far several kinds are; what a kind's passes leave out counts when it ends. Called from threads."""

    def __init__(self, progress: Progress, pages: int, kinds: Sequence[Kind]) -> None:
        self.progress, self.pages = progress, pages
        self.total = pages * sum(PASSES[kind] for kind in kinds)
        self.done = self.ended = 0
        self.lock = Lock()

    def seen(self, pages: int) -> None:
        with self.lock:
            self.done = min(self.total, self.done + pages)
            self.progress(self.done, self.total)

    def ends(self, kind: Kind) -> None:
        self.ended += self.pages * PASSES[kind]
        self.seen(self.ended - self.done)


def build_package(
    image: bytes,
    base: bytes | None,
    *,
    kinds: int,
    payload_bytes: int,
    workers: int = 1,
    entries: int = ENTRIES_MAX,
    progress: Progress = _nobody,
) -> PackageFile:
    """Return the smallest of build_packages()."""
    found = build_packages(
        image, base, kinds=kinds, payload_bytes=payload_bytes, workers=workers, entries=entries, progress=progress
    )
    return found[0][0]


def build_packages(
    image: bytes,
    base: bytes | None,
    *,
    kinds: int,
    payload_bytes: int,
    workers: int = 1,
    entries: int = ENTRIES_MAX,
    progress: Progress = _nobody,
) -> list[tuple[PackageFile, int]]:
    """Return packages of `image` out of the kinds in the bitmask `kinds` that need no more than `base`, each with its work (work.py).

    The smallest first; each larger one takes less work than all before it: which is the quickest one the link says.

    payload_bytes: the largest payload that the device holds; 4112 are enough for every image. entries: the most that the table of
    a mapped delta may have. progress: pages done and pages in all, counted for every pass over the image. Raises PeerError if the
    device decodes none of our kinds or a page of the image does not fit its payload.
    """
    found: list[tuple[PackageFile, int]] = []
    possible = (Kind.FULL,) if base is None else (Kind.DELTA, Kind.MAPPED, Kind.FULL)
    wanted = [kind for kind in possible if kinds >> kind & 1]
    base = base or b""
    if Kind.DELTA in wanted and not (segments(base) and segments(image)):
        # Without segments there is nothing to map: kind 3 is kind 2 with a table then.
        wanted = [kind for kind in wanted if kind != Kind.MAPPED]
    counter = _Counter(progress, -(-len(image) // PAGE_BYTES), wanted)

    def add(packages: list[PackageFile]) -> None:
        found.extend((package, work_ms(package, len(base or b""))) for package in packages)

    for kind in wanted:
        if kind == Kind.DELTA:
            add([build_delta(image, base, payload_bytes, seen=counter.seen)])
        elif kind == Kind.MAPPED:
            add(every_mapped(image, base, payload_bytes, entries=entries, workers=workers, seen=counter.seen))
        elif not found or not _beats_full(found, image):
            add([build_full(image, payload_bytes, seen=counter.seen)])
        counter.ends(kind)
    if not found:
        raise PeerError(f"the device decodes kinds {kinds:#x}, none of which can be made for it")
    made = {package.id.hex(): (package, work) for package, work in found}
    candidates = [Candidate(name, int(p.kind), p.total_bytes, work) for name, (p, work) in made.items()]
    return [made[one.package] for one in worthwhile(candidates)]


def _beats_full(found: list[tuple[PackageFile, int]], image: bytes) -> bool:
    """Say whether one is smaller than a tenth of the image, which no full package is, and takes less work than any."""
    least_ms = FULL_LEAST_US * -(-len(image) // PAGE_BYTES) / 1000
    return any(package.total_bytes <= len(image) // 10 and work <= least_ms for package, work in found)


def build_full(image: bytes, payload_bytes: int, *, seen: Seen = _nobody) -> PackageFile:
    """Return the package of kind 1."""

    def compress(first: int, end: int) -> bytes:
        prefix = image[max(0, first - FULL_PREFIX_BYTES) : first]
        dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
        settings = parameters(FULL_LEVEL)
        if dictionary is None:
            return zstandard.ZstdCompressor(compression_params=settings).compress(image[first:end])
        return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=settings).compress(image[first:end])

    chunks = [encode_chunk(chunk) for chunk in cut(image, compress, payload_bytes, seen=seen)]
    return make(Kind.FULL, len(image), hashlib.sha256(image).digest(), None, chunks)


def build_delta(image: bytes, base: bytes, payload_bytes: int, *, seen: Seen = _nobody) -> PackageFile:
    """Return the package of kind 2."""
    compressors = [prefix_compressor(base, level) for level in DELTA_LEVELS]

    def compress(first: int, end: int) -> bytes:
        piece = image[first:end]
        return min((c.compress(piece) for c in compressors), key=len)

    chunks = [encode_chunk(chunk) for chunk in cut(image, compress, payload_bytes, seen=seen)]
    return make(Kind.DELTA, len(image), hashlib.sha256(image).digest(), hashlib.sha256(base).digest(), chunks)


def build_mapped(
    image: bytes,
    base: bytes,
    payload_bytes: int,
    *,
    history: bool | None = None,
    entries: int = ENTRIES_MAX,
    workers: int = 1,
    seen: Seen = _nobody,
) -> PackageFile:
    """Return the smallest of every_mapped()."""
    found = every_mapped(image, base, payload_bytes, history=history, entries=entries, workers=workers, seen=seen)
    return min(found, key=lambda package: package.total_bytes)


def every_mapped(
    image: bytes,
    base: bytes,
    payload_bytes: int,
    *,
    history: bool | None = None,
    entries: int = ENTRIES_MAX,
    workers: int = 1,
    seen: Seen = _nobody,
) -> list[PackageFile]:
    """Return packages of kind 3 (docs/delta-format.md): with several tables, and one whose chunks look back.

    history: whether chunks look back at the new image; None: if that may make it smaller, both. entries: the most that the table may
    have. workers: how many threads compress; the package is the same with any number of them.
    """
    tables = make_tables(base, image, entries)
    largest, _ = view(base, tables[0])
    form = Absolute(image, tables[0].new)
    seen(-(-len(image) // PAGE_BYTES))

    def made(table: Table, chunks: Callable[[int], Iterable[Chunk]]) -> PackageFile:
        """chunks: makes them, the first of them shorter by so many bytes."""
        packed = encode_table(table, segments(base))
        front = table_front(packed)
        first, *others = chunks(len(front))
        end = min(len(image), first.pages * PAGE_BYTES)
        first = Chunk(0, 0, first.pages, zlib.crc32(image[:end], zlib.crc32(packed)), front + first.payload)
        encoded = [encode_chunk(msgspec.structs.replace(c, number=i)) for i, c in enumerate((first, *others))]
        return make(Kind.MAPPED, len(image), hashlib.sha256(image).digest(), hashlib.sha256(base).digest(), encoded)

    found: list[PackageFile] = []
    large = len(image) // HISTORY_PAYS
    for table in () if history else tables:
        prefix = largest if table is tables[0] else view(base, table)[0]
        compressors = [prefix_compressor(prefix, level) for level in DELTA_LEVELS]

        def alone(first: int, end: int, compressors: Sequence[zstandard.ZstdCompressor] = compressors) -> bytes:
            piece = form.of(first, end)
            return min((c.compress(piece) for c in compressors), key=len)

        found.append(made(table, lambda front: cut(image, alone, payload_bytes, front=front, seen=seen)))
        if found[0].total_bytes > large:
            break  # the largest table is the best then
    if history or (history is None and found[0].total_bytes > large):
        table = tables[0]
        whole = Absolute(image, table.new, page=HISTORY_PIECE_BYTES).alone

        def behind(first: int, end: int) -> bytes:
            before = whole[max(0, first - HISTORY_BYTES) : first]
            dictionary = zstandard.ZstdCompressionDict(largest + before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters(FULL_LEVEL))
            return compressor.compress(form.of(first, end))  # other threads run meanwhile

        def in_parts(front: int) -> list[Chunk]:
            def part(first: int) -> list[Chunk]:
                last = first + PART_PAGES
                return list(cut(image, behind, payload_bytes, first, last, 0 if first else front, seen))

            with ThreadPoolExecutor(workers) as pool:
                parts = pool.map(part, range(0, -(-len(image) // PAGE_BYTES), PART_PAGES))
                return [chunk for chunks in parts for chunk in chunks]

        found.append(made(msgspec.structs.replace(table, history=True), in_parts))
    return found


def table_front(packed: bytes) -> bytes:
    """Return the table as the first chunk's payload begins with it: compressed only if it is smaller then."""
    frame = zstandard.ZstdCompressor(compression_params=parameters(FULL_LEVEL)).compress(packed)
    stored = min(packed, frame, key=len)
    length = bytearray()
    varint(length, len(stored) << 1 | (stored is frame))
    return bytes(length) + stored


def cut(
    image: bytes,
    compress: Compress,
    payload_bytes: int,
    page: int = 0,
    end: int = PAGES_OF_ANY,
    front: int = 0,
    seen: Seen = _nobody,
) -> Iterator[Chunk]:
    """Yield the chunks of pages `page` to `end`, each as many pages as fit the payload. crc is over `image`'s bytes.

    front: how many bytes of the first payload are taken; if no page fits beside them, the first chunk has none.
    """
    total = min(end, -(-len(image) // PAGE_BYTES))
    number, guess = 0, FIRST_PAGES
    while page < total:
        try:
            pages, payload = _fit(image, compress, payload_bytes - front, page, min(guess, total - page), total - page)
        except PeerError:
            if not front:
                raise
            pages, payload = 0, b""
        front = 0
        first, stop = page * PAGE_BYTES, min(len(image), (page + pages) * PAGE_BYTES)
        yield Chunk(number, page, pages, zlib.crc32(image[first:stop]), payload)
        seen(pages)
        number += 1
        page += pages
        guess = min(PAGES_MAX, max(1, pages * payload_bytes // max(len(payload), 1))) if pages else FIRST_PAGES


def _fit(image: bytes, compress: Compress, payload_bytes: int, page: int, pages: int, left: int) -> tuple[int, bytes]:
    """Return the most pages from `page` on that were found to fit, and their frame; `pages` is where to begin looking."""
    limit = min(PAGES_MAX, left)
    good, frame, bad, too_long = 0, b"", limit + 1, 0
    for _ in range(TRIALS_MAX):
        tried = compress(page * PAGE_BYTES, min(len(image), (page + pages) * PAGE_BYTES))
        if len(tried) <= payload_bytes:
            good, frame = pages, tried
        else:
            bad, too_long = pages, len(tried)
        if bad - good <= 1:
            break
        if good and too_long:  # between the two
            estimate = good + (bad - good) * (payload_bytes - len(frame)) // (too_long - len(frame))
        else:
            estimate = pages * payload_bytes // len(tried)
        pages = max(good + 1, min(bad - 1, estimate))
        if good and pages - good <= good // 16:
            break  # what could still be won is less than another compression is worth
    while not good:
        if bad == 1:
            raise PeerError(f"page {page} does not fit a payload of {payload_bytes} bytes")
        pages = max(1, bad // 2)
        tried = compress(page * PAGE_BYTES, min(len(image), (page + pages) * PAGE_BYTES))
        if len(tried) <= payload_bytes:
            good, frame = pages, tried
        bad = pages
    return good, frame
