"""The store: records in another store, and hawkBit beside it.

Every change is committed to the records together with the note that hawkBit has yet to hear of it; a worker brings both in
line. So users and devices never wait for hawkBit, and what was answered survives both of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from dfud.api import (
    App,
    BlobWriter,
    Bus,
    Capability,
    Change,
    DeleteApp,
    DeleteDevice,
    DeleteFirmware,
    Deployment,
    DeviceAddress,
    DeviceView,
    Firmware,
    HistoryEntry,
    OwnRollout,
    Pruned,
    PutActual,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    RefusedError,
    Selector,
    SetFirmware,
    Store,
    StoreError,
    UnreadableError,
    Wish,
    forever,
)
from dfud_hawkbit import feedback, records, rollouts
from dfud_hawkbit.bulk import Bulk
from dfud_hawkbit.client import Client
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.desire import attributes_of, digest_of, wish_of
from dfud_hawkbit.feed import Feed
from dfud_hawkbit.firmware import FirmwareSync
from dfud_hawkbit.known import Known
from dfud_hawkbit.owner import Ownership
from dfud_hawkbit.publishing import Publishing
from dfud_hawkbit.records import Link
from dfud_hawkbit.shared import Shared, steady_clock
from dfud_hawkbit.sync import DeviceSync
from dfud_hawkbit.worker import Worker
from dfud_hawkbit.writeback import WriteBack

EVERYTHING = Selector()
LEAD_S = 10.0  # an earlier process may still be ending


class HawkbitSync:
    """What talks to hawkBit, once the records are known."""

    def __init__(self, store: Store, config: HawkbitConfig, now: Callable[[], float]) -> None:
        self.known = Known()
        self.client = Client(config, *config.secrets(), now)
        shared = Shared(store, self.client, config, now)
        self.owner = Ownership(store, self.client)
        self.firmware = FirmwareSync(store, self.client, config)
        self.write_back = WriteBack(shared, self.owner)
        self.devices = DeviceSync(shared, self.firmware, self.write_back, self.known)
        self.bulk = Bulk(shared, self.firmware, self.devices, self.write_back, self.owner, self.known)
        self.publishing = Publishing(store, self.firmware, self.known, config, now)
        self.worker = Worker(
            store=store,
            client=self.client,
            publishing=self.publishing,
            devices=self.devices,
            bulk=self.bulk,
            known=self.known,
            config=config,
            now=now,
        )
        self.feed = Feed(
            client=self.client,
            worker=self.worker,
            devices=self.devices,
            owner=self.owner,
            known=self.known,
            config=config,
            now=now,
        )
        self.write_back.others = self.feed.others


class HawkbitStore(Store):
    """connect() must be called for hawkBit's wishes to reach devices; without it (`dfud init`) dfud's still reach hawkBit."""

    name = "hawkbit"
    capabilities = frozenset({Capability.EXTERNAL_DESIRED, Capability.APP_FIRMWARE, Capability.OWN_ROLLOUTS})

    def __init__(self, config: HawkbitConfig, now: Callable[[], float] | None = None) -> None:
        self.config = config
        self.records = config.records
        self.now = self._now = now or steady_clock()
        self._records: Store | None = None
        self._sync: HawkbitSync | None = None
        self._connected = trio.Event()
        self._steps: dict[str, int] = {}

    def keep_in(self, records: Store) -> None:
        """Take the records. Raises ConfigError for secrets that cannot be read."""
        self.config.check()
        self._records = records
        self.capabilities |= records.capabilities & {Capability.BACKUP}
        self._sync = HawkbitSync(records, self.config, self._now)

    @property
    def inner(self) -> Store:
        if self._records is None:
            raise StoreError("the store hawkbit has no records yet")
        return self._records

    @property
    def sync(self) -> HawkbitSync:
        if self._sync is None:
            raise StoreError("the store hawkbit has no records yet")
        return self._sync

    def connect(self, registry: Any, firmware: Any, bus: Bus) -> None:
        """Take what changes apps, devices and firmware by dfud's rules; from now on hawkBit's wishes are taken up."""
        sync = self.sync
        sync.devices.registry, sync.devices.bus, sync.firmware.publisher = registry, bus, firmware
        for key in sync.devices.look:
            sync.worker.work.poke(key, self._now())
        self._connected.set()

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await self._run(bus, task_status)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            if isinstance(error, StoreError):
                raise error from None  # the records' own, such as that another dfud has them
            raise

    async def _run(self, bus: Bus, task_status: trio.TaskStatus[None]) -> None:
        keeping = trio.CancelScope(shield=True)  # the records stay open until everybody who writes them has ended

        async def keep(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with keeping:
                await self.inner.run(bus, task_status=task_status)

        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(keep)
                with trio.move_on_after(LEAD_S) as waiting:
                    await self._serve(bus, task_status, waiting)
                raise StoreError("another dfud serves hawkBit from these records: one at a time does", retryable=True)
            finally:
                keeping.cancel()

    async def _serve(self, bus: Bus, task_status: trio.TaskStatus[None], waiting: trio.CancelScope) -> None:
        """Serve while this process leads; return when it no longer does. waiting: for the lead, no longer once it has it."""
        sync = self.sync
        async with self.inner.lead("hawkbit"):
            waiting.deadline = float("inf")
            async with sync.client.open(), trio.open_nursery() as working:
                sync.devices.bus = bus
                await sync.owner.load()
                await sync.worker.load()
                bus.subscribe(DeviceAddress, sync.known.heard)
                working.start_soon(sync.worker.run)
                working.start_soon(self._follow, bus)
                task_status.started()
                await trio.sleep_forever()

    async def _follow(self, bus: Bus) -> None:
        await self._connected.wait()
        feed = self.sync.feed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forever, "hawkbit.feed", feed.run)
            nursery.start_soon(forever, "hawkbit.windows", feed.windows)
            nursery.start_soon(forever, "hawkbit.seen", partial(feed.seen, bus))

    def counters(self) -> Mapping[str, float]:
        sync = self.sync
        found = {
            f'dfud_hawkbit_requests_total{{kind="{k}"}}': float(n) for k, n in sorted(sync.client.requests.items())
        }
        found |= {
            f'dfud_hawkbit_failures_total{{kind="{k}"}}': float(n) for k, n in sorted(sync.client.failures.items())
        }
        found["dfud_hawkbit_waiting"] = float(len(sync.worker.work) + len(sync.publishing.work))
        found["dfud_hawkbit_away"] = float(bool(sync.worker.health.problem))
        found["dfud_hawkbit_unanswered_seconds"] = sync.client.answering.silent_s()
        found["dfud_hawkbit_downloads_total"] = float(sync.firmware.downloads)
        return found | dict(self.inner.counters())

    def problem(self) -> str:
        return self.inner.problem()

    async def check(self) -> None:
        await self.inner.check()

    async def peek(self, collection: str, key: str) -> bytes | None:
        return await self.inner.peek(collection, key)

    # Writing

    async def commit(self, changes: Sequence[Change]) -> None:
        extra: list[Change] = []
        devices: dict[str, float] = {}
        firmwares: dict[str, float] = {}
        for change in changes:
            try:
                await self._consequences(change, extra, devices, firmwares)
            except (ValueError, OverflowError, RecursionError) as error:  # what no store could take
                raise StoreError(f"this cannot be stored: {error!r}") from error
        extra += [PutDocument(records.DIRTY, key, b"") for key in devices]
        extra += [PutDocument(records.DIRTY_FIRMWARE, key, b"") for key in firmwares]
        if not extra:
            await self.inner.commit(changes)
            return
        work, firmware_work = self.sync.worker.work, self.sync.publishing.work
        work.hold(devices)
        firmware_work.hold(firmwares)
        try:
            await self.inner.commit([*changes, *extra])
        finally:
            work.release(devices)
            firmware_work.release(firmwares)

    async def _consequences(
        self, change: Change, extra: list[Change], devices: dict[str, float], firmwares: dict[str, float]
    ) -> None:
        """Collect what is to be committed beside a change, and what hawkBit has to hear of, and when."""
        now_s = self._now()
        match change:
            case PutDevice(device):
                key = records.device_key(device.app, device.name)
                pulled = self.sync.devices.pulling.get(key)
                if pulled is not None and wish_of(device.spec).version == pulled.wish:
                    extra.append(records.put(records.LINKS, key, pulled))
                    return
                try:
                    old = await self.inner.device(device.app, device.name)
                except UnreadableError:
                    old = None  # this repairs it
                before = None if old is None else (old.device.spec.get("firmware"), old.device.metadata.labels)
                if before != (device.spec.get("firmware"), device.metadata.labels):
                    devices[key] = now_s
            case SetFirmware(app, names):
                devices |= dict.fromkeys((records.device_key(app, name) for name in names), now_s)
            case DeleteDevice(app, name):
                devices[records.device_key(app, name)] = now_s
            case DeleteApp(app):
                devices[records.device_key(app, "")] = now_s
            case PutFirmware(firmware, create):
                key = records.firmware_key(firmware.app, firmware.version)
                if create and await self.inner.document(records.GONE, key) is not None:
                    raise RefusedError(
                        f"firmware {firmware.version} of app {firmware.app} was deleted, and hawkBit keeps its name: "
                        "publish it under another version"
                    )
                adopted = self.sync.firmware.adopting.get((firmware.app, firmware.sha256))
                if adopted is not None:
                    extra.append(records.put(records.SETS, key, adopted))
                else:
                    firmwares[key] = now_s
            case DeleteFirmware(app, version):
                key = records.firmware_key(app, version)
                extra.append(PutDocument(records.GONE, key, b""))
                firmwares[key] = now_s
            case PutActual():
                await self._said(change, devices)
            case PutDeployment(deployment, entry):
                key = records.device_key(deployment.app, deployment.device)
                step = feedback.step(deployment)
                if entry is not None or step > self._steps.get(key, 0):
                    devices[key] = now_s
                self._steps[key] = step
                if deployment.final:
                    self._steps.pop(key, None)

    async def _said(self, change: PutActual, devices: dict[str, float]) -> None:
        actual = change.actual
        key = records.device_key(actual.app, actual.device)
        try:
            view = await self.inner.device(actual.app, actual.device)
        except UnreadableError:
            return
        if view is None or key in devices:
            return
        link = await records.get(self.inner, records.LINKS, key, Link)
        news = view.actual is None or (view.actual.sha256, view.actual.trial) != (actual.sha256, actual.trial)
        said = digest_of(attributes_of(DeviceView(view.device, actual), self.sync.owner.mark))
        if news or link is None:
            devices[key] = self._now()
        elif said != link.attributes:
            left_s = link.attributes_s + self.config.attributes_s - self._now()
            devices[key] = self._now() + max(0.0, min(self.config.attributes_s, left_s))

    async def prune(self, before_s: float, now_s: float, *, after: str = "", limit: int = 500) -> Pruned:
        return await self.inner.prune(before_s, now_s, after=after, limit=limit)

    async def new_blob(self) -> BlobWriter:
        return await self.inner.new_blob()

    # Reading: the records answer, whether hawkBit is there or not.

    async def app(self, name: str) -> App | None:
        return await self.inner.app(name)

    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        return await self.inner.apps(selector, limit=limit, offset=offset)

    async def device(self, app: str, device: str) -> DeviceView | None:
        return await self.inner.device(app, device)

    async def views(self, app: str, names: Sequence[str]) -> dict[str, DeviceView]:
        return await self.inner.views(app, names)

    async def devices(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        return await self.inner.devices(app, selector, limit=limit, offset=offset, after=after)

    async def count(self, app: str, selector: Selector = EVERYTHING) -> int:
        return await self.inner.count(app, selector)

    async def wishes(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, after: str = ""
    ) -> list[Wish]:
        return await self.inner.wishes(app, selector, limit=limit, after=after)

    async def find_aliases(self, app: str, names: Sequence[str]) -> dict[str, str]:
        return await self.inner.find_aliases(app, names)

    async def updating(self, app: str, *, limit: int = 1000, after: str = "") -> list[DeviceView]:
        return await self.inner.updating(app, limit=limit, after=after)

    async def own_rollouts(self, app: str) -> list[OwnRollout]:
        return await rollouts.listed(self.inner, self.sync.client, self.config.url, app)

    async def own_rollout(self, app: str, name: str) -> OwnRollout | None:
        return await rollouts.found(self.inner, self.sync.client, self.config.url, app, name)

    async def find_alias(self, app: str, alias: str) -> str | None:
        return await self.inner.find_alias(app, alias)

    async def firmware(self, app: str, version: str) -> Firmware | None:
        return await self.inner.firmware(app, version)

    async def firmwares(self, app: str) -> list[Firmware]:
        return await self.inner.firmwares(app)

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        return await self.inner.firmware_by_digest(app, sha256)

    async def deployment(self, deployment_id: str) -> Deployment | None:
        return await self.inner.deployment(deployment_id)

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        return await self.inner.deployments(app, device, limit=limit)

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        return await self.inner.history(app, device, limit=limit)

    async def users_of(self, app: str, version: str) -> list[str]:
        return await self.inner.users_of(app, version)

    async def counts(self, scope: str) -> dict[str, int]:
        return await self.inner.counts(scope)

    async def document(self, collection: str, key: str) -> bytes | None:
        return await self.inner.document(collection, key)

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        return await self.inner.documents(collection, prefix=prefix, after=after, limit=limit)

    def blob(self, sha256: str) -> AbstractAsyncContextManager[Path | None]:
        return self.inner.blob(sha256)

    def backup(self) -> AsyncIterator[bytes]:
        return self.inner.backup()

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        async with self.inner.lead(name):
            yield

    async def collections(self) -> list[str]:
        return await self.inner.collections()

    async def scopes(self, *, after: str = "", limit: int = 1000) -> list[str]:
        return await self.inner.scopes(after=after, limit=limit)

    async def tell(self, topic: str, body: bytes) -> None:
        await self.inner.tell(topic, body)
