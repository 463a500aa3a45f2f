"""The worker: takes what is due, does in bulk what hawkBit does in bulk, then each device by itself.

Whatever goes wrong in one firmware, device or app costs that one: it is logged, counted and tried again later. What concerns
hawkBit or the records as a whole stops the round, which comes again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import trio

from dfud.api import Change, NotFoundError, Store, StoreError, UnreadableError, contained, note
from dfud_hawkbit import records
from dfud_hawkbit.bulk import Bulk
from dfud_hawkbit.case import Case, Postponed
from dfud_hawkbit.client import Client
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.health import Health
from dfud_hawkbit.http import Away, Refused
from dfud_hawkbit.known import Known
from dfud_hawkbit.publishing import Publishing, why
from dfud_hawkbit.records import Link
from dfud_hawkbit.sync import DeviceSync
from dfud_hawkbit.work import Work

log = logging.getLogger("dfud.hawkbit")
BATCH = 200
BulkStep = Callable[[list[Case]], Awaitable[None]]


class Worker:
    """work: devices ("APP/DEVICE") and apps ("APP/") that are due."""

    def __init__(
        self,
        store: Store,
        client: Client,
        publishing: Publishing,
        devices: DeviceSync,
        bulk: Bulk,
        known: Known,
        config: HawkbitConfig,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._client = client
        self._publishing = publishing
        self._devices = devices
        self._bulk_steps = bulk
        self._known = known
        self._config = config
        self._now = now
        self.work = Work()
        self.health = Health()

    async def load(self) -> None:
        """Take up what an earlier process left undone. Raises StoreError."""
        now_s = self._now()
        await self._publishing.load()
        async for key, _ in records.every(self._store, records.DIRTY):
            self.work.poke(key, now_s)
        async for key, value in records.every(self._store, records.LINKS):
            link = records.decoded(records.LINKS, key, value, Link)
            self._known.note(key, link or Link())
            if link is None:
                self.work.poke(key, now_s)  # it is made again from both sides

    async def run(self) -> None:
        """Work until cancelled; while hawkBit is away, try again with growing pauses."""
        while True:
            await self._wait()
            with contained("hawkbit.worker") as guard:
                await self._round()
            if guard.error is not None:
                await trio.sleep(self._config.retry_max_s)

    async def _round(self) -> None:
        try:
            if await self._publishing.due(self._awaited):
                self.health.here("worker")
            await self._batch(self.work.take(self._now(), BATCH))
        except Away as away:
            await self.pause("worker", away)
        except StoreError as error:
            log.error("the records cannot be used", extra={"why": str(error)})
            await trio.sleep(self._config.retry_s)

    async def pause(self, who: str, away: Away) -> None:
        """Sleep as long as hawkBit should be left alone."""
        tries = self.health.away(who, str(away))
        wait_s = min(self._config.retry_s * 2 ** min(tries - 1, 20), self._config.retry_max_s)
        await trio.sleep(max(wait_s, min(away.retry_after_s, self._config.retry_max_s)))

    async def _wait(self) -> None:
        now_s = self._now()
        async with trio.open_nursery() as nursery:

            async def one(work: Work) -> None:
                await work.wait(now_s)
                nursery.cancel_scope.cancel()

            nursery.start_soon(one, self.work)
            nursery.start_soon(one, self._publishing.work)

    def _awaited(self, app: str) -> None:
        """Look again at the devices that could not get something; this may have been it."""
        for key in [k for k in self._known.problems if k.startswith(f"{app}/")]:
            self.work.poke(key, self._now())

    # Devices

    async def _batch(self, taken: list[tuple[str, int]]) -> None:
        cases = []
        for key, generation in taken:
            app, device = records.split(key)
            if not device:
                await self._app(key, app, generation)
                continue
            case = Case(key, generation, None, Link())
            try:
                case.view = await self._store.device(app, device)
            except UnreadableError as error:
                self._stumbled(case, error)
                continue
            link = await records.get(self._store, records.LINKS, key, Link) or Link()
            if key in self._known.recheck:
                link = msgspec.structs.replace(link, registered=False)
            case.link, case.asked = link, key in self._known.asked
            cases.append(case)
        living = [case for case in cases if case.view is not None]
        await self._bulk(self._bulk_steps.register, [c for c in living if not c.link.registered])
        await self._bulk(self._bulk_steps.assign, [c for c in living if c.link.registered])
        limiter = trio.CapacityLimiter(self._config.connections)
        problems: list[StoreError] = []
        async with trio.open_nursery() as nursery:
            for case in cases:
                nursery.start_soon(self._one, case, limiter, problems)
        if problems:
            raise problems[0]
        if taken:
            self.health.here("worker")

    async def _bulk(self, step: BulkStep, cases: list[Case]) -> None:
        """Do a step for many; what goes wrong there is found out by doing it for each."""
        if not cases:
            return
        try:
            await step(cases)
        except Away as away:
            if away.everywhere:
                raise
            await self._apart(step, cases, away)
        except Exception as error:
            if isinstance(error, StoreError) and not isinstance(error, (UnreadableError, Refused)):
                raise
            await self._apart(step, cases, error)

    async def _apart(self, step: BulkStep, cases: list[Case], error: Exception) -> None:
        if len(cases) > 1:
            for case in cases:
                await self._bulk(step, [case])
            return
        self._stumbled(cases[0], error)

    def _stumbled(self, case: Case, error: Exception) -> None:
        """Leave a device alone for a while."""
        first_s = self._config.retry_s
        if isinstance(error, (Away, Refused)):
            text = str(error)
            if text != self._known.problems.get(case.key):
                log.warning("hawkBit stumbles over a device", extra={"target": case.target, "why": text})
        else:
            # A defect must not take the others along, nor be tried in a loop.
            note("hawkbit.device", error, target=case.target)
            text = why(error)
            first_s = self._config.retry_max_s
        self._known.problems[case.key] = text
        self.work.failed(case.key, self._now(), first_s, self._config.retry_max_s)
        case.put_off = True

    async def _one(self, case: Case, limiter: trio.CapacityLimiter, problems: list[StoreError]) -> None:
        """Do one device. What concerns all of them goes into `problems`, and the rest of the batch waits."""
        async with limiter:
            if problems or case.put_off:
                return
            try:
                await self._device(case)
            except Away as away:
                if away.everywhere:
                    problems.append(away)
                else:
                    self._stumbled(case, away)
            except UnreadableError as error:
                self._stumbled(case, error)
            except StoreError as error:
                problems.append(error)
            except Exception as error:
                self._stumbled(case, error)

    async def _device(self, case: Case) -> None:
        try:
            if case.view is None:
                await self._delete(case)
                return
            if case.link.registered:
                await self._devices.run(case)
            else:
                self._devices.look.discard(case.key)
        except Postponed:
            if not case.unanswered:
                case.later(self._now() + 1.0)
        except NotFoundError:
            case.view = None
            case.later(self._now())
        except Refused as refused:
            if case.view is None:
                return self._stumbled(case, refused)  # a target that cannot be deleted
            case.set(problem=str(refused))
            if refused.status == 404:
                case.set(registered=False)  # somebody deleted the target; it is made again
                case.later(self._now() + self._config.retry_s)
            log.warning("hawkBit refuses something of a device", extra={"target": case.target, "why": str(refused)})
        await self._done(case)

    async def _done(self, case: Case) -> None:
        if case.view is None:
            self.work.later(case.key, case.again_s)
            return
        changes: list[Change] = [records.put(records.LINKS, case.key, case.link)]
        ended = not case.again_s and not case.unanswered
        if ended and self.work.unchanged(case.key, case.generation):
            changes += await records.forget(self._store, records.DIRTY, case.key)
        try:
            await self._store.commit(changes)
        except NotFoundError:
            await self._store.commit(changes[:1])
        self._known.recheck.discard(case.key)
        if not case.asked:
            self._known.asked.discard(case.key)
        self._known.note(case.key, case.link)
        if case.unanswered:
            self.work.failed(case.key, self._now(), self._config.retry_s, self._config.retry_max_s)
            return
        self.work.finish(case.key, case.generation)
        if case.again_s:
            self.work.poke(case.key, case.again_s)

    async def _delete(self, case: Case) -> None:
        if case.link.registered:
            try:
                await self._client.mgmt("delete", "DELETE", f"/targets/{case.target}")
            except Refused as refused:
                if refused.status != 404:
                    raise
        changes: list[Change] = [*await records.forget(self._store, records.LINKS, case.key)]
        if self.work.unchanged(case.key, case.generation):
            changes += await records.forget(self._store, records.DIRTY, case.key)
        if changes:
            await self._store.commit(changes)
        self._known.note(case.key, None)
        self._devices.look.discard(case.key)
        self.work.finish(case.key, case.generation)

    async def _app(self, key: str, app: str, generation: int) -> None:
        """An app was deleted, and perhaps made again: whatever of it is not there any more goes."""
        now_s = self._now()
        async for device_key, _ in records.every(self._store, records.LINKS, key):
            with suppress(UnreadableError):  # it is there
                if await self._store.device(*records.split(device_key)) is None:
                    self.work.poke(device_key, now_s)
        async for firmware_key, _ in records.every(self._store, records.SETS, key):
            with suppress(UnreadableError):
                if await self._store.firmware(*records.split(firmware_key)) is None:
                    self._publishing.work.poke(firmware_key, now_s)
        if self.work.unchanged(key, generation):
            await self._store.commit(await records.forget(self._store, records.DIRTY, key))
        self.work.finish(key, generation)
