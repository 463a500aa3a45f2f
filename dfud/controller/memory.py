"""What is remembered of devices, apps and firmware: a cache of the store, never older than the last change on the bus.

Whoever decides about a device holds it. A hold knows whether what it was read from has changed since, so that an answer
may be looked at again before it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import trio

from dfud.api import (
    Actual,
    Aged,
    App,
    AppChanged,
    Bus,
    Cache,
    Change,
    ConflictError,
    Deployment,
    Desired,
    Device,
    DeviceChanged,
    DeviceStateChanged,
    DeviceView,
    ExpectDevice,
    Firmware,
    FirmwareChanged,
    Missed,
    NotFoundError,
    PolicyChanged,
    PutActual,
    PutDeployment,
    Store,
    StoreError,
)
from dfud.controller.aiming import aim
from dfud.controller.config import ControllerConfig
from dfud.model.steps import Ladder

NO_FINALIZERS: list[str] = []  # one for all: a list is all of a device that a collection of garbage would look at
UNNEEDED = frozenset({"authentication", "credentials"})
Key = tuple[str, str]
AIMS_MAX = 1000  # kinds of devices and what is wanted of them
DISPUTES_MAX = 8  # with another process about one device
T = TypeVar("T")
Wants = Callable[[App, Device, Actual | None, Deployment | None, float], Desired]


class Known(msgspec.Struct, gc=False):
    """One device in memory: what is stored of it, and the progress within one transfer.

    seen_at, progress_at: when that was stored last, on trio's clock. status: the one that was heard last; fetched: the chunk that
    was asked for last; settled: what the last look came to, if that stays so (dfud.controller.settled).
    """

    device: Device
    actual: Actual | None
    deployment: Deployment | None
    sequence: int
    seen_at: float
    progress_at: float = float("-inf")
    status: object = None
    fetched: int = -1
    settled: object = None


class Hold:
    """One device, held by one task. Set fields of `known` only after they are stored. at_end: called when it is let go.

    stale: the device has changed since it was read. epoch: how often its app or a firmware of it had changed when they were looked
    at, None if they were not yet; epochs: that number by app, as it is now.
    """

    __slots__ = ("at_end", "epoch", "epochs", "key", "known", "stale", "unknown")
    known: Known

    def __init__(self, key: Key, epochs: Mapping[str, int]) -> None:
        self.key = key
        self.stale = False
        self.unknown = False
        self.epoch: int | None = None
        self.epochs = epochs
        self.at_end: list[Callable[[], None]] = []

    def looks(self) -> None:
        """Its app and the firmware that it wants are looked at from now on."""
        if self.epoch is None:
            self.epoch = self.epochs.get(self.key[0], 0)

    def guarded(self, changes: Sequence[Change]) -> list[Change]:
        """Return changes that are stored only if nobody else, in whichever process, has stored a step of this device since."""
        return [ExpectDevice(*self.key, self.known.sequence), *changes]

    def stored(self, changes: Sequence[Change]) -> None:
        """Note that these were stored, and with them where the device's sequence is now."""
        if not self.known.sequence:
            self.unknown = True  # the first one is the store's choice
        for change in changes:
            if type(change) is PutActual or type(change) is PutDeployment:
                self.known.sequence += 1

    @property
    def changed(self) -> bool:
        """Whether the device, its app or the firmware it wants changed since they were looked at."""
        return self.stale or (self.epoch is not None and self.epochs.get(self.key[0], 0) != self.epoch)


