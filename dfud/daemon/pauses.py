"""How long collecting garbage has everybody wait, for /metrics. CPU time, so that a machine with other load is not blamed on it."""

from __future__ import annotations

import gc
import time

# Objects that may hold others, made and not freed, after which the young ones are collected. By default it is 700: a few dozen
# requests, whose parts are all alive, so that they are looked at in vain and become old. Ten thousand take less than a millisecond.
YOUNG = 10_000


class Pauses:
    """Follows the collections of this process from `watch()` to `end()`."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.total_s = 0.0
        self._began_s = 0.0

    def watch(self) -> None:
        gc.callbacks.append(self._heard)

    def freeze(self) -> None:
        """Leave out of all later collections what is there now: the modules and parts, which stay until the end."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
        self.longest_s = 0.0  # nobody waited yet

    def end(self) -> None:
        gc.callbacks.remove(self._heard)

    def _heard(self, phase: str, info: dict[str, int]) -> None:
        now_s = time.thread_time()
        if phase == "start":
            self._began_s = now_s
            return
        took_s = now_s - self._began_s
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)

    def counters(self) -> dict[str, float]:
        return {"dfud_gc_longest_pause_seconds": self.longest_s, "dfud_gc_pause_seconds_total": self.total_s}
