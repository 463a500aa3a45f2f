"""The daemon's own tasks: each is a boundary, and what one raises ends that one only."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from dfud.api import forever

log = logging.getLogger("dfud")


class _Started:
    """Stands in for trio's TaskStatus: the first report goes to who waits for the start, each one to `told`."""

    def __init__(self, first: trio.TaskStatus[Any], told: Callable[[Any], None] | None) -> None:
        self._first = first
        self._told = told
        self.reported = False

    def started(self, value: Any = None) -> None:
        if self._told is not None:
            self._told(value)
        if not self.reported:
            self.reported = True
            self._first.started(value)


async def keep(
    nursery: trio.Nursery,
    where: str,
    work: Callable[..., Awaitable[Any]],
    *arguments: Any,
    told: Callable[[Any], None] | None = None,
    pause_s: float = 1.0,
    **about: object,
) -> None:
    """Start `work(*arguments, task_status=...)` in `nursery`; return once it has reported started.

    What it raises before that is raised here. What it raises later is contained, logged and counted under `where`, and it is
    started again. told: called with what it reported, at each start. A `work` that returns is not started again.
    """

    async def kept(*, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        started = _Started(task_status, told)
        failed: Exception | None = None

        async def once() -> None:
            nonlocal failed
            try:
                await work(*arguments, task_status=started)
            except Exception as error:
                if started.reported:
                    raise
                failed = error

        await forever(where, once, pause_s=pause_s, **about)
        if failed is not None:
            raise failed
        log.warning("a part of dfud has ended by itself", extra={"where": where, **about})

    await nursery.start(kept)
