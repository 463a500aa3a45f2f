"""The errors of dfud: one tree, each class says whose fault it is."""

from __future__ import annotations


class DfudError(Exception):
    """Base of everything that dfud raises on purpose; `str()` is one sentence fit for a user."""


class ConfigError(DfudError):
    """The configuration is at fault: where, what was found, what was expected."""


class PluginError(DfudError):
    """A plugin is at fault: unknown, misspelt, or it broke its promise."""


class PeerError(DfudError):
    """Bytes from outside are at fault. The message may be shown to the peer."""


class StoreError(DfudError):
    """The store could not do it; nothing of the request was stored.

    retryable: the same call may succeed later (busy, away, disk full).
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class UnreadableError(StoreError):
    """One stored record cannot be read. The message names it; putting it again or deleting it repairs that."""


class RequestError(DfudError):
    """A user asked for something that cannot be done; nothing was changed."""


class NotFoundError(RequestError):
    """What the request names does not exist, or the user may not know that it does."""


class ConflictError(RequestError):
    """It exists already, or it changed since the user read it."""


class RefusedError(RequestError):
    """It would break a rule that the message names."""


class BugError(DfudError):
    """dfud itself is at fault."""
