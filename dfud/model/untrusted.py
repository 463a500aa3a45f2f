"""JSON of strangers: what may be kept of it. Pure; no recursion, so no depth can hurt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.errors import PeerError

DEPTH_MAX = 32
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1  # what JSON readers and databases agree on
KEY_MAX_BYTES = 1024
ENCODED_MAX_BYTES = 1 << 16
PATH_MAX = 160


def check_json_untrusted(
    value: Any, what: str, *, max_bytes: int = ENCODED_MAX_BYTES, max_depth: int = DEPTH_MAX
) -> None:
    """Raise PeerError that names the place in `value`, whose own name is `what`, unless all of it may be kept.

    Kept are null, booleans, integers of 64 bits, finite numbers, text without lone surrogates, and lists and objects of them, up
    to `max_depth` within each other and `max_bytes` as JSON; the keys of an object are text of up to KEY_MAX_BYTES.
    """
    # Where each value stands is kept as a chain and written out for an error only.
    waiting: list[tuple[Any, _Place, int]] = [(value, (None, what), 0)]
    size = 0
    while waiting:
        found, place, depth = waiting.pop()
        size += 1
        if size > max_bytes:  # each value takes a byte at least
            break
        kind = type(found)
        if kind is str:
            size += _check_text(found, place, max_bytes)
        elif kind is bool or found is None:
            pass
        elif kind is int:
            if not INT_MIN <= found <= INT_MAX:
                raise PeerError(f"{_path(place)}: {_short(found)} is beyond 64 bits, expected {INT_MIN} to {INT_MAX}")
        elif kind is float:
            if not math.isfinite(found):
                raise PeerError(f"{_path(place)}: {found} is no number that JSON has, expected a finite one")
        elif kind is list or isinstance(found, Mapping):
            if depth >= max_depth:
                raise PeerError(f"{_path(place)}: more than {max_depth} lists and objects within each other")
            if kind is list:
                waiting += [(item, (place, index), depth + 1) for index, item in enumerate(found[:max_bytes])]
                continue
            for key, item in found.items():
                if type(key) is not str:
                    raise PeerError(f"{_path(place)}: key {_short(key)}, expected text")
                size += _check_text(key, (place, key), KEY_MAX_BYTES)
                waiting.append((item, (place, key), depth + 1))
        else:
            raise PeerError(f"{_path(place)}: {kind.__name__}, expected what JSON has")
    encoded = len(msgspec.json.encode(value)) if size <= max_bytes else 0
    if encoded > max_bytes or not encoded:
        about = f"{encoded} bytes" if encoded else f"more than {max_bytes} bytes"
        raise PeerError(f"{what}: {about} as JSON, expected at most {max_bytes}")


# The place of the parent, and the key or the index in it; the first is the name of the whole.
_Place = tuple[Any, str | int]


def _check_text(text: str, place: _Place, limit: int) -> int:
    """Return how many bytes `text` has."""
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise PeerError(f"{_path(place)}: lone surrogate U+{ord(text[error.start]):04X}, expected text") from None
    if size > limit:
        raise PeerError(f"{_path(place)}: text of {size} bytes, expected at most {limit}")
    return size


def _path(place: _Place) -> str:
    parts: list[str] = []
    at: Any = place
    while at is not None:
        at, name = at
        parts.append(f"[{name}]" if isinstance(name, int) else f".{name}")
    text = "".join(reversed(parts))[1:]
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= PATH_MAX else f"{text[: PATH_MAX // 2]}...{text[-PATH_MAX // 2 :]}"


def _short(value: Any) -> str:
    text = hex(value) if isinstance(value, int) else repr(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"
