"""The worker: takes what is due, does in bulk what hawkBit does in bulk, then each device by itself."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import trio

from dfud.api import Change, NotFoundError, Store, StoreError
from dfud_hawkbit import records
from dfud_hawkbit.client import Away, Client, Refused
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.desire import wish_of
from dfud_hawkbit.firmware import FirmwareSync, Unusable
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import FirmwareSet, Link
from dfud_hawkbit.sync import Case, DeviceSync, Postponed
from dfud_hawkbit.work import Work

log = logging.getLogger("dfud.hawkbit")
BATCH = 200
AsyncPairs = AsyncIterator[tuple[str, bytes]]
BulkStep = Callable[[list[Case]], Awaitable[None]]


class Health:
    """Whether hawkBit can be asked, by who asks it; says so once, when it changes."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}
        self._tries: Counter[str] = Counter()

    @property
    def problem(self) -> str:
        """Return why hawkBit is away, or ""."""
        return next(iter(self._problems.values()), "")

    def away(self, who: str, problem: str) -> int:
        """Note a failure; return how many there were in a row."""
        self._tries[who] += 1
        if problem != self._problems.get(who):
            self._problems[who] = problem
            log.error("hawkBit is away; devices are served from the records", extra={"who": who, "why": problem})
        return self._tries[who]

    def here(self, who: str) -> None:
        if self._problems.pop(who, ""):
            log.info("hawkBit is back", extra={"who": who, "tries": self._tries[who]})
        self._tries.pop(who, None)