class Memory:
    """wants: who says what should run; now_s: seconds since the epoch."""

    def __init__(
        self, store: Store, bus: Bus, config: ControllerConfig, wants: Wants, now: Callable[[], float]
    ) -> None:
        self._now = now
        self._store = store
        self._seen_s = config.seen_s
        self._wants = wants
        self._devices: Cache[Key, Known] = Cache(config.cache_devices, lambda key: key[0])
        self._apps: Cache[str, App] = Cache(config.cache_apps)
        self._firmwares: Cache[Key, Firmware | None] = Cache(config.cache_firmwares, lambda key: key[0])
        self._images: Cache[Key, Firmware | None] = Cache(config.cache_firmwares, lambda key: key[0])
        self._ladders: Cache[str, Ladder] = Cache(config.cache_apps)
        self._aims: Cache[tuple[Any, ...], tuple[Desired, Firmware | None]] = Cache(AIMS_MAX, lambda key: key[0])
        self._lines: dict[Key, deque[trio.Event] | None] = {}  # who holds a device, and who waits for it
        self._held: dict[Key, Hold] = {}
        self._epochs: dict[str, int] = {}  # how often an app, or a firmware of it, has changed
        bus.subscribe(AppChanged, self._app_changed)
        bus.subscribe(PolicyChanged, lambda e: self._policy_changed(e.app))
        bus.subscribe(DeviceChanged, lambda e: self.forget(e.app, e.device))
        bus.subscribe(DeviceStateChanged, lambda e: self.forget(e.app, e.device))
        bus.subscribe(Missed, lambda e: self._missed(e.app))
        bus.subscribe(Aged, lambda e: self._missed(""))
        bus.subscribe(FirmwareChanged, lambda e: self._firmware_changed(e.firmware.app))

    def _missed(self, app: str) -> None:
        """Anything of an app, or of all, may have changed."""
        for hold in self._held.values():
            if not app or hold.key[0] == app:
                hold.stale = True
        if app:
            self._policy_changed(app)
            self._devices.forget_group(app)
            self._firmware_changed(app)
            return
        for cache in (self._apps, self._devices, self._firmwares, self._images, self._ladders, self._aims):
            cache.forget_all()

    def forget(self, app: str, device: str) -> None:
        """Have a device read from the store again."""
        self._devices.forget((app, device))
        hold = self._held.get((app, device))
        if hold is not None:
            hold.stale = True

    def doubt(self, app: str, device: str, package: str) -> None:
        """Another process may have told the device of this package a moment ago: read it again unless that is remembered."""
        known = self.peek(app, device)
        if known is not None and package and (known.deployment is None or known.deployment.package != package):
            self.forget(app, device)

    def _app_changed(self, event: AppChanged) -> None:
        if event.deleted:
            self._missed(event.app)
        else:
            self._policy_changed(event.app)

    def _policy_changed(self, app: str) -> None:
        self._apps.forget(app)
        self._aims.forget_group(app)
        self._epochs[app] = self._epochs.get(app, 0) + 1

    def _firmware_changed(self, app: str) -> None:
        self._epochs[app] = self._epochs.get(app, 0) + 1
        self._aims.forget_group(app)
        self._firmwares.forget_group(app)
        self._images.forget_group(app)
        self._ladders.forget(app)

    async def app(self, name: str) -> App:
        async def read() -> App:
            found = await self._store.app(name)
            if found is None:
                raise NotFoundError(f"no app {name}")
            return found

        return await self._apps.load(name, read)

    def known_app(self, name: str) -> App | None:
        """Return an app if it is in memory."""
        return self._apps.get(name)

    async def firmware(self, app: str, version: str) -> Firmware | None:
        async def read() -> Firmware | None:
            return await self._store.firmware(app, version)

        return await self._firmwares.load((app, version), read)

    def recalled(self, app: str, version: str) -> bool | None:
        """Say whether nothing of a version is handed out any longer; None: that is not in memory, ask for its firmware()."""
        found = self._firmwares.get((app, version))
        return None if found is None else found.recalled is not None

    async def image(self, app: str, sha256: str) -> Firmware | None:
        """Return the firmware of an app that has this image, with this image alone."""

        async def read() -> Firmware | None:
            found = await self._store.firmware_by_digest(app, sha256)
            return found.of_digest(sha256) if found is not None else None

        return await self._images.load((app, sha256), read)

    async def ladder(self, app: str) -> Ladder:
        """Return the versions of an app and the ways between them."""

        async def read() -> Ladder:
            return Ladder(await self._store.firmwares(app))

        return await self._ladders.load(app, read)

    def asks_for_attributes(self, app: str) -> bool:
        """Say whether a firmware of an app may be meant for some attributes only, as far as is known without reading."""
        ladder = self._ladders.get(app)
        return ladder is None or bool(ladder.asked)

    def peek(self, app: str, device: str) -> Known | None:
        """Return a device if it is in memory. It may be held by somebody."""
        return self._devices.get((app, device))

    @asynccontextmanager
    async def hold(self, app: str, device: str) -> AsyncIterator[Hold]:
        """Have a device to oneself. Raises NotFoundError if it is gone, StoreError.

        Whatever the block raises, the device is read from the store again next time: a commit that failed or was cancelled
        may have been done.
        """
        key = (app, device)
        if key in self._lines:
            await self._stand_in_line(key)
        hold = await self._begin(key)
        failed = True
        try:
            yield hold
            failed = False
        finally:
            self.let_go(hold, failed=failed)

    async def take(self, keys: Sequence[Key], views: Sequence[DeviceView | None]) -> list[Hold | None]:
        """As hold(), each until let_go(), for whoever holds several; those that are not remembered are read at once.

        None: somebody has it now (nobody waits with others in hand), or it is gone. views: those that were read just now, with
        nothing awaited since. Raises StoreError, and then nothing is held.
        """
        holds: list[Hold | None] = []
        missing: dict[str, dict[str, int]] = {}
        for number, (key, view) in enumerate(zip(keys, views, strict=True)):
            if key in self._lines:
                holds.append(None)
                continue
            self._lines[key] = None
            hold = self._held[key] = Hold(key, self._epochs)
            known = self._devices.get(key)
            if known is not None:
                hold.known = known
            elif view is not None:
                hold.known = self._known(view)
            else:
                missing.setdefault(key[0], {})[key[1]] = number
            holds.append(hold)
        try:
            for app, names in missing.items():
                found = await self._store.views(app, list(names))
                for device, number in names.items():
                    mine = holds[number]
                    if mine is not None and device in found:
                        mine.known = self._known(found[device])
                    else:
                        self._end((app, device))
                        holds[number] = None
        except BaseException:
            for left in holds:
                if left is not None:
                    self._end(left.key)
            raise
        return holds

    def let_go(self, hold: Hold, *, failed: bool) -> None:
        """End what take() began. failed: nobody knows whether what is remembered of it is what is stored."""
        key = hold.key
        try:
            if failed or hold.unknown:
                self._devices.forget(key)
            for call in hold.at_end:
                call()
        finally:
            if not failed and not hold.unknown and not hold.stale and self._devices.get(key) is not hold.known:
                self._devices.put(key, hold.known)
            self._end(key)

    async def _begin(self, key: Key) -> Hold:
        # The key stands for whoever holds it; a line is made by the first one who waits.
        self._lines.setdefault(key, None)
        hold = self._held[key] = Hold(key, self._epochs)
        try:
            hold.known = self._devices.get(key) or await self._read(*key)
            return hold
        except BaseException:
            self._devices.forget(key)
            self._end(key)
            raise

    async def _stand_in_line(self, key: Key) -> None:
        """Wait until it is this one's turn; then the key is in `_lines` for it."""
        line = self._lines[key]
        if line is None:
            line = self._lines[key] = deque()
        turn = trio.Event()
        line.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._end(key)
            else:
                line.remove(turn)
            raise

    def _end(self, key: Key) -> None:
        """Give the device to the next one in line."""
        self._held.pop(key, None)
        line = self._lines[key]
        if line:
            line.popleft().set()
        else:
            del self._lines[key]

    async def view(self, app: str, device: str) -> DeviceView | None:
        """Read a device for somebody else, and remember it for the status that it is about to send. Raises StoreError."""
        key = (app, device)
        reading = self._devices.begin(key)
        try:
            found = await self._store.device(app, device)
        except BaseException:
            self._devices.give_up(reading)
            raise
        # Whoever holds it knows better.
        if found is None or key in self._lines or self._devices.get(key) is not None:
            self._devices.give_up(reading)
        else:
            self._devices.end(reading, self._known(found))
        return found

    async def _read(self, app: str, device: str) -> Known:
        view = await self._store.device(app, device)
        if view is None:
            raise NotFoundError(f"no device {device} in app {app}")
        return self._known(view)

    def _known(self, view: DeviceView) -> Known:
        ago_s = self._now() - view.actual.seen_s if view.actual is not None else self._seen_s
        if not 0 <= ago_s <= self._seen_s:
            ago_s = self._seen_s  # long ago, or the clock was set
        # What it authenticates with is most of it, and none of this module's business.
        spec = {key: value for key, value in view.device.spec.items() if key not in UNNEEDED}
        metadata = msgspec.structs.replace(view.device.metadata, finalizers=NO_FINALIZERS)
        kept = msgspec.structs.replace(view.device, metadata=metadata, spec=spec, status={})
        seen_at = trio.current_time() - ago_s
        return Known(kept, view.actual, view.deployment, sequence=view.sequence, seen_at=seen_at)

    async def wanted(
        self, hold: Hold, actual: Actual | None, now_s: float, deployment: Deployment | None = None
    ) -> tuple[Desired, Firmware | None]:
        """Return what should run on a held device, and that firmware if it is published; its problem: why not to send that.

        actual: what the device says now; deployment: its newest, where that is not what is known of it.
        """
        known = hold.known
        deployment = deployment or known.deployment
        app = known.device.app
        hold.looks()
        resource = self._apps.get(app) or await self.app(app)
        desired = self._wants(resource, known.device, actual, deployment, now_s)
        return await self.aim(resource, desired, actual, deployment)

    async def judge(self, view: DeviceView, now_s: float) -> tuple[Desired, Firmware | None]:
        """As wanted(), of what is stored of a device that nobody holds."""
        app = await self.app(view.device.app)
        desired = self._wants(app, view.device, view.actual, view.deployment, now_s)
        return await self.aim(app, desired, view.actual, view.deployment)

    async def aim(
        self, app: App, desired: Desired, actual: Actual | None, deployment: Deployment | None = None
    ) -> tuple[Desired, Firmware | None]:
        """Return what is sent to a device of which this is desired, and why not to send that (`problem`).

        It is the same for all devices that are the same in what it depends on: worked out once. Where both kinds of firmware are
        desired, it depends on what became of the device's own updates.
        """
        if not desired.version:
            return desired, None
        if actual is None or desired.other is not None:
            return await aim(self, app, desired, actual, deployment)
        attributes: tuple[tuple[str, str], ...] = ()
        if actual.attributes:
            ladder = self._ladders.get(app.name) or await self.ladder(app.name)
            attributes = tuple(sorted(pair for pair in actual.attributes.items() if pair[0] in ladder.asked))
        key = (
            app.name,
            app.metadata.resource_version,
            desired,
            actual.hardware,
            actual.sha256,
            actual.sequence,
            attributes,
            actual.manifest,
            actual.program,
        )
        found = self._aims.get(key)
        return found if found is not None else await self._aims.load(key, lambda: aim(self, app, desired, actual))


async def undisputed(app: str, device: str, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` does, which decides by what is stored of a device: anew when another process was faster to store."""
    for _ in range(DISPUTES_MAX):
        try:
            return await work()
        except ConflictError as error:
            dispute = error
            await trio.lowlevel.checkpoint()
    raise StoreError(f"device {device} of app {app} goes on changing: {dispute}", retryable=True) from dispute
