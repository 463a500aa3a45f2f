"""Ajour's update protocol: `Status` in, `Command` out, as the crate embedded-update 0.1 to 0.12 writes and reads them. Pure.

A status comes with names or with numbers for its keys, or mixed; commands go out with numbers, as drogue-ajour's did.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dfud.api import PeerError
from dfud_drogue.cbor import decode_untrusted, encode

VERSION_MAX_BYTES = 64
U32_MAX = (1 << 32) - 1
_STATUS = ("version", "mtu", "correlation_id", "update")
_UPDATE = ("version", "offset")
WAIT, SYNC, WRITE, SWAP = range(4)


class Update(msgspec.Struct, frozen=True):
    """What the device is writing: it has `offset` bytes of `version`."""

    version: bytes
    offset: int


class Status(msgspec.Struct, frozen=True):
    version: bytes
    mtu: int | None = None
    correlation_id: int | None = None
    update: Update | None = None


def decode_status_untrusted(body: bytes) -> Status:
    """Read a status; keys that it does not know are skipped. Raises PeerError."""
    fields = _fields(decode_untrusted(body), _STATUS, "status")
    found = fields.get("update")
    update = None
    if found is not None:
        inner = _fields(found, _UPDATE, "update")
        offset = _u32(inner, "offset")
        if offset is None:
            raise PeerError("update: offset is missing")
        update = Update(_version(inner), offset)
    return Status(_version(fields), _u32(fields, "mtu"), _u32(fields, "correlation_id"), update)


def _fields(value: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """Return the fields of a struct by name, whether it was written as map by name, by number, or as array."""
    if isinstance(value, list):
        if len(value) != len(names):
            raise PeerError(f"{what}: an array of {len(value)}, expected {len(names)}")
        return dict(zip(names, value, strict=True))
    if not isinstance(value, dict):
        raise PeerError(f"{what}: expected a map")
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = names[key] if isinstance(key, int) and 0 <= key < len(names) else key
        if name in names:
            if name in out:
                raise PeerError(f"{what}: {name} stands there twice")
            out[str(name)] = item
    return out


def _version(fields: dict[str, Any]) -> bytes:
    found = fields.get("version")
    if not isinstance(found, bytes) or not 1 <= len(found) <= VERSION_MAX_BYTES:
        raise PeerError(f"version: expected 1 to {VERSION_MAX_BYTES} bytes as a byte string")
    return found


def _u32(fields: dict[str, Any], name: str) -> int | None:
    found = fields.get(name)
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= U32_MAX:
        raise PeerError(f"{name}: expected an unsigned number of 32 bits")
    return found


def wait(correlation_id: int | None, poll_s: int | None) -> bytes:
    """Ask again after `poll_s`."""
    return encode({WAIT: {0: correlation_id, 1: poll_s}})


def sync(version: bytes, correlation_id: int | None, poll_s: int | None) -> bytes:
    """You run what you should: confirm it."""
    return encode({SYNC: {0: version, 1: correlation_id, 2: poll_s}})


def write(version: bytes, correlation_id: int | None, offset: int, data: bytes) -> bytes:
    return encode({WRITE: {0: version, 1: correlation_id, 2: offset, 3: data}})


def swap(version: bytes, correlation_id: int | None, checksum: bytes) -> bytes:
    """It is all there: check and boot it. checksum: SHA-256 of the image."""
    return encode({SWAP: {0: version, 1: correlation_id, 2: checksum}})
