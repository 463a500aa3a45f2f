"""The signed description of a firmware and its envelope: docs/protocol.md, "Manifest"."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dfud.errors import PeerError
from dfud.wire.messages import _bin, _map, _str, _uint
from dfud.wire.subset import decode_untrusted, encode

ENVELOPE_MAX_BYTES = 1024
SIGNATURE_CONTEXT = b"dfud manifest 1\0"
FLAG_DOWNGRADE = 1
FLAG_RAW = 2
FLAG_APP = 4  # an image for an app bank, not for a slot
FLAGS = FLAG_DOWNGRADE | FLAG_RAW | FLAG_APP
KEYS_MAX = 4


class Manifest(msgspec.Struct, frozen=True):
    """beside: the lowest and the highest sequence of the other kind that the image runs with, None: any."""

    app: str
    version: str
    hardware: str
    sequence: int
    size: int
    sha256: bytes
    flags: int = 0
    floor: int = 0
    add: tuple[bytes, ...] = ()
    revoke: tuple[bytes, ...] = ()
    beside: tuple[int, int] | None = None


class Envelope(msgspec.Struct, frozen=True):
    """manifest is the encoded one, as signed; key and signature are empty if it is unsigned."""

    manifest: bytes
    key: bytes = b""
    signature: bytes = b""


def encode_manifest(manifest: Manifest) -> bytes:
    """Write the canonical bytes; raise PeerError if a field is out of its range."""
    message: dict[int, Any] = {
        0: 1,
        1: manifest.app,
        2: manifest.version,
        3: manifest.hardware,
        4: manifest.sequence,
        5: manifest.size,
        6: manifest.sha256,
        7: manifest.flags,
    }
    if manifest.floor:
        message[8] = manifest.floor
    if manifest.add:
        message[9] = list(manifest.add)
    if manifest.revoke:
        message[10] = list(manifest.revoke)
    if manifest.beside is not None:
        message[11] = list(manifest.beside)
    data = encode(message)
    decode_manifest_untrusted(data)
    return data


def decode_manifest_untrusted(data: bytes) -> Manifest:
    """Read a manifest; raises PeerError also where the bytes are not the canonical ones."""
    m = _map(decode_untrusted(data, limit_bytes=ENVELOPE_MAX_BYTES), "manifest")
    if m.get(0) != 1:
        raise PeerError(f"manifest: format {m.get(0)!r}, expected 1")
    unknown = [key for key in m if key not in range(12)]
    if unknown:
        raise PeerError(f"manifest: unknown key {unknown[0]!r}")
    manifest = Manifest(
        app=_str(m, 1, "manifest.app", 1, 63),
        version=_str(m, 2, "manifest.version", 1, 64),
        hardware=_str(m, 3, "manifest.hardware", 1, 32),
        sequence=_uint(m, 4, "manifest.sequence", 0, (1 << 32) - 1),
        size=_uint(m, 5, "manifest.size", 1, (1 << 32) - 1),
        sha256=_bin(m, 6, "manifest.sha256", 32, 32),
        flags=_uint(m, 7, "manifest.flags", 0, FLAGS),
        floor=_uint(m, 8, "manifest.floor", 0, (1 << 32) - 1, 0),
        add=_keys(m, 9, "manifest.add", 32),
        revoke=_keys(m, 10, "manifest.revoke", 8),
        beside=_range(m, 11, "manifest.with"),
    )
    if encode(dict(sorted(m.items()))) != data:
        raise PeerError("manifest: not canonical")
    if manifest.floor > manifest.sequence:
        raise PeerError(floor_too_high(manifest.floor, manifest.sequence))
    if manifest.flags & FLAG_RAW and manifest.flags & FLAG_APP:
        raise PeerError("manifest.flags: raw and app stand side by side, expected one of them")
    return manifest


@lru_cache(maxsize=1024)
def beside_of(envelope: bytes) -> tuple[int, int] | None:
    """Return which sequences of the other kind an image runs with, None: any. An envelope that cannot be read says nothing."""
    try:
        return decode_envelope_untrusted(envelope)[1].beside
    except PeerError:
        return None


@lru_cache(maxsize=1024)
def changes_device(envelope: bytes) -> bool:
    """Say whether a manifest changes what a device takes from then on: it has a floor, adds keys or revokes some."""
    try:
        _, manifest = decode_envelope_untrusted(envelope)
    except PeerError:
        return False
    return bool(manifest.floor or manifest.add or manifest.revoke)


def renewal_due(envelope: bytes, sequence: int, running: int | None) -> bool:
    """Say whether a device that runs the image already is to get it again under this manifest of that sequence number.

    running: the number in the manifest that its copy was installed with; None: it has none, or does not say.
    """
    return running is not None and sequence > running and changes_device(envelope)


def floor_too_high(floor: int, sequence: int) -> str:
    """Say why no manifest may have this floor: it holds for the image itself as soon as that is confirmed."""
    return (
        f"manifest.floor: {floor}, expected at most the firmware's own sequence, {sequence}: "
        "a device that has confirmed this firmware would not boot it again; sign it with a lower floor or a higher sequence"
    )


def _keys(m: dict[Any, Any], key: int, what: str, size: int) -> tuple[bytes, ...]:
    items = m.get(key, [])
    if type(items) is not list or len(items) > KEYS_MAX or any(type(i) is not bytes or len(i) != size for i in items):
        raise PeerError(f"{what}: expected up to {KEYS_MAX} items of {size} bytes")
    return tuple(items)


def _range(m: dict[Any, Any], key: int, what: str) -> tuple[int, int] | None:
    if key not in m:
        return None
    items = m[key]
    if type(items) is not list or len(items) != 2 or any(type(i) is not int or not 0 <= i < 1 << 32 for i in items):
        raise PeerError(f"{what}: expected two sequences below 2^32, the lowest and the highest")
    if items[0] > items[1]:
        raise PeerError(f"{what}: {items[0]} to {items[1]}, expected the lower sequence first")
    return items[0], items[1]


def encode_envelope(envelope: Envelope) -> bytes:
    data = encode([envelope.manifest, envelope.key, envelope.signature])
    if len(data) > ENVELOPE_MAX_BYTES:
        raise PeerError(f"manifest: {len(data)} bytes with its signature, expected at most {ENVELOPE_MAX_BYTES}")
    return data


def decode_envelope_untrusted(data: bytes) -> tuple[Envelope, Manifest]:
    """Read an envelope and its manifest without judging the signature; raises PeerError."""
    items = decode_untrusted(data, limit_bytes=ENVELOPE_MAX_BYTES)
    if type(items) is not list or len(items) != 3 or any(type(i) is not bytes for i in items):
        raise PeerError("manifest: expected an array of three byte strings")
    envelope = Envelope(*items)
    if (len(envelope.key), len(envelope.signature)) not in ((8, 64), (0, 0)):
        raise PeerError("manifest: expected a key of 8 and a signature of 64 bytes, or neither")
    if encode(items) != data:
        raise PeerError("manifest: the envelope is not canonical")
    return envelope, decode_manifest_untrusted(envelope.manifest)


def key_id(public_key: bytes) -> bytes:
    """Return the 8-byte identifier of a 32-byte Ed25519 public key."""
    return hashlib.sha256(public_key).digest()[:8]


def sign(manifest: Manifest, private_key: Ed25519PrivateKey) -> bytes:
    """Return the encoded envelope of `manifest`, signed."""
    return sign_with(manifest, private_key.public_key().public_bytes_raw(), private_key.sign)


def sign_with(manifest: Manifest, public: bytes, signer: Callable[[bytes], bytes]) -> bytes:
    """As sign(), for a key that is elsewhere: `signer` gives the Ed25519 signature of `public` over its argument."""
    data = encode_manifest(manifest)
    return encode_envelope(Envelope(data, key_id(public), signer(SIGNATURE_CONTEXT + data)))


def unsigned(manifest: Manifest) -> bytes:
    """Return the encoded envelope of `manifest` without a signature."""
    return encode_envelope(Envelope(encode_manifest(manifest)))


def verify(envelope: Envelope, keys: Iterable[bytes]) -> bytes:
    """Return the public key out of `keys` (32 bytes each) that signed the envelope; raise PeerError if none did."""
    for key in keys:
        if envelope.signature and key_id(key) == envelope.key:
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(
                    envelope.signature, SIGNATURE_CONTEXT + envelope.manifest
                )
            except (InvalidSignature, ValueError):
                continue
            return key
    raise PeerError("manifest: not signed by a trusted key" if envelope.signature else "manifest: not signed")
