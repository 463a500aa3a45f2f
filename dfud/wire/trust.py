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
    return _judge(envelope, signing_of(spec)[1])


def refusal(spec: Mapping[str, Any], envelope: bytes) -> str:
    """Return why this firmware may not be sent to devices of the app now, or ""."""
    trust = trust_of(spec, envelope)
    if trust is Trust.UNTRUSTED:
        return "it is signed by a key that the app does not trust, or no longer"
    if trust is Trust.UNSIGNED and signing_of(spec)[0]:
        return "it is not signed, and the app takes signed firmware only"
    return ""


@lru_cache(JUDGED_MAX)
def _judge(envelope: bytes, keys: tuple[bytes, ...]) -> Trust:
    try:
        decoded, _ = decode_envelope_untrusted(envelope)
        if not decoded.signature:
            return Trust.UNSIGNED
        verify(decoded, keys)
    except PeerError:
        return Trust.UNTRUSTED
    return Trust.SIGNED
