"""What the signature of a firmware is worth now: judged by the keys that its app has at this moment. Pure.

spec.signing of an app: {"mode": "required" or "optional", "keys": [base64 of Ed25519 public keys]}.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from dfud.errors import PeerError
from dfud.wire.manifest import decode_envelope_untrusted, verify

JUDGED_MAX = 4096


class Trust(StrEnum):
    SIGNED = "signed"  # by a key that the app has
    UNTRUSTED = "untrusted"  # by a key that the app does not have, or has no longer; or it is not readable
    UNSIGNED = "unsigned"


def signing_of(spec: Mapping[str, Any]) -> tuple[bool, tuple[bytes, ...]]:
    """Return whether an app insists on signatures, and its public keys; what is no key is left out."""
    section: Any = spec.get("signing")
    section = section if isinstance(section, Mapping) else {}
    listed = section.get("keys")
    keys: list[bytes] = []
    for text in listed if isinstance(listed, list) else []:
        try:
            key = msgspec.convert(text, bytes)  # base64
        except msgspec.ValidationError:
            continue
        if len(key) == 32:
            keys.append(key)
    return section.get("mode") != "optional", tuple(keys)


def trust_of(spec: Mapping[str, Any], envelope: bytes) -> Trust:
    """Judge an envelope by the spec of its app. Costs a signature the first time, a look-up after that."""
    return _judge(envelope, signing_of(spec)[1])[0]


def trust_problem(spec: Mapping[str, Any], version: str, envelope: bytes) -> str:
    """Say why a firmware may not be sent to devices of an app with this spec now, or ""."""
    required, keys = signing_of(spec)
    trust, found = _judge(envelope, keys)
    if trust is Trust.UNSIGNED and required:
        found = "it is not signed, and its app takes signed firmware only (spec.signing.mode)"
    return f"firmware {version} is not sent: {found}" if found else ""


@lru_cache(JUDGED_MAX)  # of values alone, so it cannot be out of date
def _judge(envelope: bytes, keys: tuple[bytes, ...]) -> tuple[Trust, str]:
    try:
        decoded, _ = decode_envelope_untrusted(envelope)
    except PeerError as error:
        return Trust.UNTRUSTED, f"its manifest cannot be read: {error}"
    if not decoded.signature:
        return Trust.UNSIGNED, ""
    try:
        verify(decoded, keys)
    except PeerError:
        why = f"key {decoded.key.hex()} signed it, which is none of its app's (spec.signing.keys); sign it again"
        return Trust.UNTRUSTED, why
    return Trust.SIGNED, ""
