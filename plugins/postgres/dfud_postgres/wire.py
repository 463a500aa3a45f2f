"""Values as PostgreSQL sends them in its binary format. Pure. Source: the manual, "Frontend/Backend Protocol", and array_send()."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

TEXT, INT8, BYTEA, FLOAT8, BOOL = 25, 20, 17, 701, 16
_INT4, _VARCHAR, _XID8 = 23, 1043, 5069
_ARRAYS = {TEXT: 1009, INT8: 1016, BYTEA: 1001, FLOAT8: 1022, BOOL: 1000}
_OIDS = {"t": TEXT, "i": INT8, "b": BYTEA, "f": FLOAT8, "o": BOOL}
_int8 = struct.Struct("!q").pack
_float8 = struct.Struct("!d").pack
_length = struct.Struct("!i").pack
_NULL = b"\xff\xff\xff\xff"


def _text(value: str) -> bytes:
    return value.encode()


def _bool(value: bool) -> bytes:
    return b"\x01" if value else b"\x00"


_ENCODERS: dict[str, Callable[[Any], bytes]] = {"t": _text, "i": _int8, "b": bytes, "f": _float8, "o": _bool}


def _array(code: str) -> Callable[[Sequence[Any]], bytes]:
    encode, oid = _ENCODERS[code], _OIDS[code]

    def encoded(values: Sequence[Any]) -> bytes:
        parts = [struct.pack("!iiiii", 1, 1, oid, len(values), 1) if values else struct.pack("!iii", 0, 0, oid)]
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                one = encode(value)
                parts += (_length(len(one)), one)
        return b"".join(parts)

    return encoded


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    TEXT: lambda b: b.decode("utf-8", "replace"),
    _VARCHAR: lambda b: b.decode("utf-8", "replace"),
    INT8: lambda b: int.from_bytes(b, "big", signed=True),
    _INT4: lambda b: int.from_bytes(b, "big", signed=True),
    _XID8: lambda b: int.from_bytes(b, "big"),
    FLOAT8: lambda b: struct.unpack("!d", b)[0],
    BOOL: lambda b: b != b"\x00",
    BYTEA: lambda b: b,
}


class Query:
    """One statement and the types of its parameters: a letter each, t text, i int8, b bytea, f float8, o bool; capital: an array.

    by_values: how it is done best depends on its values, so it is never prepared: the server plans it for them each time. Of
    a prepared statement it may decide, after five times, to keep one plan for all values.
    """

    __slots__ = ("_encoders", "by_values", "formats", "oids", "sql", "text")

    def __init__(self, text: str, types: str = "", *, by_values: bool = False) -> None:
        self.by_values = by_values
        self.text = text
        self.sql = text.encode()
        self._encoders = [_ENCODERS[c] if c.islower() else _array(c.lower()) for c in types]
        self.oids = [_OIDS[c] if c.islower() else _ARRAYS[_OIDS[c.lower()]] for c in types]
        self.formats = [1] * len(types)

    def encode(self, values: Sequence[Any]) -> list[bytes | None]:
        """Return the parameters as bytes. Raises UnicodeEncodeError, struct.error, TypeError for what PostgreSQL cannot hold."""
        return [None if v is None else encode(v) for encode, v in zip(self._encoders, values, strict=True)]


def decode(oid: int, value: bytes | None) -> Any:
    """Return a column of a row. A type that nobody asked for comes as bytes."""
    return None if value is None else _DECODERS.get(oid, bytes)(value)
