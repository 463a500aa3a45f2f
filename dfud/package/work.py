"""How long a device decodes a package: its operations, counted, each at what it takes on an ESP32-C3. Pure.

The weights are the agent's (devicefw/dfu), its inner loops counted for 125 million instructions a second (bench/chip.py), and those
of a NOR flash that erases a sector in 45 ms. Other devices are slower or quicker by a factor, which they report.
"""

from __future__ import annotations

from dfud.package.apply import read_table_untrusted
from dfud.package.file import PackageFile
from dfud.package.table import HISTORY_BYTES
from dfud.package.zstd_frame import Sequence, read_frame_untrusted
from dfud.wire.chunk import PAGE_BYTES, decode_chunk_untrusted
from dfud.wire.messages import Kind

VIEW_BYTES, BEFORE_BYTES, PIECE_BYTES = (
    2048,
    256,
    256,
)  # docs/delta-format.md; what the agent makes of the view at one time
PAGE_US = 62_000.0  # erased, programmed, read back
CHUNK_US = 20_000.0  # its entropy tables
SEQUENCE_US = 2.2
LITERAL_US, NEAR_US, FAR_US = 0.36, 0.09, 0.04  # for each byte
COPY_US = 75.0  # out of the flash
BACK_US = 350.0  # a page out of its absolute form
VIEW_START_US, VIEW_US = 160.0, 0.62  # a page of the view, and each byte of it
AGAIN_US, AGAIN_BYTE_US = 260.0, 0.35  # a piece of the new image into its absolute form, and each byte
# What a full package takes at least: of one that is better than that in both, no full one has to be made to know it.
FULL_LEAST_US = PAGE_US + 12_000.0


def work_ms(package: PackageFile, base_bytes: int) -> int:
    """Return how long an ESP32-C3 decodes and stores a package for a base of so many bytes. Raises PeerError."""
    total_us, history = 0.0, 0
    for data in package.chunks:
        chunk = decode_chunk_untrusted(data)
        frame = chunk.payload
        if package.kind == Kind.MAPPED and not chunk.number:
            table, frame = read_table_untrusted(chunk.payload)
            history = HISTORY_BYTES if len(table) > 1 and table[1] & 1 else 0
        total_us += CHUNK_US + chunk.pages * (PAGE_US + (BACK_US if package.kind == Kind.MAPPED else 0))
        if not frame:
            continue
        first = chunk.page * PAGE_BYTES
        before = {Kind.FULL: first, Kind.DELTA: base_bytes}.get(Kind(package.kind))
        reader = None
        if before is None:
            before = base_bytes + min(first, history)
            reader = _Mapped(base_bytes, first, min(first, history))
        total_us += _frame_us(read_frame_untrusted(frame).sequences, before, reader)
    return int(total_us / 1000)


class _Mapped:
    """What reading through the map takes: the agent keeps one page of the view, as far as it was asked for."""

    def __init__(self, base_bytes: int, first: int, history: int) -> None:
        self.base_bytes, self.first, self.history = base_bytes, first, history
        self.page, self.end = -1, 0

    def read_us(self, position: int, length: int) -> float:
        total_us = 0.0
        while length > 0:
            if position < self.base_bytes:
                page = position - position % VIEW_BYTES
                count = min(length, page + VIEW_BYTES - position, self.base_bytes - position)
                if page != self.page:
                    total_us += VIEW_START_US + VIEW_US * (position + count - page + BEFORE_BYTES)
                    self.page, self.end = page, position + count
                elif position + count > self.end:
                    total_us += VIEW_START_US + VIEW_US * (position + count - self.end)
                    self.end = position + count
            else:
                at = position - self.base_bytes + self.first - self.history
                unit = PIECE_BYTES if at < self.first else PAGE_BYTES
                count = min(length, unit - at % unit)
                total_us += AGAIN_US + AGAIN_BYTE_US * (at % unit + count)
            position += count
            length -= count
        return total_us


def _frame_us(sequences: list[Sequence], before: int, reader: _Mapped | None) -> float:
    """before: bytes of the frame's prefix; reader: what a copy out of it takes beside the copying, None: nothing."""
    total_us, done = 0.0, 0
    for sequence in sequences:
        total_us += SEQUENCE_US + LITERAL_US * sequence.literals
        done += sequence.literals
        left = sequence.match
        while left:
            place = done % PAGE_BYTES
            count = min(left, PAGE_BYTES - place)
            if sequence.offset > place:
                count = min(count, sequence.offset - place)
                total_us += COPY_US + FAR_US * count
                if reader is not None:
                    total_us += reader.read_us(before + done - sequence.offset, count)
            else:
                total_us += NEAR_US * count
            done += count
            left -= count
    return total_us
