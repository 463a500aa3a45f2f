"""The part of CBOR (RFC 8949) that Drogue's update messages need. Pure.

Own code instead of a library: those build dates, fractions and shared references out of tags, and go on behind the end of
a message. Here every value that is no part of the protocol is skipped, and whatever is malformed raises one error.
"""

from __future__ import annotations

import struct
from typing import Any

from dfud.api import PeerError

DEPTH_MAX = 8
_BREAK = object()


class Skipped:
    """A value of a type that the protocol does not use (float, tag, indefinite string)."""


SKIPPED = Skipped()


def decode_untrusted(data: bytes) -> Any:
    """Return the one value in `data`: int, bytes, str, list, dict, bool, None or SKIPPED. Raises PeerError."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise PeerError(f"CBOR: {len(data) - reader.at} bytes behind the message, expected none")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise PeerError("CBOR: the message ends too early")
        found = self._data[self.at : end]
        self.at = end
        return found

    def value(self, depth: int, *, in_indefinite: bool = False) -> Any:
        if depth > DEPTH_MAX:
            raise PeerError(f"CBOR: nested deeper than {DEPTH_MAX}")
        first = self._take(1)[0]
        major, info = first >> 5, first & 31
        if first == 0xFF and in_indefinite:
            return _BREAK
        if info == 31:
            return self._indefinite(major, depth)
        argument = self._argument(info)
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        if major == 2:
            return self._take(argument)
        if major == 3:
            return self._text(argument)
        if major == 4:
            return [self.value(depth + 1) for _ in range(self._count(argument, 1))]
        if major == 5:
            found: dict[Any, Any] = {}
            for _ in range(self._count(argument, 2)):
                self._pair(found, self.value(depth + 1), depth)
            return found
        if major == 6:
            self.value(depth + 1)
            return SKIPPED
        return {20: False, 21: True, 22: None, 23: None}.get(info, SKIPPED)

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise PeerError("CBOR: reserved length")
        return int.from_bytes(self._take(1 << (info - 24)), "big")

    def _count(self, count: int, least: int) -> int:
        # Each item takes a byte at least: a larger count can only end too early, and need not be begun.
        if count * least > len(self._data) - self.at:
            raise PeerError("CBOR: the message ends too early")
        return count

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise PeerError("CBOR: text that is not UTF-8") from None

    def _pair(self, into: dict[Any, Any], key: Any, depth: int) -> None:
        value = self.value(depth + 1)
        if not isinstance(key, int | str) or isinstance(key, bool):
            return
        if key in into:
            raise PeerError(f"CBOR: key {key!r:.40} stands there twice")
        into[key] = value

    def _indefinite(self, major: int, depth: int) -> Any:
        if major not in (2, 3, 4, 5):
            raise PeerError("CBOR: a break where none can be")
        items: list[Any] = []
        pairs: dict[Any, Any] = {}
        while (item := self.value(depth + 1, in_indefinite=True)) is not _BREAK:
            if major == 5:
                self._pair(pairs, item, depth)
            else:
                items.append(item)
        return pairs if major == 5 else items if major == 4 else SKIPPED


def encode(value: Any) -> bytes:
    """Write ints >= 0, bytes, None and dicts of them, shortest form, keys in the order of the dict."""
    if value is None:
        return b"\xf6"
    if isinstance(value, dict):
        return _head(5, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    return _head(0, value)


def _head(major: int, argument: int) -> bytes:
    first = major << 5
    if argument < 24:
        return bytes((first | argument,))
    for info, form, limit in ((24, ">BB", 1 << 8), (25, ">BH", 1 << 16), (26, ">BI", 1 << 32)):
        if argument < limit:
            return struct.pack(form, first | info, argument)
    return struct.pack(">BQ", first | 27, argument)
