"""Bytes as values: a stored document that cannot be read costs itself, and a body of a peer's is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from dfud.api.guard import note
from dfud.errors import PeerError

T = TypeVar("T")
# What msgspec raises for bytes that are no such value, whoever wrote them.
UNDECODABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


def decode_untrusted(what: str, data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Return JSON from outside as a `kind`. Raises PeerError that says where it is not. what: how the message begins."""
    try:
        found: T = msgspec.json.decode(data, type=kind)
    except UNDECODABLE as error:
        raise PeerError(f"{what}: {str(error)[:200]}") from None
    return found


def read_record(
    where: str, stored: bytes, kind: type[T], *, decode: Callable[..., Any] = msgspec.json.decode, **about: object
) -> T | None:
    """Return a stored document as a `kind`, or None: it cannot be read, which is logged and counted under `where`.

    decode: msgspec's, for the form that it is stored in. about: as for contained().
    """
    try:
        found: T = decode(stored, type=kind)
    except UNDECODABLE as error:
        note(where, error, **about)
        return None
    return found
