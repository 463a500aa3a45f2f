"""Text columns as they come: bytes, perhaps damaged."""

from __future__ import annotations


def text(stored: bytes) -> str:
    """Return a text column. A wrong byte in it makes it another text, never an error."""
    return stored.decode("utf-8", "replace")
