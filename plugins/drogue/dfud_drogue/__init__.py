"""What users of Drogue IoT already have works here: docs/drogue.md. Uses nothing of dfud but dfud.api."""

from dfud_drogue import plugin

__all__ = ["plugin"]
