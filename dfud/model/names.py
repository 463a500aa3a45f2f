"""Names of apps, devices, versions and labels.

Source of the grammar: Drogue's registry (docs/drogue.md) and Kubernetes' labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dfud.errors import PeerError

APP_NAME_MAX_BYTES = 63
DEVICE_NAME_MAX_BYTES = 255
VERSION_MAX_BYTES = 64  # docs/protocol.md, status key 1
HARDWARE_MAX_BYTES = 32  # docs/protocol.md, status key 3
LABEL_MAX_BYTES = 255

_APP = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_app_name(name: str) -> str:
    """Return `name` if it is a lower-case host name of 1 to 63 bytes, else raise PeerError."""
    if len(name) > APP_NAME_MAX_BYTES or not _APP.fullmatch(name):
        raise PeerError(f"app name {name[:80]!r}: expected a lower-case host name of 1 to {APP_NAME_MAX_BYTES} bytes")
    return name


def check_device_name(name: str) -> str:
    """Return `name` if it is 1 to 255 bytes of UTF-8 without control characters, else raise PeerError."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > DEVICE_NAME_MAX_BYTES:
        raise PeerError(f"device name {name[:80]!r}: expected 1 to {DEVICE_NAME_MAX_BYTES} bytes")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise PeerError(f"device name {name[:80]!r}: expected no control characters")
    return name


def check_text(what: str, text: str, limit_bytes: int) -> str:
    """Return `text` if it is 1 to `limit_bytes` bytes of printable UTF-8, else raise PeerError naming `what`."""
    if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= limit_bytes or not text.isprintable():
        raise PeerError(f"{what} {text[:80]!r}: expected 1 to {limit_bytes} printable bytes")
    return text


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise PeerError at the first label whose key or value is outside the grammar."""
    for key, value in labels.items():
        if len(key) > LABEL_MAX_BYTES or not _LABEL.fullmatch(key):
            raise PeerError(f"label {key[:80]!r}: expected [prefix/]name of letters, digits, '-', '_' and '.'")
        if len(value.encode("utf-8", "surrogatepass")) > LABEL_MAX_BYTES:
            raise PeerError(f"label {key!r}: value longer than {LABEL_MAX_BYTES} bytes")


def is_label_key(key: str) -> bool:
    """Say whether a label may have this key."""
    return len(key) <= LABEL_MAX_BYTES and _LABEL.fullmatch(key) is not None
