"""Which devices were turned away lately, and how often: what a user wants to know of one that is "not heard of". In memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from dfud.api import Bus, DeviceDenied, DeviceSeen

DEVICES_MAX = 10_000  # names of strangers among them; the one that was turned away longest ago goes first


class Refused(msgspec.Struct):
    """Since the device was last let in, or dfud started. reason: of the last time (docs/security.md)."""

    times: int
    since_s: float
    last_s: float
    reason: str


class Refusals:
    def __init__(self, bus: Bus, now: Callable[[], float]) -> None:
        self._now = now
        self._found: OrderedDict[tuple[str, str], Refused] = OrderedDict()
        bus.subscribe(DeviceDenied, self._denied)
        bus.subscribe(DeviceSeen, self._seen)

    def _denied(self, event: DeviceDenied) -> None:
        if not event.app or not event.device:
            return
        key, now_s = (event.app, event.device), self._now()
        found = self._found.pop(key, None) or Refused(0, now_s, now_s, "")
        found.times, found.last_s, found.reason = found.times + 1, now_s, event.reason
        self._found[key] = found
        if len(self._found) > DEVICES_MAX:
            self._found.popitem(last=False)

    def _seen(self, event: DeviceSeen) -> None:
        self._found.pop((event.app, event.device), None)

    def of(self, app: str, device: str) -> Refused | None:
        return self._found.get((app, device))
