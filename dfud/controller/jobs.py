"""Work that nobody waits for: the same job is queued once, and one that is slow delays no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

import trio

from dfud.api import RequestError, StoreError, contained

WORKERS = 64
TRIES = 8  # over two minutes, doubling from a second


class Jobs:
    """Nothing is dropped: a job is named by its key, and there are no more keys than devices and what users want of them."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[Hashable, Callable[[], Awaitable[object]]]](
            float("inf")
        )
        self._queued: set[Hashable] = set()

    def soon(self, key: Hashable, work: Callable[[], Awaitable[object]]) -> None:
        """Have `work` done unless a job of this key is queued already. Never blocks."""
        if key not in self._queued:
            self._queued.add(key)
            self._send.send_nowait((key, work))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            task_status.started()

    async def _work(self) -> None:
        async for key, work in self._receive:
            self._queued.discard(key)
            with contained("controller.job"):
                await _persist(work)


async def _persist(work: Callable[[], Awaitable[object]]) -> None:
    """Do it, again while the store is away; what is refused, or about something that is gone, is done."""
    for number in range(TRIES):
        try:
            await work()
        except RequestError:
            return
        except StoreError as error:
            if not error.retryable or number == TRIES - 1:
                raise
            await trio.sleep(2**number)
        else:
            return
