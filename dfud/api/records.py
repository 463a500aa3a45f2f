"""Stored documents as values: one that cannot be read costs itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from dfud.api.guard import note

T = TypeVar("T")


def read_record(
    where: str, stored: bytes, kind: type[T], *, decode: Callable[..., Any] = msgspec.json.decode, **about: object
) -> T | None:
    """Return a stored document as a `kind`, or None: it cannot be read, which is logged and counted under `where`.

    decode: msgspec's, for the form that it is stored in. about: as for contained().
    """
    try:
        found: T = decode(stored, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        note(where, error, **about)
        return None
    return found
