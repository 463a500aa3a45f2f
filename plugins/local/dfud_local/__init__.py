"""The local store: SQLite for records, files named by their SHA-256 for images. Uses nothing of dfud but dfud.api."""

from dfud_local import plugin

__all__ = ["plugin"]
