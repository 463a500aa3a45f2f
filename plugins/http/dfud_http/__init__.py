"""The device plane over HTTP: a small trio listener around httptools. Uses nothing of dfud but dfud.api."""

from dfud_http import plugin

__all__ = ["plugin"]
