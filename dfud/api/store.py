"""What a store promises. dfud.testing.StoreConformance holds every store to it, ours and yours."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import trio

from dfud.api.events import Bus
from dfud.api.own import OwnRollout
from dfud.api.places import BlobPlace
from dfud.errors import BugError, StoreError, UnreadableError
from dfud.model.deployment import Actual, Deployment, HistoryEntry
from dfud.model.firmware import Firmware
from dfud.model.resources import App, Device
from dfud.model.selectors import EVERYTHING, Selector

TOLD_BYTES_MAX = 4096
TRIMMED_MAX = 10_000


class Capability(StrEnum):
    """What not every store can do. A store names what it can; dfud refuses the rest to the user with a clear error."""

    DELETE_FIRMWARE = "delete-firmware"  # a deleted version's name may be used again
    EXTERNAL_DESIRED = "external-desired"  # the desired state may also be changed in the store's own system
    OWN_ROLLOUTS = "own-rollouts"  # rollouts are made in the store's own system; dfud's are refused
    SEVERAL_IMAGES = "several-images"  # a version may have an image for each kind of board
    APP_FIRMWARE = "app-firmware"  # spec.firmware at the app reaches devices that have none of their own
    BACKUP = "backup"  # backup() yields a copy of the records
    SHARED = "shared"  # several dfud may run on it at once, each with a Store object of its own


class PutApp(msgspec.Struct, frozen=True, tag=True):
    """expect: None = do not care; "" = must not exist; else the stored resource_version must be this one."""

    app: App
    expect: str | None = None


class DeleteApp(msgspec.Struct, frozen=True, tag=True):
    """Deletes the app and everything of it: devices, firmware records, deployments, history.

    A store may need longer for the devices than for the commit. Until they are gone it shows nothing of them, and refuses an app
    of that name with ConflictError.
    """

    app: str
    expect: str | None = None


class PutDevice(msgspec.Struct, frozen=True, tag=True):
    device: Device
    expect: str | None = None


class SetFirmware(msgspec.Struct, frozen=True, tag=True):
    """Sets spec.firmware of many devices of an app, None: removes it; nothing else of them changes.

    It is as if each were put with it: generation grows by one, resource_version becomes the one given. A device that is not
    there is passed over: this is for thousands at a time, and one that is deleted meanwhile must not keep it from the others.
    """

    app: str
    devices: tuple[str, ...]
    firmware: dict[str, Any] | None
    resource_version: str


class DeleteDevice(msgspec.Struct, frozen=True, tag=True):
    app: str
    device: str
    expect: str | None = None


class PutFirmware(msgspec.Struct, frozen=True, tag=True):
    """create: the version must not exist yet. Its blobs must be stored and their BlobWriters still open, but for those that
    the replaced record names: firmware.digests. Those that only the replaced one names are let go of.

    expect: compare and set: the stored record must be this one. Then `create` means nothing.
    """

    firmware: Firmware
    create: bool = True
    expect: Firmware | None = None


class DeleteFirmware(msgspec.Struct, frozen=True, tag=True):
    """Its blobs go with the last record that names them, once that is durable.

    unused: refused with ConflictError while users_of() would name a device.
    """

    app: str
    version: str
    unused: bool = False


class ExpectDevice(msgspec.Struct, frozen=True, tag=True):
    """Changes nothing; raises ConflictError unless the device's sequence is this one, NotFoundError if it is gone.

    Put it before the changes that were decided by what was read: then they are stored only if that is still true.
    """

    app: str
    device: str
    sequence: int


class PutActual(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Raises the device's sequence by one. tell: it says something new, so other processes are told (DeviceStateChanged)."""

    actual: Actual
    tell: bool = False


