"""The second pass of a copy: what the source has changed since the first, brought over to a target that nobody has used yet.

A device is looked at only if its mark differs: a digest of its record and its sequence, which each report and each deployment moves.
Marks stand in the target, beside what they tell of, so a pass that was ended loses nothing but time.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from dfud.api import (
    AddCounts,
    App,
    Change,
    DeleteApp,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    DeviceView,
    Firmware,
    PutApp,
    PutDocument,
    PutFirmware,
    Store,
)
from dfud.daemon.copied import MARKS, OWN

MARK_BYTES = 12
PAGE = 50
READ = 500  # views, documents and scopes that are read at a time
_pages = msgspec.msgpack.Decoder(dict[str, bytes])


def mark_of(view: DeviceView) -> bytes:
    whole = msgspec.msgpack.encode((view.device, view.sequence))
    return hashlib.sha256(whole).digest()[:MARK_BYTES]


def marked(app: str, page: Sequence[DeviceView], generation: int = 0) -> PutDocument:
    """Return the change that goes with a page of devices."""
    marks = {view.device.name: mark_of(view) for view in page}
    key = f"{generation:08}/{app}/{page[0].device.name}"
    return PutDocument(MARKS, key, msgspec.msgpack.encode(marks))


class Refresh:
    """told(what, number), as of Copy; device(view): a device as changes; images(firmware): has its images in the target."""

    def __init__(
        self,
        source: Store,
        target: Store,
        told: Callable[[str, int], None],
        device: Callable[[DeviceView], Awaitable[list[Change]]],
        images: Callable[[Firmware], AbstractAsyncContextManager[None]],
    ) -> None:
        self._source = source
        self._target = target
        self._told = told
        self._device = device
        self._images = images
        self.devices: dict[str, list[str]] = {}  # that were written anew, by app

    async def run(self, apps: Sequence[App], collections: Sequence[str]) -> None:
        """Make the target what the source is now; `collections` are those of the source that are copied."""
        there = {app.name: app async for app in _apps(self._target)}
        for app in apps:
            if there.pop(app.name, None) != app:
                await self._target.commit([PutApp(app)])
            await self._put_firmware(app.name)
        await self._refresh_devices(apps)
        for app in apps:
            await self._delete_firmware(app.name)
        for name in there:
            await self._target.commit([DeleteApp(name)])
        for collection in {*collections, *(await self._target.collections())} - OWN:
            await self._documents(collection)
        await self._counters()

    async def _put_firmware(self, app: str) -> None:
        there = {firmware.version: firmware for firmware in await self._target.firmwares(app)}
        for firmware in await self._source.firmwares(app):
            if there.get(firmware.version) != firmware:
                async with self._images(firmware):
                    await self._target.commit([PutFirmware(firmware, create=False)])

    async def _delete_firmware(self, app: str) -> None:
        kept = {firmware.version for firmware in await self._source.firmwares(app)}
        for firmware in await self._target.firmwares(app):
            if firmware.version not in kept:
                await self._target.commit([DeleteFirmware(app, firmware.version)])

    # Devices

    async def _refresh_devices(self, apps: Sequence[App]) -> None:
        marks, old = await self._marks()
        generation = 1 + max((int(key.partition("/")[0]) for key in old), default=0)
        for app in apps:
            known = marks.pop(app.name, {})
            self.devices[app.name] = []
            after = ""
            while page := await self._source.devices(app.name, limit=PAGE, after=after):
                after = page[-1].device.name
                await self._target.commit(
                    [*await self._changed(app.name, page, known), marked(app.name, page, generation)]
                )
                self._told("devices", len(page))
            for name in known:
                await self._target.commit([DeleteDevice(app.name, name)])
        for key in old:
            await self._target.commit([DeleteDocument(MARKS, key)])

    async def _changed(self, app: str, page: Sequence[DeviceView], known: dict[str, bytes]) -> list[Change]:
        """Return what brings a page's devices over; takes them out of `known`."""
        changes: list[Change] = []
        views = [view for view in page if known.get(view.device.name) != mark_of(view)]
        there = await self._target.views(app, [view.device.name for view in views]) if views else {}
        for view in views:
            name = view.device.name
            if name in there:
                # Whole, since what was stored of a device is only ever added to.
                changes.append(DeleteDevice(app, name))
            changes += await self._device(view)
            self.devices[app].append(name)
        for view in page:
            known.pop(view.device.name, None)
        return changes

    async def _marks(self) -> tuple[dict[str, dict[str, bytes]], list[str]]:
        """Return the marks by app and device, the newest of each, and the keys of all documents."""
        found: dict[str, dict[str, bytes]] = {}
        keys = []
        async for key, value in _documents(self._target, MARKS):
            keys.append(key)
            found.setdefault(key.split("/", 2)[1], {}).update(_pages.decode(value))
        return found, keys

    # The rest

    async def _documents(self, collection: str) -> None:
        there = {key: hashlib.sha256(value).digest() async for key, value in _documents(self._target, collection)}
        changes: list[Change] = []
        async for key, value in _documents(self._source, collection):
            if there.pop(key, b"") != hashlib.sha256(value).digest():
                changes.append(PutDocument(collection, key, value))
        changes += [DeleteDocument(collection, key) for key in there]
        for first in range(0, len(changes), PAGE):
            await self._target.commit(changes[first : first + PAGE])

    async def _counters(self) -> None:
        for scope in {*[s async for s in _scopes(self._source)], *[s async for s in _scopes(self._target)]}:
            here, there = await self._source.counts(scope), await self._target.counts(scope)
            if add := {n: d for n in {*here, *there} if (d := here.get(n, 0) - there.get(n, 0))}:
                await self._target.commit([AddCounts(scope, add)])


async def _apps(store: Store) -> AsyncIterator[App]:
    done = 0
    while page := await store.apps(limit=READ, offset=done):
        done += len(page)
        for app in page:
            yield app


async def _documents(store: Store, collection: str) -> AsyncIterator[tuple[str, bytes]]:
    after = ""
    while page := await store.documents(collection, after=after, limit=READ):
        after = page[-1][0]
        for item in page:
            yield item


async def _scopes(store: Store) -> AsyncIterator[str]:
    after = ""
    while page := await store.scopes(after=after, limit=READ):
        after = page[-1]
        for scope in page:
            yield scope
