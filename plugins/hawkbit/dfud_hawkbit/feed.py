"""What changed in hawkBit: one request when nothing did, pages when much did, everything now and then.

Rows show up to 30 s after the time that they carry, so every question reaches back; what was seen is recognised. A deleted
action shows nowhere: only a list of all open ones tells. hawkBit's own clock (the Date of its answers) counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from dfud.api import Bus, DeviceSeen, contained, note
from dfud_hawkbit.answers import Action, Target
from dfud_hawkbit.client import Client
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.http import Away, Refused
from dfud_hawkbit.known import Known
from dfud_hawkbit.names import app_of, target_id
from dfud_hawkbit.owner import Ownership
from dfud_hawkbit.records import device_key
from dfud_hawkbit.sync import DeviceSync
from dfud_hawkbit.worker import Worker

log = logging.getLogger("dfud.hawkbit")


class Feed:
    def __init__(
        self,
        client: Client,
        worker: Worker,
        devices: DeviceSync,
        owner: Ownership,
        known: Known,
        config: HawkbitConfig,
        now: Callable[[], float],
    ) -> None:
        self._client = client
        self._worker = worker
        self._devices = devices
        self._owner = owner
        self._known = known
        self._config = config
        self._now = now
        self._open: dict[str, set[int]] = {}
        self._rows: dict[int, tuple[int, bool, str]] = {}
        self._since_s = 0.0
        self._resynced_s = -1e9
        self._seen: dict[str, None] = {}
        self._seen_wake = trio.Event()

    def others(self, target: str, action: int) -> bool:
        """Say whether a target has another open action than this one, which is over."""
        found = self._open.get(target, set())
        found.discard(action)
        return bool(found)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                if trio.current_time() - self._resynced_s >= self._config.resync_s:
                    await self.resync()
                else:
                    await self.poll()
                self._worker.health.here("feed")
            except Away as away:
                await self._worker.pause("feed", away)
                continue
            except Refused as refused:
                self._worker.health.away("feed", str(refused))
            await trio.sleep(self._config.poll_s)

    async def poll(self) -> None:
        """Look at what changed since the last question, and a good while before it."""
        since_s = self._since_s - self._config.overlap_s
        query = f"lastModifiedAt=ge={int(since_s * 1000)}"
        offset, clock_s = 0, 0.0
        while True:
            page, date_s = await self._client.actions(query, offset)
            clock_s = clock_s or date_s
            for row in page.rows:
                with contained("hawkbit.feed", action=row.id):
                    self._hear(row)
            offset += page.sent
            if not page.sent or offset >= page.total:
                break
        self._since_s = clock_s or self._now()
        oldest_ms = (since_s - self._config.overlap_s) * 1000
        self._rows = {key: news for key, news in self._rows.items() if news[0] >= oldest_ms}

    def _hear(self, row: Action) -> None:
        # Not its status: what a device says moves that and no time with it, and dfud would hear its own echo.
        news = (row.last_modified_at, row.active, row.force_type)
        if self._rows.get(row.id) == news:
            return
        self._rows[row.id] = news
        key = self._known.targets.get(row.target)
        if key is None:
            return  # somebody else's device lives in the same hawkBit
        found = self._open.setdefault(row.target, set())
        if row.active:
            found.add(row.id)
        else:
            found.discard(row.id)
            if not found:
                del self._open[row.target]
        if (row.active or self._known.bound.get(key) == row.id) and key not in self._known.foreign:
            self.look(key)

    def look(self, key: str) -> None:
        """Have a device's action read from hawkBit."""
        self._devices.look.add(key)
        self._worker.work.poke(key, self._now())

    def _ask(self, key: str) -> None:
        """Have a device's attributes sent: hawkBit asks for them."""
        self._known.asked.add(key)
        self._worker.work.poke(key, self._now())

    async def resync(self) -> None:
        """List every open action, and look where that differs from what dfud believes."""
        offset, clock_s = 0, 0.0
        found: dict[str, set[int]] = {}
        while True:
            page, date_s = await self._client.actions("active==true", offset)
            clock_s = clock_s or date_s
            for row in page.rows:
                if row.active and row.target in self._known.targets:
                    found.setdefault(row.target, set()).add(row.id)
            offset += page.sent
            if not page.sent or offset >= page.total:
                break
        for target, key in list(self._known.targets.items()):
            there, bound = found.get(target, set()), self._known.bound.get(key, 0)
            if (bound and bound not in there) or (there and (not bound or there != self._open.get(target))):
                self.look(key)
        self._open = found
        self._since_s = clock_s or self._now()
        await self._targets()
        self._resynced_s = trio.current_time()

    async def _targets(self) -> None:
        """List the targets of each app: whose they are, and which hawkBit wants the attributes of."""
        for app in sorted({app_of(target) for target in self._known.targets}):
            query = f"controllerId=={app}:*"
            try:
                async for rows in self._client.pages("targets", "/targets", Target, q=query, sort="id:ASC"):
                    for row in rows:
                        key = self._known.targets.get(row.controller_id)
                        if key is not None:
                            self._target(app, key, row)
            except Refused as refused:
                note("hawkbit.targets", refused, app=app)

    def _target(self, app: str, key: str, row: Target) -> None:
        foreign = bool(self._owner.other(row.description))
        if foreign != (key in self._known.foreign) or self._owner.unmarked(app, row.description):
            self._known.recheck.add(key)
            self._worker.work.poke(key, self._now())
        elif row.request_attributes and not foreign:
            self._ask(key)

    async def windows(self) -> None:
        """Look at actions that wait for their window or for confirmation: no time of a row moves when that is over."""
        while True:
            await trio.sleep(self._config.window_s)
            for key in tuple(self._known.windows):
                self.look(key)

    async def seen(self, bus: Bus) -> None:
        """Pass on that devices made contact, so many in a second, the longest waiting first."""
        if not self._config.seen_per_s:
            return

        def heard(event: DeviceSeen) -> None:
            self._seen[device_key(event.app, event.device)] = None
            self._seen_wake.set()

        end = bus.subscribe(DeviceSeen, heard)
        try:
            while True:
                await self._seen_wake.wait()
                self._seen_wake = trio.Event()
                while self._seen:
                    key = next(iter(self._seen))
                    del self._seen[key]
                    with contained("hawkbit.seen", device=key):
                        await self._see(key)
                    await trio.sleep(1.0 / self._config.seen_per_s)
        finally:
            end()

    async def _see(self, key: str) -> None:
        target = target_id(*key.split("/", 1))
        if target not in self._known.targets or key in self._known.foreign:
            return
        try:
            offer = await self._client.offer(target, self._known.addresses.get(key, ""))
        except Refused:
            return  # it is this one; its next contact comes
        except Away as away:
            if away.everywhere:
                self._seen.setdefault(key, None)
                await trio.sleep(self._config.retry_max_s)
            return
        if offer.attributes:
            self._ask(key)
        if offer.action != self._known.bound.get(key, 0):
            self.look(key)
