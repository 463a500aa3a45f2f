"""How dfud's names read in hawkBit. Pure.

A device is the target `APP:DEVICE`. What hawkBit's URLs, its query language or a case-insensitive database would stumble
over is written as `_` and two hexadecimal digits of UTF-8. A name with capitals, or too long, ends in `__` and a digest.
"""

from __future__ import annotations

import hashlib
import ipaddress

TARGET_ID_MAX = 256  # hawkBit's column
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
_DIGEST = 16


def target_id(app: str, device: str) -> str:
    """Return the target of a device; different devices have different targets, also if case is ignored."""
    raw = device.encode("utf-8", "surrogatepass")
    text = "".join(chr(b) if b in _SAFE else f"_{b:02x}" for b in raw)
    if text.startswith("."):
        text = "_2e" + text[1:]  # `..` is a place in a URL, not a name
    room = TARGET_ID_MAX - len(app) - 1
    if text != text.lower() or len(text) > room:
        text = f"{text[: room - 2 - _DIGEST]}__{hashlib.sha256(raw).hexdigest()[:_DIGEST]}"
    return f"{app}:{text}"


def app_of(target: str) -> str:
    """Return the app whose device a target may be, or "" for one that is certainly not dfud's."""
    app, colon, _ = target.partition(":")
    return app if colon else ""


def quoted(text: str) -> str:
    """Return `text` as a value of hawkBit's query language. A `*` in it stays a wildcard: compare what comes back."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def forwarded(address: str) -> str:
    """Return an address as hawkBit's X-Forwarded-For takes it, "" for what is none: it knows IPv6 in full length only."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped) if mapped is not None else found.exploded
