"""How a fleet comes back after a start: one line in the log, when it is over. Pure."""

from __future__ import annotations

import msgspec

LOOK_S = 1.0
QUIET_S = 10.0  # without anybody turned away, and hardly anybody new
NEW_SHARE = 0.01
FEW = 100  # of whom nothing is said unless somebody was turned away
WAITS_S = 120.0  # for the first one


class Returned(msgspec.Struct, frozen=True):
    devices: int
    turned_away: int
    took_s: float


class Returning:
    """Fed with how many devices have logged in and how many requests were turned away so far, again and again."""

    def __init__(self, now_s: float) -> None:
        self._start_s = self._still_s = now_s
        self._devices = 0
        self._turned_away = 0
        self.over = False

    def look(self, devices: int, turned_away: int, now_s: float) -> Returned | None:
        """Return what is to be told of it, once."""
        if self.over:
            return None
        if turned_away != self._turned_away or devices > self._devices * (1 + NEW_SHARE):
            self._devices, self._turned_away, self._still_s = devices, turned_away, now_s
            return None
        if now_s - self._still_s < (QUIET_S if self._devices else WAITS_S):
            return None
        self.over = True
        if devices < FEW and not turned_away:
            return None
        return Returned(devices, turned_away, round(self._still_s - self._start_s, 1))
