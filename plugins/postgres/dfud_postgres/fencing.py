"""The token of a lead: random, in the lead's row, and held against that row by every transaction of the lead's work.

A lock alone does not do: a process that was stopped for a while, or whose session the server has ended, may go on for a moment after
another one has the lock. Its commits are refused from the moment the other has put its own token there: they share a lock of the row
until they are done, and the other waits for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from dfud.api import StoreError
from dfud_postgres.wire import Query

TOKENS = Query("SELECT name, token FROM lead WHERE name=ANY($1) ORDER BY name FOR SHARE", "T")


class Superseded(StoreError):
    """Another process leads this work now; nothing was stored."""


class Fence:
    """One lead, from taking it until its block has ended. lose: called when it turns out to be another's.

    Tasks that the block has started elsewhere may outlive it; what they do then is not the lead's work, so it is not held against it.
    """

    __slots__ = ("lose", "name", "over", "owner", "token")

    def __init__(self, owner: object, name: str, token: str, lose: Callable[[], None]) -> None:
        self.owner = owner
        self.name = name
        self.token = token
        self.lose = lose
        self.over = False


HELD: ContextVar[tuple[Fence, ...]] = ContextVar("dfud_postgres_leads", default=())


def held(owner: object) -> tuple[Fence, ...]:
    """Return the leads of `owner` in whose blocks this task was started or is."""
    return tuple(fence for fence in HELD.get() if fence.owner is owner and not fence.over)


def judge(fences: Iterable[Fence], tokens: dict[str, str]) -> Superseded | None:
    """Hold leads against what TOKENS has found; return what the one who commits is told if one of them is another's."""
    lost = [fence for fence in fences if tokens.get(fence.name) != fence.token]
    for fence in lost:
        fence.lose()
    return Superseded(f"another process leads {lost[0].name} now", retryable=True) if lost else None
