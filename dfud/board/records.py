"""Records that bootloader and agent share (bootloader/FORMAT.md): written for a factory, read for people."""

from __future__ import annotations

import hashlib
import struct
import zlib

import msgspec

from dfud.errors import PeerError
from dfud.wire.manifest import ENVELOPE_MAX_BYTES, KEYS_MAX

SECTOR_BYTES = 4096
_TRAILER, _STATE, _KEYS, _DIAG = 0x54554644, 0x53554644, 0x4B554644, 0x44554644
PHASES = {0: "confirmed", 1: "on trial", 2: "to be installed"}
OUTCOMES = {
    0: "none",
    1: "confirmed",
    2: "left after crashes",
    3: "left: image hash",
    4: "left: signature",
    5: "left: sequence below the floor",
    6: "left: bad image",
    7: "install failed",
    8: "state was unreadable",
    9: "reverted by request",
    10: "left: never confirmed",
}
WRITERS = {0: "factory", 1: "bootloader", 2: "agent"}
DIAGNOSES = {1: "crash", 2: "text", 3: "image refused", 4: "state unreadable", 5: "install failed"}


def encode_trailer(envelope: bytes) -> bytes:
    """Return what stands in a slot's last sector ("Slot")."""
    body = struct.pack("<II", _TRAILER, len(envelope)) + envelope + b"\xff" * (-len(envelope) % 4)
    return body + struct.pack("<I", zlib.crc32(body))


def decode_trailer_untrusted(sector: bytes) -> bytes:
    """Return the envelope in a slot's last sector, b"" if the sector is blank. Raises PeerError if it is damaged."""
    if not sector.strip(b"\xff"):
        return b""
    magic, length = struct.unpack_from("<II", sector)
    end = 8 + length + -length % 4
    if magic != _TRAILER or not 1 <= length <= ENVELOPE_MAX_BYTES:
        raise PeerError("trailer: neither blank nor a manifest's")
    if zlib.crc32(sector[:end]) != int.from_bytes(sector[end : end + 4], "little"):
        raise PeerError("trailer: its CRC does not match")
    return sector[8 : 8 + length]


def encode_keys(keys: list[bytes], development: set[int]) -> bytes:
    """Return the first record of dfu_keys ("Keys"). development: which of the keys, by their number, are development keys."""
    mask = sum(1 << k for k in development)
    record = struct.pack("<IIBBB5x", _KEYS, 1, len(keys), mask, 0) + b"".join(keys)
    record = record.ljust(252, b"\0")
    return record + struct.pack("<I", zlib.crc32(record))


def log_untrusted(data: bytes, magic: int, size: int) -> list[bytes]:
    """Return the records of a log that are whole, oldest first."""
    found = []
    for at in range(0, len(data) - size + 1, size):
        record = data[at : at + size]
        if int.from_bytes(record[:4], "little") == magic:
            if zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "little"):
                found.append(record)
    return sorted(found, key=lambda record: int.from_bytes(record[4:8], "little"))


class State(msgspec.Struct, frozen=True):
    """One record of the state log."""

    number: int
    slot: int
    phase: str
    crashes: int
    starts: int
    outcome: str
    writer: str
    floor: int
    accept: int


def states_untrusted(data: bytes) -> list[State]:
    """Return the state log, oldest first."""
    found = []
    for record in log_untrusted(data, _STATE, 32):
        seq, slot, phase, crashes, _, previous, outcome, _, writer, floor, accept = struct.unpack_from(
            "<4xI8BII", record
        )
        found.append(
            State(
                number=seq,
                slot=slot,
                phase=PHASES.get(phase, f"phase {phase}"),
                crashes=crashes,
                starts=(previous >> 1) // 8,
                outcome=OUTCOMES.get(outcome, f"outcome {outcome}"),
                writer=WRITERS.get(writer, f"writer {writer}"),
                floor=floor,
                accept=accept,
            )
        )
    return found


class Key(msgspec.Struct, frozen=True):
    """A key that the device trusts, and its identifier in hexadecimal."""

    public: bytes
    id: str
    development: bool


def keys_untrusted(data: bytes) -> list[Key] | None:
    """Return the keys that count; [] on an open device, None if the log cannot be read: then nothing is trusted."""
    records = log_untrusted(data, _KEYS, 256)
    if not records:
        return None if data.strip(b"\xff") else []
    record = records[-1]
    revoked = {record[144 + 8 * i : 152 + 8 * i] for i in range(min(record[10], 11))}
    found = []
    for i in range(min(record[8], KEYS_MAX)):
        key = record[16 + 32 * i : 48 + 32 * i]
        name = hashlib.sha256(key).digest()[:8]
        if name not in revoked:
            found.append(Key(public=key, id=name.hex(), development=bool(record[9] >> i & 1)))
    return found


class Diagnosis(msgspec.Struct, frozen=True):
    """One diagnostics record: what happened in which slot, and what was said of it."""

    number: int
    what: str
    slot: int
    crashes: int
    reset: int
    version: str
    text: str


def diagnoses_untrusted(data: bytes) -> list[Diagnosis]:
    """Return the ring, oldest first."""
    found = []
    for record in log_untrusted(data, _DIAG, 512):
        seq, kind, slot, crashes, reset, cause = struct.unpack_from("<4xI4BI", record)
        text = record[52:504] if kind == 2 else record[316:504]
        said = text.partition(b"\0")[0].decode("utf-8", "replace")
        found.append(
            Diagnosis(
                number=seq,
                what=DIAGNOSES.get(kind, f"type {kind}"),
                slot=slot,
                crashes=crashes,
                reset=reset,
                version=record[20:52].partition(b"\0")[0].decode("utf-8", "replace"),
                text=said or (f"cause {cause:#x}" if cause else ""),
            )
        )
    return found
