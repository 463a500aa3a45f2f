"""Whether an app's keys vouch for a firmware now: judged from what is stored, whenever it is used. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from dfud.errors import PeerError
from dfud.wire.manifest import decode_envelope_untrusted, verify


def signing_of_spec(spec: Mapping[str, Any]) -> tuple[bool, tuple[bytes, ...]]:
    """Return whether the app insists on signatures, and its public keys: spec.signing {"mode", "keys"}."""
    section = spec.get("signing")
    section = section if isinstance(section, dict) else {}
    held = section.get("keys")
    keys: list[bytes] = []
    for text in held if isinstance(held, list) else []:
        try:
            key = msgspec.convert(text, bytes)  # base64
        except msgspec.ValidationError:
            continue
        if len(key) == 32:
            keys.append(key)
    return section.get("mode") != "optional", tuple(keys)


def trust_problem(spec: Mapping[str, Any], version: str, envelope: bytes) -> str:
    """Say why a firmware of an app with this spec may not be sent, or ""."""
    required, keys = signing_of_spec(spec)
    found = _judge(required, keys, envelope)
    return f"firmware {version} is not sent: {found}" if found else ""


@lru_cache(maxsize=4096)  # of values alone, so it cannot be out of date
def _judge(required: bool, keys: tuple[bytes, ...], envelope: bytes) -> str:
    try:
        decoded, _ = decode_envelope_untrusted(envelope)
    except PeerError as error:
        return f"its {error}"
    if not decoded.signature:
        return "it is not signed, and its app takes signed firmware only (spec.signing.mode)" if required else ""
    try:
        verify(decoded, keys)
    except PeerError:
        return f"key {decoded.key.hex()} signed it, which is none of its app's (spec.signing.keys); sign it again"
    return ""
