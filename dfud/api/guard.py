"""The end of an exception at a boundary: logged once with its trace, counted, and the rest goes on.

Every task that serves one device, user, job, record or plugin ends in `contained()`. It stands at boundaries only; inside
them exceptions travel. What a boundary answers (500, 4xx, a closed connection) is its own choice, made from `Guard.error`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

log = logging.getLogger("dfud.guard")
REMEMBERED_MAX = 256
QUIET_S = 60.0
FOREIGN = frozenset({("pyo3_runtime", "PanicException"), ("asyncio.exceptions", "CancelledError")})

_faults: Counter[str] = Counter()
# When each kind was logged last, on the monotonic clock, and how often it came since.
_logged: dict[tuple[str, type[BaseException]], tuple[float, int]] = {}


def _is_fault(error: BaseException) -> bool:
    """Say whether it is an error, and not cancellation, KeyboardInterrupt or SystemExit, which must travel on.

    Two kinds of error are no Exception: a panic of a library in Rust, and the cancellation of a loop that is not ours, in a
    thread of a plugin's.
    """
    if isinstance(error, Exception):
        return not isinstance(error, BaseExceptionGroup)
    kind = type(error)
    return (kind.__module__, kind.__name__) in FOREIGN


def _cancellation(error: BaseExceptionGroup[BaseException]) -> BaseExceptionGroup[BaseException] | None:
    """Return the part of a group that must travel on: cancellation, KeyboardInterrupt, SystemExit."""
    _, rest = error.split(_is_fault)
    return rest


class Guard:
    """What contained() gives: `error` is the exception that was contained, or None.

    No generator: every answer to a device that waits passes one, and a generator costs three times as much.
    """

    __slots__ = ("_about", "_where", "error")

    def __init__(self, where: str, about: dict[str, object]) -> None:
        self._where = where
        self._about = about
        self.error: BaseException | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        if isinstance(error, Exception) or _is_fault(error):
            self.error = error
            note(self._where, error, **self._about)
            return True
        if not isinstance(error, BaseExceptionGroup):
            return False
        rest = _cancellation(error)
        errors = error.subgroup(_is_fault)
        if errors is not None:
            note(self._where, errors, **self._about)
        if rest is not None:
            raise rest from None
        return True


def contained(where: str, **about: object) -> Guard:
    """Contain any Exception of the block, log it with its trace and count it under `where`.

    where: the boundary, a fixed name such as "http.request": it becomes a label of `dfud_contained_errors_total`, so it must
    not hold anything from outside. about: what the log line shows besides (app, device); no secrets. Cancellation,
    KeyboardInterrupt and SystemExit pass, also out of a group; what else the group holds is logged. A panic of a library in Rust
    is contained, too.
    """
    return Guard(where, about)


def note(where: str, error: BaseException, **about: object) -> None:
    """Log and count an exception that a boundary has caught by itself. Never raises.

    One kind of exception at one boundary is logged at most once in QUIET_S; the next line tells how many came meanwhile. So
    a peer that provokes one cannot fill the disk.
    """
    if where in _faults or len(_faults) < REMEMBERED_MAX:
        _faults[where] += 1
    kind, now_s = (where, type(error)), time.monotonic()
    last_s, since = _logged.get(kind, (-QUIET_S, 0))
    if now_s - last_s < QUIET_S:
        _logged[kind] = (last_s, since + 1)
        return
    if kind in _logged or len(_logged) < REMEMBERED_MAX:
        _logged[kind] = (now_s, 0)
    extra: dict[str, object] = {"where": where, **about}
    if since:
        extra["unlogged_before"] = since
    try:
        log.error("contained an exception", exc_info=error, extra=extra)
    except Exception:  # a log that cannot be written, or a name that logging keeps for itself
        _faults["log"] += 1


def faults() -> dict[str, int]:
    """Return how many exceptions each boundary of this process has contained."""
    return dict(_faults)


async def forever(where: str, work: Callable[[], Awaitable[object]], *, pause_s: float = 1.0, **about: object) -> None:
    """Run `await work()` until it returns; when it raises, contain that, wait and run it again.

    For tasks that should not end. The wait doubles from `pause_s` up to a minute while it fails at once, and is `pause_s`
    again after a round that lasted longer than the wait before it.
    """
    wait_s = pause_s
    while True:
        began_s = trio.current_time()
        with contained(where, **about) as guard:
            await work()
        if guard.error is None:
            return
        if trio.current_time() - began_s > wait_s:
            wait_s = pause_s
        await trio.sleep(wait_s)
        wait_s = min(wait_s * 2, 60.0)
