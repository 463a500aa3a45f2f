"""Users' commands on their way to devices: handed to a device that waits, or kept for a while, or refused."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import trio

from dfud.api import (
    AppChanged,
    Bus,
    Change,
    Code,
    DeviceChanged,
    DocumentChanged,
    Missed,
    Reply,
    Store,
    Waiting,
    contained,
)
from dfud.endpoint.kept import COLLECTION, Kept, Record

Wake = Callable[[Reply], None]


class _Offer(msgspec.Struct, frozen=True):
    """A command on its way. gateways: who else may take it; until_s: when it expires, on the clock that only moves forward."""

    record: Record
    gateways: Sequence[str]
    until_s: float

    @property
    def reply(self) -> Reply:
        return Reply(Code.COMMAND, self.record.name, self.record.payload)


class Commands:
    """Delivers each command once. clock: one that only moves forward, in seconds; now: the wall's.

    queue_length: commands kept for one device; expire_s: for how long, unless the sender says otherwise; most, most_bytes: of all
    devices. `run()` must be running: it reads what was kept before.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        queue_length: int,
        expire_s: float,
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
        *,
        most: int = 100_000,
        most_bytes: int = 64 << 20,
    ) -> None:
        self._store = store
        self._expire_s = expire_s
        self._clock = clock
        self._now = now
        self._waiting: dict[tuple[str, str], deque[_Waiter]] = {}
        self._handing: set[tuple[str, str]] = set()
        self._hand_in, self._hand = trio.open_memory_channel[tuple[str, str]](float("inf"))
        self.kept = Kept(
            store,
            clock,
            now,
            per_device=queue_length,
            most=most,
            most_bytes=most_bytes,
            available=self._available,
        )
        bus.subscribe(DeviceChanged, lambda e: self.kept.forget(e.app, e.device) if e.deleted else None)
        bus.subscribe(AppChanged, lambda e: self.kept.forget(e.app) if e.deleted else None)
        bus.subscribe(DocumentChanged, lambda e: self.kept.changed(e.key) if e.collection == COLLECTION else None)
        bus.subscribe(Missed, lambda e: self.kept.missed())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what waits for devices, report started, and keep the store in line until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.kept.run)
            nursery.start_soon(self._hand_all)
            task_status.started()

    async def send(
        self,
        app: str,
        device: str,
        uid: str,
        name: str,
        payload: bytes,
        *,
        expires_s: float | None = None,
        gateways: Sequence[str] = (),
        also: Sequence[Change] = (),
    ) -> bool:
        """Hand the command to who waits for the device, or keep it for `expires_s` (None: the default; 0: do not keep).

        Return whether it was taken: then `also` is stored, and it is on its way or stored as well. Gateways get it only if they
        wait. uid: the device's; one that is made under the same name later does not get it. Raises StoreError.
        """
        keep_s = self._expire_s if expires_s is None else expires_s
        record = Record(app, device, uid, name, payload, expires_s=self._now() + keep_s, keep_s=keep_s)
        offer = _Offer(record, tuple(gateways), self._clock() + keep_s)
        if self._somebody_waits(offer):
            if also:
                await self._store.commit(also)
            if self._offer(offer):
                return True
            also = ()  # who waited has gone meanwhile
        ticket = self.kept.reserve(record) if keep_s > 0 else None
        if ticket is None:
            return False
        await self.kept.put(ticket, record, also)
        if self._somebody_waits(offer):
            self._available(app, device)
        return True

    async def take(self, app: str, device: str) -> Reply | None:
        """Return the oldest command that is kept for the device, which then is no longer kept."""
        if not self.kept.has(app, device):
            return None
        record = await self.kept.take(app, device)
        return Reply(Code.COMMAND, record.name, record.payload) if record is not None else None

    def wait(self, app: str, device: str, timeout_s: float) -> Waiting:
        """Begin to wait for a command; one that comes before `listen()` is not lost."""
        return _Waiter(self, (app, device), timeout_s)

    def drain(self) -> None:
        """Answer everybody who waits: no command."""
        for waiters in list(self._waiting.values()):
            for waiter in tuple(waiters):
                waiter.drain()

    # Who waits

    def _waiters(self, offer: _Offer) -> list[_Waiter]:
        names = (offer.record.device, *offer.gateways)
        return [waiter for name in names for waiter in self._waiting.get((offer.record.app, name), ())]

    def _somebody_waits(self, offer: _Offer) -> bool:
        return bool(self._waiters(offer))

    def _offer(self, offer: _Offer) -> bool:
        return any(waiter.offer(offer) for waiter in self._waiters(offer))

    def _back(self, offer: _Offer) -> None:
        """Whoever took it has gone: it goes to the next who waits, or is kept for its device until it expires."""
        if self._offer(offer):
            return
        left_s = min(offer.record.keep_s, offer.until_s - self._clock())
        if left_s > 0:
            self.kept.put_back(msgspec.structs.replace(offer.record, keep_s=left_s))

    def _available(self, app: str, device: str) -> None:
        """A command that is kept may be handed to who waits."""
        if (app, device) not in self._handing and self._waiting:
            self._handing.add((app, device))
            self._hand_in.send_nowait((app, device))

    async def _hand_all(self) -> None:
        async for app, device in self._hand:
            self._handing.discard((app, device))
            with contained("endpoint.command", app=app, device=device):
                await self._hand_one(app, device)

    async def _hand_one(self, app: str, device: str) -> None:
        if not self._waiting.get((app, device)):
            return  # gateways get only what comes while they wait
        record = await self.kept.take(app, device)
        if record is not None:
            left_s = min(record.keep_s, record.expires_s - self._now())
            self._back(_Offer(record, (), self._clock() + left_s))

    def _add(self, waiter: _Waiter) -> None:
        self._waiting.setdefault(waiter.key, deque()).append(waiter)

    def _remove(self, waiter: _Waiter) -> None:
        waiters = self._waiting.get(waiter.key)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[waiter.key]


class _Waiter(Waiting):
    def __init__(self, commands: Commands, key: tuple[str, str], timeout_s: float) -> None:
        self.key = key
        self.timeout_s = timeout_s
        self._commands = commands
        self._wake: Wake | None = None
        self._offered: _Offer | None = None
        self._reply: Reply | None = None
        commands._add(self)

    def offer(self, offer: _Offer) -> bool:
        """Take the command if nothing was taken yet; return whether it is on its way."""
        if self._reply is not None:
            return False
        self._offered = offer
        return self._answer(offer.reply)

    def drain(self) -> None:
        if self._reply is None:
            self._answer(Reply(Code.ACCEPTED))

    def _answer(self, reply: Reply) -> bool:
        self._reply = reply
        self._commands._remove(self)
        if self._wake is None:
            return True
        with contained("endpoint.command", app=self.key[0], device=self.key[1]) as guard:
            self._wake(reply)
        if guard.error is not None:
            self._offered = None
        return guard.error is None

    def listen(self, wake: Wake) -> None:
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        self._commands._remove(self)
        self._reply = self._reply or Reply(Code.ACCEPTED)
        self._offered = None
        return self._reply

    def cancel(self) -> None:
        self._commands._remove(self)
        self._reply = Reply(Code.ACCEPTED)
        offered, self._offered = self._offered, None
        if offered is not None:
            self._commands._back(offered)
