"""How a part of dfud, or a plugin, declares its section of dfud.toml.

A section is a frozen msgspec.Struct whose fields are annotated with `msgspec.Meta(description=..., ge=..., le=...,
extra={"unit": "s"})`. dfud refuses unknown keys and values out of range when it starts, and generates
conf/dfud.full.toml from the same declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from dfud.errors import BugError

T = TypeVar("T", bound=msgspec.Struct)


class Secret(str):
    """Text that never shows itself: `repr()` and formatting with `!r` give stars. Use `.reveal()` to get at it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('***')"

    def reveal(self) -> str:
        return str.__str__(self)


class Section(msgspec.Struct, frozen=True):
    """name is the table's name in dfud.toml (`transport.http`); type its declaration; doc one line for the full config."""

    name: str
    type: type[msgspec.Struct]
    doc: str = ""


class Config(msgspec.Struct, frozen=True):
    """The whole configuration, read once; nothing in it changes while dfud runs (a reload makes a new one)."""

    sections: Mapping[str, Any]
    path: str = ""

    def section(self, name: str, kind: type[T]) -> T:
        """Return the section `name`, which was declared with type `kind`; raise BugError if it was not."""
        found = self.sections.get(name)
        if not isinstance(found, kind):
            raise BugError(f"config section [{name}] was never declared as {kind.__name__}")
        return found
