"""A whole store, copied to another: app by app, page by page, and compared at the end. The target may not be in use meanwhile.

How far it is stands in the target, in the commit of what it tells of, so it goes on wherever it was ended. A target that holds all of
it, and was not served from, is brought up to date (refreshing.py): so the first pass may be of a backup while the source is in use,
and only the second needs it to stand still. Comparisons are by digests of what both hand out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dfud.api import (
    AddCounts,
    App,
    Bus,
    Change,
    DeviceView,
    Firmware,
    HistoryEntry,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    Store,
    StoreError,
)
from dfud.daemon.copied import COLLECTION, KEY, OWN, Place, place_of
from dfud.daemon.refreshing import Refresh, marked

PAGE = 50  # devices with all that is theirs, in one commit
DEPLOYMENTS_MAX = 100_000
HISTORY_MAX = 1_000_000
BLOCK_BYTES = 1 << 20


class Copy:
    """told(what, number): so many more of what are done."""

    def __init__(self, source: Store, target: Store, told: Callable[[str, int], None]) -> None:
        self._source = source
        self._target = target
        self._told = told
        self._place = Place(source.name)

    async def run(self) -> list[str]:
        """Copy what is not yet copied, compare, and return what there is, one line each. Raises StoreError."""
        held = await self._begin()
        apps = await _apps(self._source)
        for app in apps:
            await self._part(f"app {app.name}", partial(self._app, app))
            await self._part(f"firmware {app.name}", partial(self._firmware, app))
            await self._part(f"devices {app.name}", partial(self._devices, app))
        collections = [c for c in await self._source.collections() if c not in OWN]
        for collection in collections:
            await self._part(f"documents {collection}", partial(self._documents, collection))
        await self._part("counters", self._counters)
        refresh = Refresh(self._source, self._target, self._told, self._device, self._images)
        if held:
            await refresh.run(apps, collections)
        return await self._compare(apps, refresh.devices if self._place.whole else None)

    async def _begin(self) -> bool:
        """Return whether the target holds some of it already."""
        place = await place_of(self._target)
        if place is not None:
            self._place = place
            if place.source != self._source.name:
                raise StoreError(
                    f"the store {self._target.name} holds a copy of {place.source}, which nobody has used yet"
                )
            return True
        if await self._target.apps(limit=1) or await self._target.collections():
            raise StoreError(
                f"the store {self._target.name} is not empty, expected an empty one, or a copy that nobody has used yet"
            )
        await self._target.commit([self._noted()])
        return False

    def _noted(self) -> PutDocument:
        return PutDocument(COLLECTION, KEY, msgspec.json.encode(self._place))

    async def _part(self, name: str, copy: Callable[[str], AsyncIterator[tuple[str, Sequence[Change]]]]) -> None:
        """Copy one part. copy: given the last name that is done, yields the next one and its changes."""
        if name in self._place.done:
            return
        if self._place.part != name:
            self._place.part, self._place.after = name, ""
        async for after, changes in copy(self._place.after):
            self._place.after = after
            await self._target.commit([*changes, self._noted()])
        self._place.done.append(name)
        self._place.part = self._place.after = ""
        await self._target.commit([self._noted()])

    async def _app(self, app: App, _: str) -> AsyncIterator[tuple[str, Sequence[Change]]]:
        yield app.name, [PutApp(app)]
        self._told("apps", 1)

    async def _firmware(self, app: App, _: str) -> AsyncIterator[tuple[str, Sequence[Change]]]:
        for firmware in await self._source.firmwares(app.name):
            async with self._images(firmware):
                yield firmware.version, [PutFirmware(firmware, create=False)]
            self._told("firmware", 1)

    @asynccontextmanager
    async def _images(self, firmware: Firmware) -> AsyncIterator[None]:
        """Have the images of a firmware in the target until its record is there."""
        writers = []
        try:
            for sha256 in sorted(firmware.digests):
                writer = await self._target.new_blob()
                writers.append(writer)
                async with self._source.blob(sha256) as path:
                    if path is None:
                        raise StoreError(
                            f"the image {sha256} of firmware {firmware.version} of app {firmware.app} is missing: "
                            "publish it again, or delete the firmware"
                        )
                    async with await trio.open_file(path, "rb") as file:
                        while block := await file.read(BLOCK_BYTES):
                            await writer.write(block)
                if await writer.commit() != sha256:
                    raise StoreError(
                        f"the image {sha256} of firmware {firmware.version} of app {firmware.app} is damaged"
                    )
            yield
        finally:
            for writer in writers:
                await writer.aclose()

    async def _devices(self, app: App, after: str) -> AsyncIterator[tuple[str, Sequence[Change]]]:
        while page := await self._source.devices(app.name, limit=PAGE, after=after):
            changes: list[Change] = []
            for view in page:
                changes += await self._device(view)
            # A store can put those that stand together at once.
            changes.sort(key=lambda c: not isinstance(c, PutDevice))
            after = page[-1].device.name
            yield after, [*changes, marked(app.name, page)]
            self._told("devices", len(page))

    async def _device(self, view: DeviceView) -> list[Change]:
        device = view.device
        changes: list[Change] = [PutDevice(device)]
        deployments = await self._source.deployments(device.app, device.name, limit=DEPLOYMENTS_MAX)
        history = await self._source.history(device.app, device.name, limit=HISTORY_MAX)
        known = {d.id: d for d in deployments}
        newest = deployments[0] if deployments else None
        # An entry is stored with a deployment: its own while that is kept, else the newest.
        entries = [(known.get(e.deployment, newest), e) for e in reversed(history)]
        changes += [PutDeployment(d, e) for d, e in entries if d is not None]
        changes += [PutDeployment(d) for d in reversed(deployments)]
        if view.actual is not None:
            changes.append(PutActual(view.actual))
        return changes

    async def _documents(self, collection: str, after: str) -> AsyncIterator[tuple[str, Sequence[Change]]]:
        while page := await self._source.documents(collection, after=after, limit=PAGE):
            after = page[-1][0]
            yield after, [PutDocument(collection, key, value) for key, value in page]
            self._told("documents", len(page))

    async def _counters(self, after: str) -> AsyncIterator[tuple[str, Sequence[Change]]]:
        while scopes := await self._source.scopes(after=after, limit=1):
            after = scopes[0]
            # One scope and its place in one commit: it is never added twice.
            yield after, [AddCounts(after, await self._source.counts(after))]
            self._told("counters", 1)

    # Comparing

    async def _compare(self, apps: list[App], only: dict[str, list[str]] | None) -> list[str]:
        """Compare all that there is; only: of the devices these, by app, and how many there are."""
        there, copied = Digest(), Digest()
        for digest, store in ((there, self._source), (copied, self._target)):
            for app in await _apps(store):
                await digest.app(store, app)
                if only is None:
                    await digest.devices(store, app, self._told)
                else:
                    await digest.some(store, app, only.get(app.name, []), self._told)
            for collection in await store.collections():
                if collection not in OWN:
                    await digest.documents(store, collection)
            await digest.counters(store)
        if wrong := sorted(
            part for part in {**there.parts, **copied.parts} if there.parts.get(part) != copied.parts.get(part)
        ):
            raise StoreError(
                f"the copy differs in {', '.join(wrong[:5])}{' and more' if wrong[5:] else ''}: the source was changed "
                "meanwhile; stop what uses it, then copy again, which goes on from here"
            )
        self._place.whole = True
        await self._target.commit([self._noted()])
        lines = [f"{what}: {number}" for what, number in there.numbers.items()]
        if only is None:
            return [
                *lines,
                f"The stores {self._source.name} and {self._target.name} hold the same, SHA-256 {there.whole}.",
            ]
        again = sum(map(len, only.values()))
        return [
            *lines,
            f"{again} of the devices had changed since the last pass. With that, the stores {self._source.name} and "
            f"{self._target.name} hold the same, SHA-256 {there.whole}.",
        ]


class Digest:
    """What a store holds, as a digest for each part, and counts."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.numbers: Counter[str] = Counter()

    @property
    def whole(self) -> str:
        return hashlib.sha256(repr(sorted(self.parts.items())).encode()).hexdigest()

    async def app(self, store: Store, app: App) -> None:
        digest = hashlib.sha256(msgspec.msgpack.encode(app))
        self.numbers["apps"] += 1
        for firmware in await store.firmwares(app.name):
            digest.update(msgspec.msgpack.encode(firmware))
            self.numbers["firmware"] += 1
            for sha256 in sorted(firmware.digests):
                async with store.blob(sha256) as path:
                    found = "missing" if path is None else await trio.to_thread.run_sync(_digest_of, str(path))
                digest.update(found.encode())
                self.numbers["images"] += 1
        self.parts[f"app {app.name} and its firmware"] = digest.hexdigest()

    async def devices(self, store: Store, app: App, told: Callable[[str, int], None]) -> None:
        devices = hashlib.sha256()
        after = ""
        while page := await store.devices(app.name, limit=PAGE, after=after):
            after = page[-1].device.name
            for view in page:
                devices.update(msgspec.msgpack.encode((view.device, view.actual)))
                await self._deployments(store, view, devices)
            told("compared", len(page))
        self.numbers["devices"] += await store.count(app.name)
        self.parts[f"devices of app {app.name}"] = devices.hexdigest()

    async def some(self, store: Store, app: App, names: Sequence[str], told: Callable[[str, int], None]) -> None:
        count = await store.count(app.name)
        devices = hashlib.sha256(b"%d" % count)
        for first in range(0, len(names), PAGE):
            page = names[first : first + PAGE]
            views = await store.views(app.name, page)
            for name in page:
                view = views[name]
                devices.update(msgspec.msgpack.encode((view.device, view.actual)))
                await self._deployments(store, view, devices)
            told("compared", len(page))
        self.numbers["devices"] += count
        self.parts[f"devices of app {app.name}"] = devices.hexdigest()

    async def _deployments(self, store: Store, view: DeviceView, digest: hashlib._Hash) -> None:
        app, device = view.device.app, view.device.name
        deployments = await store.deployments(app, device, limit=DEPLOYMENTS_MAX)
        history = await store.history(app, device, limit=HISTORY_MAX)
        self.numbers["deployments"] += len(deployments)
        self.numbers["history entries"] += len(history)
        for deployment in deployments:
            digest.update(msgspec.msgpack.encode(deployment))
        for entry in history:
            digest.update(msgspec.msgpack.encode(_unnumbered(entry)))

    async def documents(self, store: Store, collection: str) -> None:
        digest = hashlib.sha256()
        after = ""
        while page := await store.documents(collection, after=after, limit=PAGE):
            after = page[-1][0]
            digest.update(msgspec.msgpack.encode(page))
            self.numbers["documents"] += len(page)
        self.parts[f"documents {collection}"] = digest.hexdigest()

    async def counters(self, store: Store) -> None:
        digest = hashlib.sha256()
        after = ""
        while scopes := await store.scopes(after=after):
            after = scopes[-1]
            for scope in scopes:
                counts = sorted((await store.counts(scope)).items())
                digest.update(msgspec.msgpack.encode((scope, counts)))
                self.numbers["counters"] += len(counts)
        self.parts["counters"] = digest.hexdigest()


def _unnumbered(entry: HistoryEntry) -> HistoryEntry:
    """The number is its place in the store that keeps it."""
    return msgspec.structs.replace(entry, number=0)


def _digest_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _apps(store: Store) -> list[App]:
    found: list[App] = []
    while page := await store.apps(limit=1000, offset=len(found)):
        found += page
    return found


async def copy_with_progress(source: Store, target: Store) -> list[str]:
    """Open both stores, copy with a bar on the terminal, and return what there is to say."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with trio.open_nursery() as nursery:
        for store in (source, target):
            await nursery.start(store.run, Bus())
        devices = sum([await source.count(app.name) for app in await _apps(source)])
        with Progress(*columns, console=Console(stderr=True)) as progress:
            copied = progress.add_task("devices copied", total=devices)
            compared = progress.add_task("devices compared", total=2 * devices)

            def told(what: str, number: int) -> None:
                if what == "devices":
                    progress.advance(copied, number)
                elif what == "compared":
                    progress.advance(compared, number)

            lines = await Copy(source, target, told).run()
        nursery.cancel_scope.cancel()
    return lines