class PutDeployment(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Stores the deployment and, if given, appends what happened to the device's history. Raises the device's sequence by one.

    A store bounds both per device: the oldest history entries and the oldest finished deployments go in the same commit.
    """

    deployment: Deployment
    entry: HistoryEntry | None = None


class PutDocument(msgspec.Struct, frozen=True, tag=True):
    """A small value of dfud's own (tokens, audit, rollouts, queues).

    create: the key must not exist yet. expect: compare and set: what is stored must be these bytes. tell: other processes are
    told (DocumentChanged); for collections of which they remember something.
    """

    collection: str
    key: str
    value: bytes
    create: bool = False
    expect: bytes | None = None
    tell: bool = False


class DeleteDocument(msgspec.Struct, frozen=True, tag=True):
    """tell: as in PutDocument."""

    collection: str
    key: str
    tell: bool = False


class TrimDocuments(msgspec.Struct, frozen=True, tag=True):
    """Forgets the documents of a collection but for the `keep` with the highest keys, and of those the ones below the key `below`.

    A store may forget only the lowest TRIMMED_MAX of them in one commit: the same again forgets more.
    """

    collection: str
    keep: int
    below: str = ""


class AddCounts(msgspec.Struct, frozen=True, tag=True):
    """Adds to counters of a scope: integers by name, 0 before the first change. For what would take a scan to count again."""

    scope: str
    add: dict[str, int]


class DeleteCounts(msgspec.Struct, frozen=True, tag=True):
    """Forgets the counters of a scope; no error if there are none."""

    scope: str


Change = (
    PutApp
    | DeleteApp
    | PutDevice
    | SetFirmware
    | DeleteDevice
    | PutFirmware
    | DeleteFirmware
    | ExpectDevice
    | PutActual
    | PutDeployment
    | PutDocument
    | DeleteDocument
    | TrimDocuments
    | AddCounts
    | DeleteCounts
)


class DeviceView(msgspec.Struct, frozen=True, gc=False):
    """A device with what it last said and its newest deployment: the one with the highest number, never the latest by clock.

    Where numbers are equal (0: made before they were counted), the one that was created last.

    sequence: 0 until something is stored of what the device said or of its deployments. The first such change sets it to a
    number that the name did not have before, also not before the device was deleted and made again; each later one adds one.
    """

    device: Device
    actual: Actual | None = None
    deployment: Deployment | None = None
    sequence: int = 0


class Wish(msgspec.Struct, frozen=True, gc=False):
    """A device's name and its own spec.firmware; UNSET: it has none."""

    device: str
    firmware: Any = msgspec.UNSET


class Pruned(msgspec.Struct, frozen=True):
    """What prune() did: how many records it removed, and the place to go on from, "" when it has looked at all."""

    after: str
    removed: int


class BlobWriter(abc.ABC):
    """Takes the bytes of one blob, and holds the blob from commit() until aclose().

    A blob lives while a firmware record of any app names its SHA-256, or a BlobWriter that committed it is open: close it
    after the commit of PutFirmware. A blob that nobody needs is gone when the change that let go of it has returned. Nobody
    deletes blobs otherwise.
    """

    @abc.abstractmethod
    async def write(self, data: bytes) -> None:
        """Append `data`. Raises StoreError (disk full: retryable)."""

    @abc.abstractmethod
    async def commit(self) -> str:
        """Make the blob durable under its SHA-256 and return that in lower-case hexadecimal."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Give up what is not committed, and the hold on what is. May be called at any time, more than once."""


class Store(abc.ABC):
    """Keeps everything that outlives the process. Each daemon has one; with Capability.SHARED, others have one on the same records.

    Every method may raise StoreError, and then has changed nothing. Cancelling a commit() leaves it either done whole or
    not at all. A commit() that has returned survives `kill -9` and a power cut. A change that cannot be stored (an integer
    out of range, a lone surrogate, a number that is not finite, deep nesting) fails its own commit() and no other.

    A stored record that cannot be read costs that record only: what asks for it by name raises UnreadableError, lists leave
    it out and name it in the log. Put and Delete do not read it, so they repair it.
    """

    name: str
    capabilities: frozenset[Capability] = frozenset()
    records: str = ""
    """Name of the store that keeps what this one's own system cannot hold; dfud hands it to keep_in() before run()."""

    blobs: str = ""
    """Name of the place for the bytes of its images; dfud hands it to keep_blobs_in() before run(), and the store runs it."""

    def keep_blobs_in(self, place: BlobPlace) -> None:
        """Take the place that `blobs` names."""
        raise BugError(f"store {self.name} names {self.blobs} for its images and does not take it")

    def keep_in(self, records: Store) -> None:
        """Take the store that `records` names. It is this one's alone: nobody else runs it, reads it or writes it."""
        raise BugError(f"store {self.name} names {self.records} for its records and does not take it")

    def counters(self) -> Mapping[str, float]:
        """Return what /metrics shows of this store: a name with optional labels (`x_total{kind="a"}`) to its value."""
        return {}

    def problem(self) -> str:
        """Return in a few words why the store cannot serve now, or "". /readyz shows it; must cost nothing."""
        return ""

    async def check(self) -> None:  # noqa: B027 - a store without anything to check is whole
        """Raise ConfigError or StoreError for what would keep run() from starting. Changes nothing; for `check-config`."""

    async def peek(self, collection: str, key: str) -> bytes | None:
        """Return a document of a store that does not run, None where it has none or that cannot be told. Changes nothing; for
        `check-config`.
        """
        return None

    @abc.abstractmethod
    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the store, report started, serve until cancelled, then close.

        A SHARED store publishes on `bus` what other processes have committed, within a second and as the events that they
        published themselves where it knows them: AppChanged, DeviceChanged, FirmwareChanged, and besides DeviceStateChanged
        and DocumentChanged. Where some of it may have been lost, it publishes Missed. What this process commits is not told to
        itself.

        Raises StoreError when it can no longer serve; dfud then ends, to be started again by the service manager.
        """

    @abc.abstractmethod
    async def commit(self, changes: Sequence[Change]) -> None:
        """Apply all changes or none, durably.

        It is not cancelled while it may be done: it returns if it was, and raises if it was not. Whoever has changed something
        tells others of it before the next checkpoint; otherwise a user who hangs up leaves everybody with what was true before.

        Raises ConflictError where an `expect` or `create` does not hold, NotFoundError where something that must exist
        does not (a device's app, what is deleted, a firmware's blob).
        """

    @abc.abstractmethod
    async def app(self, name: str) -> App | None: ...

    @abc.abstractmethod
    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        """Apps by name."""

    @abc.abstractmethod
    async def device(self, app: str, device: str) -> DeviceView | None: ...

    async def views(self, app: str, names: Sequence[str]) -> dict[str, DeviceView]:
        """Return device() of each of `names`, by name; those that are not there or cannot be read are left out.

        For many devices that ask at one time: a store that can reads them at once.
        """
        found: dict[str, DeviceView] = {}
        for name in names:
            with suppress(UnreadableError):
                view = await self.device(app, name)
                if view is not None:
                    found[name] = view
        return found

    @abc.abstractmethod
    async def devices(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        """Devices of an app by name (bytewise), those behind `after` only."""

    async def updating(self, app: str, *, limit: int = 1000, after: str = "") -> list[DeviceView]:
        """Devices of an app whose newest deployment has not ended, by name, those behind `after` only.

        A store that can finds them without looking at the others.
        """
        found: list[DeviceView] = []
        while len(found) < limit and (page := await self.devices(app, limit=limit, after=after)):
            after = page[-1].device.name
            found += [view for view in page if view.deployment is not None and not view.deployment.final]
        return found[:limit]

    @abc.abstractmethod
    async def count(self, app: str, selector: Selector = EVERYTHING) -> int:
        """Return how many devices of an app the selector matches, 0 where there is no such app; reads no record."""

    async def wishes(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, after: str = ""
    ) -> list[Wish]:
        """Return which firmware devices ask for themselves, by name (bytewise), those behind `after` only.

        The same devices as devices() lists. A store that can reads no more of them than this.
        """
        views = await self.devices(app, selector, limit=limit, after=after)
        return [Wish(view.device.name, view.device.spec.get("firmware", msgspec.UNSET)) for view in views]

    async def find_aliases(self, app: str, names: Sequence[str]) -> dict[str, str]:
        """Return find_alias() of each of `names` that leads to a device. A store that can asks once for all of them."""
        found = {name: await self.find_alias(app, name) for name in names}
        return {name: device for name, device in found.items() if device is not None}

    @abc.abstractmethod
    async def find_alias(self, app: str, alias: str) -> str | None:
        """Return the name of the device of `app` whose name is `alias` or whose spec.alias holds it."""

    @abc.abstractmethod
    async def firmware(self, app: str, version: str) -> Firmware | None: ...

    @abc.abstractmethod
    async def firmwares(self, app: str) -> list[Firmware]:
        """All firmware of an app, newest sequence first."""

    @abc.abstractmethod
    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        """Return the record that has this image, whole: Firmware.of_digest() picks it out. Of several, the highest sequence's."""

    @abc.abstractmethod
    async def deployment(self, deployment_id: str) -> Deployment | None: ...

    @abc.abstractmethod
    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        """A device's deployments, newest first: by number, then by when they were created."""

    @abc.abstractmethod
    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        """What happened to a device's deployments, in the order of the commits, newest first, each with its number.

        Numbers are not given a second time while the device is there, whatever is no longer kept.
        """

    @abc.abstractmethod
    async def users_of(self, app: str, version: str) -> list[str]:
        """Return up to 10 names of devices whose own spec.firmware asks for `version`, or that have an open deployment of it."""

    @abc.abstractmethod
    async def document(self, collection: str, key: str) -> bytes | None: ...

    @abc.abstractmethod
    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        """Documents by key (bytewise)."""

    @abc.abstractmethod
    async def counts(self, scope: str) -> dict[str, int]:
        """Return the counters of a scope that are not 0."""

    @abc.abstractmethod
    async def prune(self, before_s: float, now_s: float, *, after: str = "", limit: int = 500) -> Pruned:
        """Remove history and ended deployments from before `before_s`, looking at up to `limit` records: one small transaction.

        A device's newest deployment stays whatever its age. after: where the last call ended, "" to begin. Times are those that
        the records say; a record that cannot be read, or says a time more than a day ahead of now_s, stays.
        """

    async def collections(self) -> list[str]:
        """Return the names of all collections that hold a document, for a copy of the store."""
        raise StoreError(f"store {self.name} cannot list its collections, so it cannot be copied")

    async def scopes(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Return the scopes that have counters, by name, those behind `after` only; for a copy of the store."""
        raise StoreError(f"store {self.name} cannot list its counters, so it cannot be copied")

    @abc.abstractmethod
    async def new_blob(self) -> BlobWriter: ...

    @abc.abstractmethod
    def blob(self, sha256: str) -> AbstractAsyncContextManager[Path | None]:
        """Lend a local file with the blob's bytes, or None where there is no such blob: `async with store.blob(sha256) as path`.

        The file does not change and stays where it is until the block ends, unless the last record that names it is deleted
        meanwhile; who has opened it may read on. Afterwards it may be gone: a store whose blobs are elsewhere drops its copy.
        Raises StoreError when the block is entered, e.g. where the bytes that come are not the blob's.
        """

    def backup(self) -> AsyncIterator[bytes]:
        """Yield a consistent copy of the records (not the blobs), in the store's own form. Needs Capability.BACKUP."""
        raise BugError(f"store {self.name} does not declare {Capability.BACKUP}")

    # Rollouts of its own

    async def own_rollouts(self, app: str) -> list[OwnRollout]:
        """Return the rollouts of an app in the store's own system, the newest first, without waves. Needs OWN_ROLLOUTS.

        Raises StoreError while that system is away.
        """
        raise BugError(f"store {self.name} does not declare {Capability.OWN_ROLLOUTS}")

    async def own_rollout(self, app: str, name: str) -> OwnRollout | None:
        """Return one of them with its waves. Needs OWN_ROLLOUTS."""
        raise BugError(f"store {self.name} does not declare {Capability.OWN_ROLLOUTS}")

    # One of several

    @asynccontextmanager
    async def lead(self, name: str) -> AsyncIterator[None]:
        """Wait until this process leads the work `name`, and lead it until the block ends.

        At most one process of a SHARED store is in the block at a time. The block is cancelled, and ends without an error, when
        the lead is lost; what it has sent to the store by then may still be stored, so it should be compare-and-set, or is refused
        with a StoreError where the store can tell. With a store that one process has for itself, that leads everything.
        """
        await trio.lowlevel.checkpoint()
        yield

    def place(self) -> BlobPlace | None:
        """Return the place that all processes of a SHARED store have in common, which the store runs: for packages, which dfud
        makes once for all of them. None: each process keeps its own.
        """
        return None

    async def tell(self, topic: str, body: bytes) -> None:
        """Have every other process that runs on this store publish Told(topic, body), at most once. Raises StoreError.

        body: up to TOLD_BYTES_MAX. It is not kept: a process that starts or comes back later never hears of it.
        """
        if len(body) > TOLD_BYTES_MAX:
            raise StoreError(f"{len(body)} bytes to tell, expected at most {TOLD_BYTES_MAX}")
        await trio.lowlevel.checkpoint()
