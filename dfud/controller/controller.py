"""The controller: hears statuses, decides with `decide()`, stores what changed, tells the bus, asks for packages.

One device's statuses are taken one after the other. What is remembered of a device is a cache of the store plus the
progress within one transfer; losing it loses nothing but that.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeGuard

import msgspec
import trio

from dfud.api import (
    Actual,
    ActualChanged,
    App,
    AppChanged,
    Bus,
    CancelRequested,
    Change,
    Deployment,
    DeploymentChanged,
    Desired,
    Device,
    DeviceChanged,
    DeviceSeen,
    Firmware,
    FirmwareChanged,
    HistoryEntry,
    NotFoundError,
    ProgressChanged,
    PutActual,
    PutDeployment,
    RetryRequested,
    Store,
    StoreError,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.decide import FULL_AFTER, Action, Verdict, decide, entry_of
from dfud.controller.packages import Packages
from dfud.model.deployment import Event, State
from dfud.model.desired import desired_of
from dfud.package.file import PackageFile
from dfud.wire.messages import Code, Command, Kind, Outcome, Phase, Progress, Result, Status, Type


class Tracked:
    """One device in memory. `lock` orders its statuses."""

    __slots__ = ("actual", "deployment", "device", "lock", "progress_stored_s", "seen_stored_s", "stale")

    def __init__(self, device: Device, actual: Actual | None, deployment: Deployment | None) -> None:
        self.device = device
        self.actual = actual
        self.deployment = deployment
        self.lock = trio.Lock()
        self.seen_stored_s = actual.seen_s if actual else 0.0
        self.progress_stored_s = 0.0
        self.stale = False


class Controller:
    """Owns every deployment. `now` gives seconds since the epoch."""

    def __init__(
        self, store: Store, bus: Bus, packages: Packages, config: ControllerConfig, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._bus = bus
        self._packages = packages
        self._config = config
        self._now = now
        self._devices: OrderedDict[tuple[str, str], Tracked] = OrderedDict()
        self._apps: dict[str, App] = {}
        self._firmwares: dict[tuple[str, str], Firmware | None] = {}
        self._jobs_in, self._jobs = trio.open_memory_channel[tuple[str, str, str, object]](10_000)
        bus.subscribe(AppChanged, self._app_changed)
        bus.subscribe(DeviceChanged, self._device_changed)
        bus.subscribe(FirmwareChanged, self._firmware_changed)
        bus.subscribe(RetryRequested, lambda e: self._job("retry", e.app, e.device, e.by))
        bus.subscribe(CancelRequested, lambda e: self._job("cancel", e.app, e.device, e.by))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what users ask for and store progress, until cancelled."""
        task_status.started()
        async for kind, app, device, argument in self._jobs:
            try:
                if kind == "retry":
                    await self.retry(app, device, str(argument))
                elif kind == "cancel":
                    await self.cancel(app, device, str(argument))
                else:
                    await self._store_progress(app, device)
            except (StoreError, NotFoundError):
                # A device's next status, or the user's next request, starts from what is stored.
                self._devices.pop((app, device), None)

    # What is remembered

    def _app_changed(self, event: AppChanged) -> None:
        self._apps.pop(event.app, None)
        if event.deleted:
            for key in [k for k in self._devices if k[0] == event.app]:
                del self._devices[key]
            self._forget_firmware(event.app)

    def _device_changed(self, event: DeviceChanged) -> None:
        tracked = self._devices.get((event.app, event.device))
        if tracked is not None:
            tracked.stale = True

    def _firmware_changed(self, event: FirmwareChanged) -> None:
        self._forget_firmware(event.firmware.app)

    def _forget_firmware(self, app: str) -> None:
        for key in [k for k in self._firmwares if k[0] == app]:
            del self._firmwares[key]

    async def _app(self, name: str) -> App:
        app = self._apps.get(name)
        if app is None:
            app = await self._store.app(name)
            if app is None:
                raise NotFoundError(f"no app {name}")
            self._apps[name] = app
        return app

    async def _firmware(self, app: str, version: str) -> Firmware | None:
        key = (app, version)
        if key not in self._firmwares:
            self._firmwares[key] = await self._store.firmware(app, version)
        return self._firmwares[key]

    async def _tracked(self, app: str, device: str) -> Tracked:
        key = (app, device)
        tracked = self._devices.get(key)
        if tracked is None or tracked.stale:
            view = await self._store.device(app, device)
            if view is None:
                raise NotFoundError(f"no device {device} in app {app}")
            if tracked is None:
                tracked = Tracked(view.device, view.actual, view.deployment)
                tracked = self._devices.setdefault(key, tracked)
                while len(self._devices) > self._config.cache_devices:
                    self._devices.popitem(last=False)
            else:
                tracked.device = view.device
                tracked.stale = False
        self._devices.move_to_end(key)
        return tracked

    async def desired(self, app: str, device: str) -> tuple[Desired, Firmware | None]:
        """Return what should run on a device, and that firmware if it is published."""
        tracked = await self._tracked(app, device)
        return await self._desired(app, tracked)

    async def _desired(self, app: str, tracked: Tracked) -> tuple[Desired, Firmware | None]:
        desired = desired_of((await self._app(app)).spec, tracked.device.spec)
        if not desired.version:
            return desired, None
        target = await self._firmware(app, desired.version)
        if target is None:
            return msgspec.structs.replace(desired, problem=f"firmware {desired.version} is not published"), None
        return desired, target

    # Statuses

    async def status(
        self, app: str, device: str, status: Status, transport: str, *, patience_s: float = 0.0
    ) -> Command:
        """Take one status and return what the device is to do; when this returns, what it said is stored.

        patience_s: how long the device would wait for a package that is being made. Raises NotFoundError if app or device
        is gone, StoreError if nothing could be stored.
        """
        tracked = await self._tracked(app, device)
        async with tracked.lock:
            desired, target = await self._desired(app, tracked)
            now_s = self._now()
            verdict = decide(app, device, status, tracked.deployment, desired, target, self._config, now_s)
            package = None
            if verdict.action is Action.SEND:
                assert verdict.deployment is not None and target is not None
                try:
                    package = await self._package(status, verdict.deployment, target, patience_s)
                except StoreError as error:
                    verdict.action, verdict.reason = Action.WAIT, "its package cannot be made"
                    verdict.poll_s = self._config.poll_s if not error.retryable else self._config.retry_s or 1
            if package is not None and verdict.deployment is not None:
                self._sent(verdict, package, now_s)
            elif verdict.action is Action.SEND:
                verdict.action, verdict.reason = Action.WAIT, "its package is being made"
            await self._keep(tracked, self._actual(app, device, status, transport, now_s), verdict, now_s)
        return self._command(verdict, status, target, desired, package)

    @property
    def poll_s(self) -> int:
        """How often a device that has nothing to do asks."""
        return self._config.poll_s

    async def foreign_report(
        self, actual: Actual, *, sha256: str, offset: int | None, version: str, swap: bool
    ) -> bool:
        """Take what a device of another dialect said: what runs, and that it holds `offset` bytes of `version`.

        Return whether the image may be sent now. Such devices name versions, not digests: a version that is published
        stands for its image. They do not say why they left an image: one that was told to boot it and reports its old
        version has rolled back. What is being written stays the target until it is written if another version is wanted
        meanwhile, but not if none is, or the one that runs.
        """
        tracked = await self._tracked(actual.app, actual.device)
        async with tracked.lock:
            desired, target = await self._desired(actual.app, tracked)
            if offset is not None and target is not None and target.version not in (version, actual.version):
                pinned = await self._firmware(actual.app, version)
                if pinned is not None:
                    desired, target = Desired(version, origin=desired.origin), pinned
            running = await self._firmware(actual.app, actual.version)
            digest = (
                running.sha256 if running is not None else sha256 or hashlib.sha256(actual.version.encode()).hexdigest()
            )
            progress = result = None
            deployment = tracked.deployment
            left: list[tuple[Deployment, HistoryEntry]] = []
            if target is not None and offset is None and _went_back(deployment, target, digest):
                # It said that it ran the image, so its deployment is done; sent again it would go round for ever.
                text = "it ran this firmware and then its old one again"
                deployment = msgspec.structs.replace(deployment, blocks=True, text=text, updated_s=self._now())
                left.append((deployment, entry_of(deployment, Event.LEFT)))
            if offset is not None and deployment is not None and version == deployment.version:
                phase = Phase.WRITTEN if swap else Phase.FETCHING
                progress = Progress(bytes.fromhex(deployment.package or "00" * 16), offset, phase)
            elif offset is None and deployment is not None and deployment.state is State.WRITTEN:
                if digest != deployment.sha256:
                    text = "it was told to boot the image and runs its old one"
                    result = Result(Outcome.ROLLED_BACK, bytes.fromhex(deployment.sha256), int(Code.UNCONFIRMED), text)
            status = Status(
                actual.version, bytes.fromhex(digest), target.hardware if target else actual.hardware or "unknown", 2, 4160,
                (1 << 32) - 1, progress=progress, result=result,
            )  # fmt: skip
            now_s = self._now()
            verdict = decide(actual.app, actual.device, status, deployment, desired, target, self._config, now_s)
            verdict.steps[:0] = left
            send = verdict.action is Action.SEND and verdict.deployment is not None and target is not None
            if send and verdict.deployment is not None and target is not None:
                self._offered(verdict, target, offset if target.version == version else None, now_s)
            said = msgspec.structs.replace(actual, sha256=digest, seen_s=now_s)
            await self._keep(tracked, said, verdict, now_s)
            return send

    def _offered(self, verdict: Verdict, target: Firmware, offset: int | None, now_s: float) -> None:
        """Note that blocks of the image itself go out: no package, progress in bytes."""
        before = verdict.deployment
        assert before is not None
        name = target.sha256[:32]
        after = before.step(
            Event.SENT, now_s, package=name, chunks_total=target.size_bytes, bytes_total=target.size_bytes
        )
        if before.state is State.WRITTEN:
            after = msgspec.structs.replace(after, state=State.WRITTEN)
        elif offset:
            after = after.step(Event.CHUNK, now_s, chunks_done=min(offset, target.size_bytes))
        if after.state is not before.state:
            verdict.steps.append((after, entry_of(after, Event.SENT)))
        verdict.deployment = after

    def _actual(self, app: str, device: str, status: Status, transport: str, now_s: float) -> Actual:
        return Actual(
            app,
            device,
            status.version,
            status.digest.hex(),
            status.hardware,
            status.trial,
            status.sequence,
            status.kinds,
            status.payload,
            status.capacity,
            status.attributes,
            status.defer.reason if status.defer else "",
            now_s + status.defer.retry_s if status.defer else 0.0,
            now_s,
            transport,
        )

    async def _package(
        self, status: Status, deployment: Deployment, target: Firmware, patience_s: float
    ) -> PackageFile | None:
        """Return the package to send; a transfer that has begun goes on with its own, as long as that is kept."""
        progress = status.progress
        if progress is not None and progress.package.hex() == deployment.package:
            found = await self._packages.load(deployment.package)
            if found is not None:
                return found
        kinds = status.kinds
        if deployment.attempts and deployment.code in FULL_AFTER:
            kinds = 1 << Kind.FULL
        base = None
        if kinds & ~(1 << Kind.FULL):
            base = await self._store.firmware_by_digest(deployment.app, status.digest.hex())
        with trio.move_on_after(max(patience_s, 0.5)):
            return await self._packages.get(target, base, kinds, status.payload)
        return None

    def _sent(self, verdict: Verdict, package: PackageFile, now_s: float) -> None:
        before = verdict.deployment
        assert before is not None
        name = package.id.hex()
        after = before.step(
            Event.SENT,
            now_s,
            package=name,
            chunks_total=len(package.chunks),
            bytes_total=package.total_bytes,
            chunks_done=before.chunks_done if before.package == name else 0,
        )
        if before.state is State.WRITTEN and before.package == name:
            after = msgspec.structs.replace(after, state=State.WRITTEN)
        if after.state is not before.state or before.package != name:
            verdict.steps.append((after, entry_of(after, Event.SENT)))
        verdict.deployment = after

    async def _keep(self, tracked: Tracked, actual: Actual, verdict: Verdict, now_s: float) -> None:
        """Store what changed in one commit, then say so."""
        known = tracked.actual
        news = known is None or msgspec.structs.replace(
            known, seen_s=0.0, defer_until_s=0.0
        ) != msgspec.structs.replace(actual, seen_s=0.0, defer_until_s=0.0)
        changes: list[Change] = [PutDeployment(d, e) for d, e in verdict.steps]
        if not changes and verdict.deployment is not None and tracked.deployment is not None:
            moved = verdict.deployment.chunks_done != tracked.deployment.chunks_done
            if moved and now_s - tracked.progress_stored_s >= self._config.progress_s:
                changes.append(PutDeployment(verdict.deployment))
                tracked.progress_stored_s = now_s
        if news or changes or now_s - tracked.seen_stored_s >= self._config.seen_s:
            changes.append(PutActual(actual))
        if changes:
            await self._store.commit(changes)
            tracked.seen_stored_s = now_s
        tracked.actual = actual
        tracked.deployment = verdict.deployment
        for deployment, entry in verdict.steps:
            self._bus.publish(DeploymentChanged(deployment, entry))
        if news:
            self._bus.publish(ActualChanged(actual))
        if changes:
            self._bus.publish(DeviceSeen(actual.app, actual.device, now_s))

    def _command(
        self, verdict: Verdict, status: Status, target: Firmware | None, desired: Desired, package: PackageFile | None
    ) -> Command:
        if verdict.action is Action.SEND and package is not None and target is not None:
            return Command(
                Type.UPDATE,
                0,
                target.version,
                target.manifest,
                package.id,
                package.kind,
                target.size_bytes,
                len(package.chunks),
                package.total_bytes,
                package.base_sha256 or b"",
            )
        if verdict.action is Action.SYNC:
            return Command(Type.SYNC, verdict.poll_s, desired.version)
        kind = Type.STOP if verdict.action is Action.STOP else Type.WAIT
        return Command(kind, verdict.poll_s, reason=verdict.reason[:200])

    # Chunks

    def package_of(self, app: str, device: str) -> str | None:
        """Return the package that the device may fetch, from memory; None if the device is not in memory."""
        tracked = self._devices.get((app, device))
        if tracked is None:
            return None
        return tracked.deployment.package if tracked.deployment is not None else ""

    async def load_package_of(self, app: str, device: str) -> str:
        """As package_of, asking the store if need be; "" if there is none. Raises NotFoundError, StoreError."""
        tracked = await self._tracked(app, device)
        return tracked.deployment.package if tracked.deployment is not None else ""

    def chunks_in_memory(self, package: str) -> PackageFile | None:
        return self._packages.memory(package)

    async def load_chunks(self, package: str) -> PackageFile | None:
        return await self._packages.load(package)

    def fetched(self, app: str, device: str, package: str, number: int) -> None:
        """Note that a device asked for a chunk, so that everything before it is there. Never blocks."""
        tracked = self._devices.get((app, device))
        deployment = tracked.deployment if tracked is not None else None
        if tracked is None or deployment is None or deployment.package != package or deployment.final:
            return
        if deployment.state is not State.FETCHING or number > deployment.chunks_done:
            now_s = self._now()
            if deployment.state in (State.PENDING, State.NOTIFIED):
                self._job("progress", app, device, number)
            elif deployment.state is State.FETCHING:
                tracked.deployment = msgspec.structs.replace(deployment, chunks_done=number, updated_s=now_s)
                if now_s - tracked.progress_stored_s >= self._config.progress_s:
                    tracked.progress_stored_s = now_s
                    self._job("progress", app, device, number)
                    self._bus.publish(ProgressChanged(tracked.deployment))

    def _job(self, kind: str, app: str, device: str, argument: object) -> None:
        try:
            self._jobs_in.send_nowait((kind, app, device, argument))
        except trio.WouldBlock:
            return  # progress comes again; a user's request was answered with "accepted", and the queue is 10,000 long

    async def _store_progress(self, app: str, device: str) -> None:
        tracked = await self._tracked(app, device)
        async with tracked.lock:
            deployment = tracked.deployment
            if deployment is None or deployment.final:
                return
            entry = None
            if deployment.state in (State.PENDING, State.NOTIFIED):
                deployment = deployment.step(Event.CHUNK, self._now())
                entry = entry_of(deployment, Event.CHUNK)
            await self._store.commit([PutDeployment(deployment, entry)])
            tracked.deployment = deployment
            if entry is not None:
                self._bus.publish(DeploymentChanged(deployment, entry))

    # What users ask for

    async def retry(self, app: str, device: str, by: str, also: Sequence[Change] = ()) -> None:
        """Let a device try again what it left, or what failed, or what waits for its next attempt.

        `also` is committed with it; alone if there is nothing to try again.
        """
        tracked = await self._tracked(app, device)
        async with tracked.lock:
            deployment = tracked.deployment
            if deployment is None or not (deployment.blocks or deployment.not_before_s > self._now()):
                if also:
                    await self._store.commit(also)
                return
            changes = {"blocks": False, "not_before_s": 0.0, "updated_s": self._now()}
            await self._change(tracked, msgspec.structs.replace(deployment, **changes), f"retry by {by}", also)
        self._bus.publish(DeviceChanged(app, device))

    async def cancel(self, app: str, device: str, by: str, also: Sequence[Change] = ()) -> None:
        """End a device's open deployment; the same image is not sent again until somebody retries or asks for another.

        `also` is committed with it; alone if there is nothing to end.
        """
        tracked = await self._tracked(app, device)
        async with tracked.lock:
            deployment = tracked.deployment
            if deployment is None or deployment.final or deployment.state is State.TRIAL:
                # On trial the device decides: cancelling would only make dfud's picture wrong.
                if also:
                    await self._store.commit(also)
                return
            after = deployment.step(Event.CANCEL, self._now(), text=f"cancelled by {by}", blocks=True)
            await self._change(tracked, after, Event.CANCEL, also)
        self._bus.publish(DeviceChanged(app, device))

    async def _change(self, tracked: Tracked, deployment: Deployment, event: str, also: Sequence[Change] = ()) -> None:
        entry: HistoryEntry = entry_of(deployment, event)
        await self._store.commit([PutDeployment(deployment, entry), *also])
        tracked.deployment = deployment
        self._bus.publish(DeploymentChanged(deployment, entry))


def _went_back(deployment: Deployment | None, target: Firmware, digest: str) -> TypeGuard[Deployment]:
    """Say whether a device that was brought to the target runs again what it ran before, for the first time.

    A text is there once that was noticed; it stays when a user says "retry", who then gets a new deployment.
    """
    if deployment is None or deployment.state is not State.DONE or deployment.text:
        return False
    return deployment.sha256 == target.sha256 != digest == deployment.from_sha256
