"""Which devices were turned away lately, and how often: what a user wants to know of one that is "not heard of". In memory.

Processes on one store tell each other, at a bounded rate: where strangers try more names in a second than that, a device that comes
again is told of later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from dfud.api import Bus, DeviceDenied, DeviceSeen, SharedCounts, Store

DEVICES_MAX = 10_000  # names of strangers among them; the one that was turned away longest ago goes first
TELL_S = 1.0
TOLD_MAX = 200  # devices in TELL_S


class Refused(msgspec.Struct):
    """Since the device was last let in, or dfud started. reason: of the last time (docs/security.md)."""

    times: int
    since_s: float
    last_s: float
    reason: str


class Refusals:
    def __init__(self, store: Store, bus: Bus, now: Callable[[], float]) -> None:
        self._now = now
        self._found: OrderedDict[tuple[str, str], Refused] = OrderedDict()
        self._counts = SharedCounts(store, bus, "refusals", self._elsewhere, gather_s=TELL_S, gathered_max=TOLD_MAX)
        bus.subscribe(DeviceDenied, self._denied)
        bus.subscribe(DeviceSeen, self._seen)

    async def run(self) -> None:
        """Tell the other processes, until cancelled."""
        await self._counts.run()

    def _denied(self, event: DeviceDenied) -> None:
        if not event.app or not event.device:
            return
        self._add(event.app, event.device, event.reason, 1)
        self._counts.add(("denied", event.app, event.device, event.reason))

    def _seen(self, event: DeviceSeen) -> None:
        if self._found.pop((event.app, event.device), None) is not None:
            self._counts.add(("seen", event.app, event.device))

    def _elsewhere(self, key: tuple[str, ...], number: int) -> None:
        match key:
            case ("denied", app, device, reason):
                self._add(app, device, reason, number)
            case ("seen", app, device):
                self._found.pop((app, device), None)

    def _add(self, app: str, device: str, reason: str, times: int) -> None:
        now_s = self._now()
        found = self._found.pop((app, device), None) or Refused(0, now_s, now_s, "")
        found.times, found.last_s, found.reason = found.times + times, now_s, reason
        self._found[app, device] = found
        if len(self._found) > DEVICES_MAX:
            self._found.popitem(last=False)

    def of(self, app: str, device: str) -> Refused | None:
        return self._found.get((app, device))
