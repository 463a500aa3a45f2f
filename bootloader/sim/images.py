"""Small images in ESP-IDF's format, and the other things that stand in flash."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dfud.wire.manifest import SIGNATURE_CONTEXT, Manifest, encode_manifest
from dfud.wire.subset import decode_untrusted, encode

SECTOR = 4096
SLOTS, SLOT_BYTES = (0x10000, 0x1C0000), 0x1B0000
STATE_AT, KEYS_AT, DIAG_AT, STAGE_AT = 0xD000, 0x3FA000, 0x3FC000, 0x39A000
ENTRY = 0x40380000
STATE = "<II8BIII"
FIELDS = (
    *("magic", "seq", "slot", "phase", "crashes", "max_crashes", "previous", "outcome", "reset", "writer"),
    *("floor", "accept", "tried"),
)


def _body(noise: random.Random, size: int) -> bytes:
    """Return what compresses a little: every third byte is the same."""
    out = bytearray(noise.randbytes(size // 4 * 4))
    out[::3] = b"A" * len(out[::3])
    return bytes(out)


def image(tag: str, size: int = 9000, *, segments: list[tuple[int, bytes]] | None = None, **header: int) -> bytes:
    """Return an image that loads `tag` to 0x3fc96600 and enters 0x40380000. header: chip, flash (code of its size), entry."""
    noise = random.Random(tag)
    if segments is None:
        segments = [(0x3FC96600, tag.encode().ljust(16, b"\0") * 4), (ENTRY, b"\x01\xa0\x01\xa0" + _body(noise, size))]
    head = bytearray(24)
    head[0], head[1], head[2], head[3] = 0xE9, len(segments), 2, header.get("flash", 2) << 4 | 0xF
    head[4:8] = struct.pack("<I", header.get("entry", ENTRY))
    head[12], head[23] = header.get("chip", 5), 1
    out = bytes(head)
    for address, data in segments:
        out += struct.pack("<II", address, len(data)) + data
    checksum = 0xEF ^ int(np.bitwise_xor.reduce(np.frombuffer(b"".join(data for _, data in segments), np.uint8)))
    out += b"\0" * (15 - len(out) % 16) + bytes([checksum])
    return out + hashlib.sha256(out).digest()


def application(tag: str, size: int = 9000) -> bytes:
    """Return an image with an application description, as ESP-IDF's have it and second-stage bootloaders have not."""
    noise = random.Random(tag)
    described = struct.pack("<II8x32s32s", 0xABCD5432, 0, b"1.0", tag.encode()).ljust(256, b"\0")
    body = b"\x01\xa0\x01\xa0" + _body(noise, size)
    return image(tag, segments=[(0x3FC96600, described), (ENTRY, body)])


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def key_id(private: Ed25519PrivateKey) -> bytes:
    return hashlib.sha256(public(private)).digest()[:8]


def envelope(data: bytes, *, signer: Ed25519PrivateKey | None = None, **fields: object) -> bytes:
    """Return the envelope of an image; `fields` go over the manifest's."""
    values: dict[str, Any] = {"app": "pump", "version": "1.0", "hardware": "esp32c3", "sequence": 1}
    values |= {"size": len(data), "sha256": hashlib.sha256(data).digest(), **fields}
    floor = values.pop("floor", 0)
    manifest = encode_manifest(Manifest(**values))
    if floor:  # encode_manifest refuses one that bricks, and here are tests of that
        said: Any = decode_untrusted(manifest, limit_bytes=1024)
        manifest = encode(dict(sorted((said | {8: floor}).items())))
    if signer is None:
        return encode([manifest, b"", b""])
    return encode([manifest, key_id(signer), signer.sign(SIGNATURE_CONTEXT + manifest)])


def trailer(envelope: bytes) -> bytes:
    body = struct.pack("<II", 0x54554644, len(envelope)) + envelope + b"\xff" * (-len(envelope) % 4)
    return body + struct.pack("<I", zlib.crc32(body))


def with_crc(record: bytes) -> bytes:
    return record + struct.pack("<I", zlib.crc32(record))


def state(*, starts: int = 0, **values: int) -> bytes:
    """Return a record of the state log. `starts` stands in the upper bits of the byte that `previous` is in."""
    values["previous"] = values.get("previous", 0) | starts << 1
    return with_crc(
        struct.pack(STATE, *({"magic": 0x53554644, "seq": 1, "writer": 2, **values}.get(f, 0) for f in FIELDS))
    )


