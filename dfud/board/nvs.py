"""The NVS partition, as a factory writes it before the first start, and what stands in it later.

Source: ESP-IDF, "Non-Volatile Storage Library", "Internals" (page format, version 2). Not encrypted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from dfud.errors import PeerError

PAGE_BYTES, ENTRY_BYTES, ENTRIES = 4096, 32, 126
KEY_MAX = 15
_ACTIVE, _FULL = 0xFFFFFFFE, 0xFFFFFFFC
_VERSION_2 = 0xFE
_U8, _BLOB_DATA, _BLOB_INDEX = 0x01, 0x42, 0x48
_INTEGERS = {0x01: "<B", 0x11: "<b", 0x02: "<H", 0x12: "<h", 0x04: "<I", 0x14: "<i", 0x08: "<Q", 0x18: "<q"}
_STRING = 0x21
_WRITTEN, _BLANK = 0b10, 0b11
_ANY_CHUNK = 0xFF

Values = dict[str, dict[str, bytes | int]]


def encode(values: Mapping[str, Mapping[str, bytes]], size: int) -> bytes:
    """Return a partition of `size` bytes with these blobs, by namespace and key. Raises PeerError if they do not fit.

    All go to the first page: what a factory writes is small, and the library wants one page free.
    """
    entries: list[bytes] = []
    for number, (namespace, blobs) in enumerate(values.items(), 1):
        entries.append(_entry(0, _U8, 1, _ANY_CHUNK, namespace, bytes([number]).ljust(8, b"\xff")))
        for key, blob in blobs.items():
            data = blob + b"\xff" * (-len(blob) % ENTRY_BYTES)
            span = 1 + len(data) // ENTRY_BYTES
            head = struct.pack("<HHI", len(blob), 0xFFFF, _crc(blob))
            entries.append(_entry(number, _BLOB_DATA, span, 0, key, head) + data)
            index = struct.pack("<IBBH", len(blob), 1, 0, 0xFFFF)
            entries.append(_entry(number, _BLOB_INDEX, 1, _ANY_CHUNK, key, index))
    body = b"".join(entries)
    count = len(body) // ENTRY_BYTES
    if count > ENTRIES:
        raise PeerError(
            f"NVS: {count} entries of {ENTRY_BYTES} bytes, expected at most {ENTRIES}; make the values smaller"
        )
    head = struct.pack("<IIB19s", _ACTIVE, 0, _VERSION_2, b"\xff" * 19)
    head += struct.pack("<I", _crc(head[4:]))
    states = (1 << 8 * ENTRY_BYTES) - 1
    for place in range(count):
        states &= ~(1 << 2 * place)  # 11 blank becomes 10 written
    return (head + states.to_bytes(ENTRY_BYTES, "little") + body).ljust(size, b"\xff")


def _entry(namespace: int, kind: int, span: int, chunk: int, key: str, data: bytes) -> bytes:
    name = key.encode()
    if not 1 <= len(name) <= KEY_MAX:
        raise PeerError(f"NVS: key {key!r}, expected 1 to {KEY_MAX} bytes")
    head = struct.pack("<BBBB", namespace, kind, span, chunk)
    rest = name.ljust(16, b"\0") + data
    return head + struct.pack("<I", _crc(head + rest)) + rest


def _crc(data: bytes) -> int:
    return zlib.crc32(data, 0xFFFFFFFF)


def decode_untrusted(partition: bytes) -> Values:
    """Return what a partition holds, by namespace and key: integers, strings and blobs (as bytes). What is damaged is left out."""
    names: dict[int, str] = {}
    found: dict[tuple[int, str], bytes | int] = {}
    chunks: dict[tuple[int, str, int], bytes] = {}
    indices: dict[tuple[int, str], tuple[int, int, int]] = {}
    for page in _pages(partition):
        for head, body in _entries(page):
            namespace, kind, _, chunk = head[:4]
            key = head[8:24].partition(b"\0")[0].decode("utf-8", "replace")
            if namespace == 0 and kind == _U8:
                names[head[24]] = key
            elif kind in _INTEGERS:
                found[namespace, key] = int(struct.unpack_from(_INTEGERS[kind], head, 24)[0])
            elif kind in (_STRING, _BLOB_DATA):
                size, _, crc = struct.unpack_from("<HHI", head, 24)
                if size > len(body) or _crc(body[:size]) != crc:
                    continue
                if kind == _STRING:
                    found[namespace, key] = body[:size].rstrip(b"\0")
                else:
                    chunks[namespace, key, chunk] = body[:size]
            elif kind == _BLOB_INDEX:
                indices[namespace, key] = struct.unpack_from("<IBB", head, 24)
    for (namespace, key), (size, count, first) in indices.items():
        parts = [chunks.get((namespace, key, first + i)) for i in range(count)]
        blob = b"".join(part for part in parts if part is not None)
        if None not in parts and len(blob) == size:
            found[namespace, key] = blob
    values: Values = {}
    for (namespace, key), value in found.items():
        if namespace in names:
            values.setdefault(names[namespace], {})[key] = value
    return values


def _pages(partition: bytes) -> list[bytes]:
    """Return the pages in use, oldest first: of what stands twice, the newer counts."""
    pages = [partition[at : at + PAGE_BYTES] for at in range(0, len(partition) - PAGE_BYTES + 1, PAGE_BYTES)]
    whole = [
        page
        for page in pages
        if int.from_bytes(page[:4], "little") in (_ACTIVE, _FULL)
        and _crc(page[4:28]) == int.from_bytes(page[28:32], "little")
    ]
    return sorted(whole, key=lambda page: int.from_bytes(page[4:8], "little"))


def _entries(page: bytes) -> list[tuple[bytes, bytes]]:
    """Return (entry, data behind it) of each entry that is written and whole."""
    states = int.from_bytes(page[32:64], "little")
    found = []
    place = 0
    while place < ENTRIES:
        at = 64 + place * ENTRY_BYTES
        head = page[at : at + ENTRY_BYTES]
        span = max(1, head[2])
        if states >> 2 * place & 3 != _WRITTEN:
            place += 1
            continue
        if place + span > ENTRIES or _crc(head[:4] + head[8:]) != int.from_bytes(head[4:8], "little"):
            place += 1
            continue
        found.append((head, page[at + ENTRY_BYTES : at + span * ENTRY_BYTES]))
        place += span
    return found