class Worker:
    """`targets` knows the device of each target, `bound` the open action of each device that has one."""

    def __init__(
        self,
        store: Store,
        client: Client,
        firmware: FirmwareSync,
        devices: DeviceSync,
        config: HawkbitConfig,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._client = client
        self._firmware = firmware
        self._devices = devices
        self._config = config
        self._now = now
        self.work = Work()
        self.firmware_work = Work()
        self.health = Health()
        self.targets: dict[str, str] = {}
        self.bound: dict[str, int] = {}
        self.windows: set[str] = set()
        self.problems: dict[str, str] = {}

    async def load(self) -> None:
        """Take up what an earlier process left undone. Raises StoreError."""
        now_s = self._now()
        async for key, _ in self._documents(records.DIRTY_FIRMWARE):
            self.firmware_work.poke(key, now_s)
        await self.retry_firmware()
        async for key, _ in self._documents(records.DIRTY):
            self.work.poke(key, now_s)
        async for key, value in self._documents(records.LINKS):
            self._note(key, msgspec.msgpack.decode(value, type=Link))

    async def retry_firmware(self, app: str = "") -> int:
        """Try again what hawkBit refused, of one app or of all; return how many."""
        count = 0
        async for key, value in self._documents(records.SETS, f"{app}/" if app else ""):
            if not msgspec.msgpack.decode(value, type=FirmwareSet).set_id:
                self.firmware_work.poke(key, self._now())
                count += 1
        return count

    async def _documents(self, collection: str, prefix: str = "") -> AsyncPairs:
        after = ""
        while found := await self._store.documents(collection, prefix=prefix, after=after):
            for pair in found:
                yield pair
            after = found[-1][0]

    def _note(self, key: str, link: Link | None) -> None:
        """Keep in memory what the feed needs of a link."""
        target = target_id(*records.split(key))
        self.bound.pop(key, None)
        self.problems.pop(key, None)
        if link is not None and link.action:
            self.bound[key] = link.action
        if link is not None and link.problem:
            self.problems[key] = link.problem
        if link is None:
            self.targets.pop(target, None)
        else:
            self.targets[target] = key
        if link is not None and link.action and (link.mode == "window" or link.kind == "confirm"):
            self.windows.add(key)
        else:
            self.windows.discard(key)

    async def run(self) -> None:
        """Work until cancelled; while hawkBit is away, try again with growing pauses."""
        while True:
            await self._wait()
            try:
                await self._firmware_due()
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
            nursery.start_soon(one, self.firmware_work)

    # Firmware

    async def _firmware_due(self) -> None:
        for key, generation in self.firmware_work.take(self._now(), BATCH):
            app, version = records.split(key)
            try:
                if await self._store.firmware(app, version) is None:
                    await self._withdraw(app, version)
                else:
                    await self._firmware.push(app, version)
                self.problems.pop(f"firmware {key}", None)
                self._awaited(app)
            except (Refused, Unusable) as error:
                self.problems[f"firmware {key}"] = str(error)
                log.error("a firmware does not get into hawkBit", extra={"firmware": key, "why": str(error)})
            except Away as away:
                if away.everywhere:
                    raise
                self.firmware_work.failed(key, self._now(), self._config.retry_s, self._config.retry_max_s)
                continue
            if self.firmware_work.unchanged(key, generation):
                await self._store.commit(await records.forget(self._store, records.DIRTY_FIRMWARE, key))
            self.firmware_work.finish(key, generation)
            self.health.here("worker")

    def _awaited(self, app: str) -> None:
        """Look again at the devices that could not get something; this may have been it."""
        for key in [k for k in self.problems if k.startswith(f"{app}/")]:
            self.work.poke(key, self._now())

    async def _withdraw(self, app: str, version: str) -> None:
        known = await records.get(self._store, records.SETS, records.firmware_key(app, version), FirmwareSet)
        if known is not None and known.set_id:
            await self._firmware.withdraw(app, version, known)
        await self._store.commit(await records.forget(self._store, records.SETS, records.firmware_key(app, version)))

    # Devices

    async def _batch(self, taken: list[tuple[str, int]]) -> None:
        cases = []
        for key, generation in taken:
            app, device = records.split(key)
            if not device:
                await self._app(key, app, generation)
                continue
            link = await records.get(self._store, records.LINKS, key, Link) or Link()
            cases.append(Case(key, generation, await self._store.device(app, device), link))
        living = [case for case in cases if case.view is not None]
        await self._bulk(self._register, [c for c in living if not c.link.registered])
        await self._bulk(self._assign, [c for c in living if c.link.registered])
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
        if not cases:
            return
        try:
            await step(cases)
        except Away as away:
            if away.everywhere:
                raise
            for case in cases:
                self.work.failed(case.key, self._now(), self._config.retry_s, self._config.retry_max_s)
                case.again_s = -1.0

    async def _one(self, case: Case, limiter: trio.CapacityLimiter, problems: list[StoreError]) -> None:
        """Do one device. What concerns all of them goes into `problems`, and the rest of the batch waits."""
        async with limiter:
            try:
                await self._device(case, problems)
            except StoreError as error:
                problems.append(error)
            except Exception:
                # A defect must not take the others along, nor be tried in a loop.
                log.exception("a device could not be worked on", extra={"target": case.target})
                self.work.failed(case.key, self._now(), self._config.retry_max_s, self._config.retry_max_s)

    async def _device(self, case: Case, problems: list[StoreError]) -> None:
        if problems or case.again_s < 0:
            return
        try:
            if case.view is None:
                await self._delete(case)
                return
            if case.link.registered:
                await self._devices.run(case)
        except Away as away:
            if away.everywhere:
                problems.append(away)
                return
            self.work.failed(case.key, self._now(), self._config.retry_s, self._config.retry_max_s)
            log.warning("hawkBit stumbles over a device", extra={"target": case.target, "why": str(away)})
            return
        except Postponed:
            case.later(self._now() + 1.0)
        except NotFoundError:
            case.view = None
            case.later(self._now())
        except Refused as refused:
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
        if not case.again_s and self.work.unchanged(case.key, case.generation):
            changes += await records.forget(self._store, records.DIRTY, case.key)
        try:
            await self._store.commit(changes)
        except NotFoundError:
            await self._store.commit(changes[:1])
        self._note(case.key, case.link)
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
        self._note(case.key, None)
        self._devices.look.discard(case.key)
        self.work.finish(case.key, case.generation)

    async def _app(self, key: str, app: str, generation: int) -> None:
        """An app was deleted, and perhaps made again: whatever of it is not there any more goes."""
        now_s = self._now()
        async for device_key, _ in self._documents(records.LINKS, key):
            if await self._store.device(*records.split(device_key)) is None:
                self.work.poke(device_key, now_s)
        async for firmware_key, _ in self._documents(records.SETS, key):
            if await self._store.firmware(*records.split(firmware_key)) is None:
                self.firmware_work.poke(firmware_key, now_s)
        if self.work.unchanged(key, generation):
            await self._store.commit(await records.forget(self._store, records.DIRTY, key))
        self.work.finish(key, generation)

    async def _register(self, cases: list[Case]) -> None:
        """Make targets; those that are there already are taken as they are."""
        bodies = [
            {"controllerId": c.target, "name": _shown(c.device, c.target), "description": f"app {c.app} of dfud"}
            for c in cases
        ]
        try:
            await self._client.mgmt("register", "POST", "/targets", bodies)
        except Refused as refused:
            if len(cases) > 1:
                for case in cases:
                    await self._register([case])
                return
            if refused.status != 409:
                cases[0].set(problem=str(refused))
                return
            self._devices.look.add(cases[0].key)
        for case in cases:
            case.set(registered=True)
            case.later(self._now())

    async def _assign(self, cases: list[Case]) -> None:
        """Bring to hawkBit what users asked dfud for: assignments by firmware, withdrawals one by one."""
        wanted: dict[tuple[str, str], list[Case]] = {}
        for case in cases:
            assert case.view is not None
            own = wish_of(case.view.device.spec)
            link = case.link
            if own.version != link.wish and not own.version:
                if link.action:
                    await self._devices.cancel_action(case.target, link.action)
                case.set(wish="", mode="")
                self._devices.look.add(case.key)
            elif own.version != link.wish or await self._unassigned(case, own.version):
                version = own.version or (case.view.deployment.version if case.view.deployment else "")
                wanted.setdefault((case.app, version), []).append(case)
        for (app, version), group in wanted.items():
            await self._assign_group(app, version, group)

    async def _unassigned(self, case: Case, own: str) -> bool:
        """Say whether dfud is bringing a firmware to a device without an action of hawkBit's that says so."""
        view, link = case.view, case.link
        current = view.deployment if view is not None else None
        if current is None or current.final or link.action or link.deployment == current.id:
            return False
        if case.key in self._devices.look and own:
            return False  # hawkBit is asked first whether it has one
        return own in ("", current.version)

    async def _assign_group(self, app: str, version: str, group: list[Case]) -> None:
        try:
            made = await self._firmware.push(app, version)
            self.problems.pop(f"firmware {app}/{version}", None)
            answer = await self._client.assign(made.set_id, [case.target for case in group], type="forced")
        except (Refused, Unusable) as error:
            if len(group) > 1 and isinstance(error, Refused):
                for case in group:
                    await self._assign_group(app, version, [case])
                return
            for case in group:
                case.set(problem=str(error))
            return
        if answer.assigned < len(group):
            log.info("hawkBit had assigned this already", extra={"firmware": f"{app}/{version}", "devices": len(group)})
        for case in group:
            assert case.view is not None
            current = case.view.deployment
            own = wish_of(case.view.device.spec).version
            case.set(wish=own, mode="" if own else case.link.mode, problem="")
            if not case.link.action:
                case.set(deployment=current.id if current is not None and current.version == version else "")
            self._devices.look.add(case.key)


def _shown(device: str, target: str) -> str:
    """Return a name for people; hawkBit refuses what could be markup."""
    plain = device.isprintable() and not any(c in device for c in "<>&") and len(device) <= 128
    return device if plain else target[:128]
