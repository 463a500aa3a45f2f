"""Devices that wait for something new to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import trio

from dfud.api import Code, Reply, Request, Waiting, note

ACCEPTED = Reply(Code.ACCEPTED)


class Parked(Waiting):
    """One of them. `request` is its status; poll_s what it was told; `again`: its credentials have to be looked at, too.

    made: a package was made for it since it was parked.
    """

    __slots__ = (
        "_parking",
        "_reply",
        "_wake",
        "again",
        "app",
        "device",
        "made",
        "open",
        "poll_s",
        "queued",
        "request",
        "timeout_s",
    )

    def __init__(
        self, parking: Parking, app: str, device: str, request: Request, *, timeout_s: float, poll_s: int
    ) -> None:
        self._parking = parking
        self.app = app
        self.device = device
        self.request = request
        self.timeout_s = timeout_s
        self.poll_s = poll_s
        self.open = True
        self.queued = False
        self.again = False
        self.made = False
        self._wake: Callable[[Reply], None] | None = None
        self._reply: Reply | None = None

    def answer(self, reply: Reply) -> None:
        if not self.open:
            return
        self._close()
        self._reply = reply
        if self._wake is not None:
            # Not contained(): many are told at one time, and what cannot wait cannot be cancelled.
            try:
                self._wake(reply)
            except Exception as error:
                note("endpoint.wake", error, transport=self.request.transport)

    def _close(self) -> None:
        self.open = False
        self._parking.forget(self)

    def listen(self, wake: Callable[[Reply], None]) -> None:
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        self._close()
        return self._reply or ACCEPTED

    def cancel(self) -> None:
        self._close()


class Parking:
    """All of them, by device, and the queue of those for whom something has changed."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, set[Parked]]] = {}
        # Each is in it once at most, so it is never longer than there are parked devices.
        self._woken: deque[Parked] = deque()
        self._idle = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Parked]:
        for devices in self._of.values():
            for group in devices.values():
                yield from group

    def add(self, parked: Parked) -> None:
        self._of.setdefault(parked.app, {}).setdefault(parked.device, set()).add(parked)

    def forget(self, parked: Parked) -> None:
        devices = self._of.get(parked.app)
        group = devices.get(parked.device) if devices is not None else None
        if devices is None or group is None:
            return
        group.discard(parked)
        if not group:
            del devices[parked.device]
            if not devices:
                del self._of[parked.app]

    def look_again(self, parked: Parked) -> None:
        """Something has changed for it since it was answered last."""
        if not parked.queued:
            parked.queued = True
            self._woken.append(parked)
            if self._idle:
                self._idle.unpark()

    def device_changed(self, app: str, device: str, *, access: bool = True) -> None:
        """access: who may log in as it may have changed, too."""
        for parked in self._of.get(app, {}).get(device, ()):
            parked.again = parked.again or access
            self.look_again(parked)

    def app_changed(self, app: str) -> None:
        for group in self._of.get(app, {}).values():
            for parked in group:
                self.look_again(parked)

    def all_changed(self) -> None:
        """Anything may have changed, also who may log in."""
        for parked in self:
            parked.again = True
            self.look_again(parked)

    async def next(self) -> Parked:
        """Return one for whom something has changed; what changes from now on is one more time."""
        await trio.lowlevel.checkpoint()
        while True:
            while not self._woken:
                await self._idle.park()
            if found := self.more(1):
                return found[0]

    def more(self, most: int) -> list[Parked]:
        """Return up to `most` others, those that are there."""
        found: list[Parked] = []
        woken = self._woken
        while woken and len(found) < most:
            parked = woken.popleft()
            parked.queued = False
            if parked.open:
                found.append(parked)
        return found
