"""Reading: rows as the model's structs. A record that cannot be read costs itself only."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from dfud.api import (
    Actual,
    App,
    Deployment,
    Device,
    DeviceView,
    Firmware,
    HistoryEntry,
    Selector,
    State,
    Store,
    StoreError,
    UnreadableError,
    Wish,
)
from dfud.api.damage import Damage, Key
from dfud.api.encoding import decode, firmware_of, unreadable, with_columns
from dfud_postgres import queries as q
from dfud_postgres.connection import Row
from dfud_postgres.pool import Pool

T = TypeVar("T")
EVERYTHING = Selector()


def sayable(text: str) -> bool:
    """Say whether PostgreSQL could hold a text at all: UTF-8 without a zero byte."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


class ReadingStore(Store):
    """The reading half of the store; who inherits opens and closes the pool."""

    def __init__(self) -> None:
        self._damage = Damage()
        self._open_pool: Pool | None = None

    @property
    def _pool(self) -> Pool:
        if self._open_pool is None:
            raise StoreError("the store is not open")
        return self._open_pool

    def _record(self, key: Key, what: str, kind: type[T], body: bytes, is_its: Callable[[T], bool]) -> T:
        """Return a record. One that cannot be read, or holds the names of another, is noted under `key`."""
        try:
            record = decode(what, kind, body)
            if not is_its(record):
                raise unreadable(what, "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, *key)
            raise
        self._damage.read(*key)
        return record

    async def _whole(
        self, kind: tuple[str, ...], read: Callable[[list[str]], Awaitable[list[Row]]], decoded: Callable[[Row], T]
    ) -> list[T]:
        """Read a page of records that can be read, as many as were asked for. read: given the names to leave out."""
        while True:
            known = self._damage.names(*kind)
            found: list[T] = []
            for row in await read(known):
                with contextlib.suppress(UnreadableError):
                    found.append(decoded(row))
            if len(self._damage.names(*kind)) <= len(known):
                return found

    # Apps and devices

    async def app(self, name: str) -> App | None:
        row = await self._pool.row(q.APP, name)
        return None if row is None else self._app(name, row[0])

    def _app(self, name: str, body: bytes) -> App:
        return self._record(("app", name), f"app {name}", App, body, lambda a: a.name == name)

    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        query, values = q.apps(selector)
        return await self._whole(
            ("app",),
            lambda bad: self._pool.rows(query, bad, limit, offset, *values),
            lambda row: self._app(row[0], row[1]),
        )

    async def device(self, app: str, device: str) -> DeviceView | None:
        row = await self._pool.row(q.DEVICE, app, device)
        return None if row is None else await self._whole_view(app, row)

    async def views(self, app: str, names: Sequence[str]) -> dict[str, DeviceView]:
        found: dict[str, DeviceView] = {}
        for row in await self._pool.rows(q.VIEWS, app, [name for name in names if sayable(name)]):
            with contextlib.suppress(UnreadableError):
                found[row[0]] = await self._whole_view(app, row)
        return found

    async def _whole_view(self, app: str, row: Row) -> DeviceView:
        view = self._view(app, row)
        if row[3] is not None and view.deployment is None:
            return DeviceView(view.device, view.actual, await self._older(app, row[0]), view.sequence)
        return view

    def _view(self, app: str, row: Row) -> DeviceView:
        name, body, actual, newest, firmware, newer, version, sequence = row
        key, what = ("device", app, name), f"device {name} of app {app}"
        device = self._record(key, what, Device, body, lambda d: (d.app, d.name) == (app, name))
        if firmware is not None:
            device = with_columns(what, device, firmware, newer, version)
        return DeviceView(device, self._actual(app, name, actual), _newest(app, name, newest), sequence)

    def _actual(self, app: str, device: str, body: bytes) -> Actual | None:
        """What cannot be read was not said: the device says it again."""
        if not body:
            return None
        key, what = ("actual", app, device), f"what device {device} of app {app} said"
        with contextlib.suppress(UnreadableError):
            return self._record(key, what, Actual, body, lambda a: (a.app, a.device) == (app, device))
        return None

    async def _older(self, app: str, device: str) -> Deployment | None:
        """Return the newest deployment that can be read, where the very newest cannot.

        One that has ended stands for itself: nobody knows whether its verdict, or a user's cancel, keeps the image off this
        device, so it does.
        """
        passed = 0
        while (row := await self._pool.row(q.OLDER, app, device, passed)) is not None:
            try:
                return self._deployment(row)
            except UnreadableError as error:
                if not passed and (stands := await self._stands_for(row[0], str(error))) is not None:
                    return stands
            passed += 1
        return None

    async def _stands_for(self, deployment_id: str, why: str) -> Deployment | None:
        """Return what the other columns say of an unreadable deployment that has ended; None if it has not, or its image is gone."""
        row = await self._pool.row(q.ENDED, deployment_id)
        if row is None:
            return None
        app, device, version, created_s, number, body = row
        try:
            sha256 = decode(f"firmware {version} of app {app}", Firmware, body).sha256
        except UnreadableError:
            return None
        return Deployment(
            id=deployment_id,
            app=app,
            device=device,
            version=version,
            sha256=sha256,
            state=State.FAILED,
            created_s=created_s,
            updated_s=created_s,
            number=number,
            blocks=True,
            text=f"{why}; it is not sent again until somebody says retry",
        )

    async def devices(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        query, values = q.devices(q.VIEW, selector)
        return await self._views(
            app, after, lambda bad: self._pool.rows(query, app, after, bad, limit, offset, *values)
        )

    async def updating(self, app: str, *, limit: int = 1000, after: str = "") -> list[DeviceView]:
        while True:
            place = after
            rows = await self._views(app, place, lambda bad: self._pool.rows(q.UPDATING, app, place, bad, limit))  # noqa: B023
            found = [view for view in rows if view.deployment is not None and not view.deployment.final]
            if found or not rows:
                return found
            after = rows[-1].device.name  # an older one is open, or unreadable

    async def _views(self, app: str, after: str, read: Callable[[list[str]], Awaitable[list[Row]]]) -> list[DeviceView]:
        unread: list[str] = []

        def decoded(row: Row) -> DeviceView:
            view = self._view(app, row)
            if row[3] is not None and view.deployment is None:
                unread.append(view.device.name)
            return view

        if not sayable(after):
            return []
        found = await self._whole(("device", app), read, decoded)
        for number, view in enumerate(found):
            if view.device.name in unread:
                older = await self._older(app, view.device.name)
                found[number] = DeviceView(view.device, view.actual, older, view.sequence)
        return found

    async def wishes(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, after: str = ""
    ) -> list[Wish]:
        query, values = q.devices("d.name, d.body, d.firmware FROM device d", selector)

        def wish(row: Row) -> Wish:
            name, body, firmware = row
            try:
                return Wish(name, firmware_of(f"device {name} of app {app}", body, firmware))
            except UnreadableError as error:
                self._damage.found(error, "device", app, name)
                raise

        return await self._whole(
            ("device", app), lambda bad: self._pool.rows(query, app, after, bad, limit, 0, *values), wish
        )

    async def count(self, app: str, selector: Selector = EVERYTHING) -> int:
        query, values = q.count(selector)
        row = await self._pool.row(query, app, *values)
        return 0 if row is None else int(row[0])

    async def find_alias(self, app: str, alias: str) -> str | None:
        return (await self.find_aliases(app, [alias])).get(alias)

    async def find_aliases(self, app: str, names: Sequence[str]) -> dict[str, str]:
        rows = await self._pool.rows(q.ALIASES, app, [name for name in names if sayable(name)])
        return dict(rows)

    # Firmware

    async def firmware(self, app: str, version: str) -> Firmware | None:
        row = await self._pool.row(q.FIRMWARE, app, version)
        return None if row is None else self._firmware(app, row)

    def _firmware(self, app: str, row: Row) -> Firmware:
        version, body = row
        key, what = ("firmware", app, version), f"firmware {version} of app {app}"
        return self._record(key, what, Firmware, body, lambda f: (f.app, f.version) == (app, version))

    async def firmwares(self, app: str) -> list[Firmware]:
        found: list[Firmware] = []
        for row in await self._pool.rows(q.FIRMWARES, app):
            with contextlib.suppress(UnreadableError):
                found.append(self._firmware(app, row))
        return found

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        problem: UnreadableError | None = None
        for row in await self._pool.rows(q.BY_DIGEST, app, sha256):
            try:
                return self._firmware(app, row)
            except UnreadableError as error:
                problem = error
        if problem is not None:
            raise problem
        return None

    # Deployments

    async def deployment(self, deployment_id: str) -> Deployment | None:
        row = await self._pool.row(q.DEPLOYMENT, deployment_id)
        return None if row is None else self._deployment(row)

    def _deployment(self, row: Row) -> Deployment:
        deployment_id, app, device, body = row
        key, names = ("deployment", app, device, deployment_id), (app, device, deployment_id)
        what = f"deployment {deployment_id} of device {device} of app {app}"
        return self._record(key, what, Deployment, body, lambda d: (d.app, d.device, d.id) == names)

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        return await self._whole(
            ("deployment", app, device),
            lambda bad: self._pool.rows(q.DEPLOYMENTS, app, device, bad, limit),
            self._deployment,
        )

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        found: list[HistoryEntry] = []
        for number, body in await self._pool.rows(q.HISTORY, app, device, limit):
            what = f"entry {number} in the history of device {device} of app {app}"
            try:
                found.append(msgspec.structs.replace(decode(what, HistoryEntry, body), number=number))
            except UnreadableError as error:
                self._damage.found(error, "history", app, device, str(number))
        return found

    async def users_of(self, app: str, version: str) -> list[str]:
        return [row[0] for row in await self._pool.rows(q.USERS, app, version)]

    # Documents

    async def document(self, collection: str, key: str) -> bytes | None:
        row = await self._pool.row(q.DOCUMENT, collection, key)
        return None if row is None else bytes(row[0])

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        values: list[Any] = [collection, prefix, after, limit]
        query = q.DOCUMENTS
        if beyond := successor(prefix):
            query = q.DOCUMENTS_BELOW
            values.append(beyond)
        return [(row[0], row[1]) for row in await self._pool.rows(query, *values)]

    async def collections(self) -> list[str]:
        return [row[0] for row in await self._pool.rows(q.COLLECTIONS)]

    async def scopes(self, *, after: str = "", limit: int = 1000) -> list[str]:
        return [row[0] for row in await self._pool.rows(q.SCOPES, after, limit)]

    async def counts(self, scope: str) -> dict[str, int]:
        return dict(await self._pool.rows(q.COUNTS, scope))


def _newest(app: str, device: str, body: bytes | None) -> Deployment | None:
    if body is None:
        return None
    with contextlib.suppress(UnreadableError):
        newest = decode("the newest deployment", Deployment, body)
        if (newest.app, newest.device) == (app, device):
            return newest
    return None


def successor(prefix: str) -> str:
    """Return the least text above every text that begins with `prefix`, "" if there is none. Order: by code point, as UTF-8 sorts."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return ""
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)  # UTF-8 has no surrogates
