"""The msgpack subset of docs/protocol.md: canonical writing, suspicious reading."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no annotations

from dfud.errors import PeerError

DEPTH_MAX = 4  # docs/protocol.md, "The msgpack subset"


def encode(value: Any) -> bytes:
    """Write `value` in canonical form; maps must be built with ascending keys by the caller."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]  # as above


def decode_untrusted(data: bytes | memoryview, *, limit_bytes: int) -> Any:
    """Read one value of the subset from exactly `data`.

    Raises PeerError for anything else: more than `limit_bytes`, bytes behind the value, a type outside the subset,
    a key twice, nesting deeper than DEPTH_MAX.
    """
    if len(data) > limit_bytes:
        raise PeerError(f"message of {len(data)} bytes, expected at most {limit_bytes}")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=_pairs,
            ext_hook=_no_extension,
        )
    except PeerError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise PeerError(f"not a msgpack message: {str(error)[:120] or type(error).__name__}") from None
    _check(value, 0)
    return value


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = {}
    for key, value in pairs:
        if type(key) not in (int, str):
            raise PeerError("a map key is neither an unsigned integer nor text")
        if key in found:
            raise PeerError(f"the map key {key!r} stands twice")
        found[key] = value
    return found


def _no_extension(code: int, data: bytes) -> Any:
    raise PeerError("extension types are not part of the protocol")


def _check(value: Any, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise PeerError(f"nested deeper than {DEPTH_MAX}")
    kind = type(value)
    if kind is dict:
        for key, inner in value.items():
            if type(key) is int and key < 0:
                raise PeerError("a map key is negative")
            _check(inner, depth + 1)
    elif kind is list:
        for inner in value:
            _check(inner, depth + 1)
    elif kind is int:
        if value < 0:
            raise PeerError("a negative integer is not part of the protocol")
    elif kind is float or kind not in (str, bytes, bool, type(None)):
        raise PeerError(f"{kind.__name__} is not part of the protocol")
