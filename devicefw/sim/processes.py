"""Ending: signals switch the boards off, and what a simulator has started dies with it, however it dies."""

from __future__ import annotations

import atexit
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache

import trio

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The leader of the group reads from a pipe that only this process writes to. It ends when this process does, even by SIGKILL.
LEADER = ("sh", "-c", "cat >/dev/null; kill -KILL 0")


@cache
def process_group() -> int:
    """Return the process group for children: all in it are killed when this process has ended. It takes no Ctrl-C itself."""
    leader = subprocess.Popen(LEADER, stdin=subprocess.PIPE, process_group=0)

    def end() -> None:
        assert leader.stdin is not None
        leader.stdin.close()
        leader.wait()

    atexit.register(end)
    return leader.pid


async def until_signalled(run: Callable[[], Awaitable[None]]) -> None:
    """Run `run`; SIGINT, SIGTERM and SIGHUP cancel it, but those that the process was told to ignore, as nohup does.

    What it raises comes out as it is, not in a group.
    """
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    with trio.open_signal_receiver(*heard) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel, signals, nursery.cancel_scope)
                await run()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None


async def _cancel(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
