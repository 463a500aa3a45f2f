"""What went wrong with the database, by whose fault it is. Source: the manual, "PostgreSQL Error Codes"."""

from __future__ import annotations

from dfud.api import StoreError

DEADLOCK = frozenset({"40001", "40P01"})
LOCKED = "55P03"
READ_ONLY = "25006"  # a standby: another server may be the primary now
# Of the one who asked: a value that cannot be held, a constraint, a key that is too long.
_OF_VALUES = ("22", "23", "54")


class DatabaseError(Exception):
    """The server refused a statement. state: SQLSTATE."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state

    @property
    def of_value(self) -> bool:
        """Whether one job is at fault, and not the database."""
        return self.state.startswith(_OF_VALUES)


class Lost(Exception):
    """The connection is gone or hangs; what was under way may have been done or not."""


def told(what: str, error: Exception) -> StoreError:
    """Return what the caller is told."""
    text = str(error).encode("utf-8", "backslashreplace").decode()
    if isinstance(error, DatabaseError):
        return StoreError(f"{what}: {text} (SQLSTATE {error.state})", retryable=not error.of_value)
    return StoreError(f"{what}: {text}", retryable=True)