def key_record(*keys: Ed25519PrivateKey, seq: int = 1, development: int = 0, revoked: tuple[bytes, ...] = ()) -> bytes:
    body = struct.pack("<IIBBB5x", 0x4B554644, seq, len(keys), development, len(revoked))
    body += b"".join(public(k) for k in keys).ljust(128, b"\0") + b"".join(revoked).ljust(88, b"\0")
    return with_crc(body.ljust(252, b"\0"))


def stage(chunks: list[bytes], envelope: bytes, *, kind: int = 1, base: bytes = b"\xff" * 32) -> bytes:
    """Return the content of dfu_stage for a package of these encoded chunks."""
    body = b"".join(c + b"\xff" * (-len(c) % 4) for c in chunks)
    head = struct.pack("<IIII", 0x47554644, len(chunks), len(body), kind) + base + struct.pack("<I", len(envelope))
    return with_crc(head + envelope + b"\xff" * (-len(envelope) % 4)).ljust(SECTOR, b"\xff") + body


class Flash:
    """Four megabytes of NOR, sector by sector; sectors are never changed in place, so copies are cheap."""

    __slots__ = ("operations", "sectors", "size")
    BLANK = b"\xff" * SECTOR

    def __init__(self, sectors: dict[int, bytes] | None = None) -> None:
        self.size = 4 << 20
        self.sectors = dict(sectors or {})
        self.operations = 0

    def copy(self) -> Flash:
        return Flash(self.sectors)

    def force(self, offset: int, content: bytes) -> None:
        """Set a sector to what a power cut within an erase left."""
        self.sectors[offset // SECTOR] = content

    def key(self) -> frozenset[tuple[int, bytes]]:
        return frozenset((k, v) for k, v in self.sectors.items() if v != self.BLANK)

    def read(self, offset: int, size: int) -> bytes:
        out = []
        while size:
            at = offset % SECTOR
            piece = self.sectors.get(offset // SECTOR, self.BLANK)[at : at + size]
            out.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(out)

    def erase(self, offset: int) -> None:
        self.operations += 1
        self.sectors[offset // SECTOR] = self.BLANK

    def program(self, offset: int, data: bytes) -> None:
        self.operations += 1
        number, at = divmod(offset, SECTOR)
        if at + len(data) > SECTOR:
            raise ValueError("a program operation crosses a sector")
        old = self.sectors.get(number, self.BLANK)
        place = int.from_bytes(old[at : at + len(data)], "big") & int.from_bytes(data, "big")
        self.sectors[number] = old[:at] + place.to_bytes(len(data), "big") + old[at + len(data) :]

    def put(self, offset: int, data: bytes) -> None:
        """Write as a factory would: whatever was there."""
        while data:
            number, at = divmod(offset, SECTOR)
            n = min(len(data), SECTOR - at)
            old = self.sectors.get(number, self.BLANK)
            self.sectors[number] = old[:at] + data[:n] + old[at + n :]
            offset, data = offset + n, data[n:]

    def install(self, slot: int, data: bytes, envelope: bytes = b"") -> None:
        self.put(SLOTS[slot], data)
        if envelope:
            self.put(SLOTS[slot] + SLOT_BYTES - SECTOR, trailer(envelope))

    def records(self, at: int, size: int, sectors: int, magic: int) -> list[bytes]:
        """Return the valid records of a log, oldest first."""
        found = []
        for place in range(at, at + sectors * SECTOR, size):
            record = self.read(place, size)
            if record[:4] == struct.pack("<I", magic) and with_crc(record[:-4]) == record:
                found.append(record)
        return sorted(found, key=lambda r: struct.unpack_from("<I", r, 4)[0])

    def state(self) -> dict[str, int]:
        """Return the fields of the newest state record; {} if there is none."""
        found = self.records(STATE_AT, 32, 2, 0x53554644)
        if not found:
            return {}
        fields = dict(zip(FIELDS, struct.unpack_from(STATE, found[-1]), strict=True))
        return fields | {"previous": fields["previous"] & 1, "starts": fields["previous"] >> 1}

    def diagnostics(self) -> list[bytes]:
        return self.records(DIAG_AT, 512, 4, 0x44554644)
