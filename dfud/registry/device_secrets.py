"""Fresh credentials in a device's spec. Pure but for the randomness."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from dfud.model.credentials import KEYED, credentials_of, passwords, verify


def with_secret(spec: Mapping[str, Any], secret: str, keep: int) -> dict[str, Any]:
    """Return the spec with `secret` beside the `keep` newest passwords of the device's own, in clear: protect() it."""
    held = _held(spec)
    others = [c for c in held if not (isinstance(c, dict) and "pass" in c)]
    mine = [c for c in held if isinstance(c, dict) and "pass" in c]
    kept = mine[-keep:] if keep else []
    return {**spec, "authentication": {"credentials": [*others, *kept, {"pass": secret}]}}


def with_psk(spec: Mapping[str, Any], psk: bytes) -> dict[str, Any]:
    """Return the spec with this pre-shared key in place of all it has, in clear: protect() it."""
    others = [c for c in _held(spec) if not (isinstance(c, dict) and "psk" in c)]
    fresh = {"psk": {"key": base64.b64encode(psk).decode()}}
    return {**spec, "authentication": {"credentials": [*others, fresh]}}


def own_secret(spec: Mapping[str, Any]) -> str:
    """Return the password of its own that a device brings in clear, "" if there is none, or more than one."""
    own = [c["pass"] for c in credentials_of(spec) if "pass" in c]
    plain = own[0].get("plain") if len(own) == 1 and isinstance(own[0], Mapping) else own[0] if len(own) == 1 else ""
    return plain if isinstance(plain, str) else ""


def is_secret_of(spec: Mapping[str, Any], secret: str, key: bytes) -> bool:
    """Say whether `secret` is a password of the device's own. False where that would be dear to find out."""
    # Comparing a slow form would cost everybody's thread.
    cheap = all(isinstance(stored, Mapping) and KEYED in stored for stored in passwords(spec, None))
    return cheap and verify(spec, None, secret, key)


def _held(spec: Mapping[str, Any]) -> list[Any]:
    section = spec.get("authentication")
    held = section.get("credentials", []) if isinstance(section, dict) else []
    return held if isinstance(held, list) else []
