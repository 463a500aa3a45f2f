"""Records in PostgreSQL, shared by several dfud."""

from dfud_postgres import plugin

__all__ = ["plugin"]
