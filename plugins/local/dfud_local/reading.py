"""Reading: what is asked as SQL, and rows as the model's structs. A record that cannot be read costs itself only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
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
from dfud_local.changes import USERS
from dfud_local.columns import text
from dfud_local.purge import Purge
from dfud_local.queries import (
    ALIASES,
    BY_DIGEST,
    DEPLOYMENTS,
    DEVICE,
    ENDED,
    FROM,
    NEWEST,
    VIEW,
    VIEWS,
    successor,
    where_of,
)
from dfud_local.reader import Reader, Row
from dfud_local.selecting import Drives, count_of, drive_of, page_of

T = TypeVar("T")
EVERYTHING = Selector()
VIEWS_MAX = 256  # devices of one statement
DEVICES = msgspec.msgpack.Decoder(Device)
ACTUALS = msgspec.msgpack.Decoder(Actual)
LAST = msgspec.msgpack.Decoder(Deployment)


class ReadingStore(Store):
    """The reading half of the local store; who inherits opens and closes the reader."""

    def __init__(self) -> None:
        self._damage = Damage()
        self._drives = Drives()
        self._purge = Purge()
        self._open_reader: Reader | None = None

    @property
    def _reader(self) -> Reader:
        if self._open_reader is None:
            raise StoreError("the store is not open")
        return self._open_reader

    async def app(self, name: str) -> App | None:
        row = self._reader.row("SELECT body FROM app WHERE name=?", name)
        return None if row is None else self._app(name, row[0])

    def _record(self, key: Key, what: str, kind: type[T], body: bytes, is_its: Callable[[T], bool]) -> T:
        """Return a record. One that cannot be read, or holds the names of another, is noted under `key`; else it is whole."""
        try:
            record = decode(what, kind, body)
            if not is_its(record):
                raise unreadable(what, "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, *key)
            raise
        self._damage.read(*key)
        return record

    def _app(self, name: str, body: bytes) -> App:
        return self._record(("app", name), f"app {name}", App, body, lambda a: a.name == name)

    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        where, values = where_of(selector, "SELECT 1 FROM app_label WHERE app=a.name")
        query = f"""SELECT name, body FROM app a WHERE name NOT IN (SELECT value FROM json_each(?)) AND {where}
            ORDER BY name LIMIT ? OFFSET ?"""  # noqa: S608 - values are bound
        return await self._whole(
            ("app",),
            lambda bad: self._reader.rows(query, bad, *values, limit, offset),
            lambda row: self._app(text(row[0]), row[1]),
        )

    async def _whole(
        self, kind: tuple[str, ...], read: Callable[[str], Awaitable[list[Row]]], decoded: Callable[[Row], T]
    ) -> list[T]:
        """Read a page of records that can be read, as many as were asked for: a short page means that it was the last.

        read: given the names to leave out, as JSON.
        """
        while True:
            known = self._damage.names(*kind)
            found: list[T] = []
            for row in await read(json.dumps(known)):
                with contextlib.suppress(UnreadableError):
                    found.append(decoded(row))
            if len(self._damage.names(*kind)) <= len(known):
                return found

    async def device(self, app: str, device: str) -> DeviceView | None:
        if app in self._purge.hidden:
            return None
        row = self._reader.row(DEVICE, app, device)
        return None if row is None else self._view(app, device, row)

    async def views(self, app: str, names: Sequence[str]) -> dict[str, DeviceView]:
        found: dict[str, DeviceView] = {}
        if app in self._purge.hidden:
            return found
        for first in range(0, len(names), VIEWS_MAX):
            for row in self._reader.few(VIEWS, app, json.dumps(names[first : first + VIEWS_MAX])):
                name = text(row[7])
                with contextlib.suppress(UnreadableError):
                    found[name] = self._quick_view(app, name, row) or self._view(app, name, row)
        return found

    def _quick_view(self, app: str, name: str, row: Row) -> DeviceView | None:
        """As _view(), where nothing is odd: no record is damaged, or was."""
        body, actual, newest, firmware, _, _, sequence = row[:7]
        if firmware is not None or len(self._damage):
            return None
        try:
            device = DEVICES.decode(body)
            said = ACTUALS.decode(actual) if actual else None
            last = LAST.decode(newest) if newest is not None else None
        except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, TypeError, ValueError):
            return None
        metadata = device.metadata
        whole = metadata.name == name and metadata.application == app
        whole = whole and (said is None or (said.device == name and said.app == app))
        whole = whole and (last is None or (last.device == name and last.app == app))
        return DeviceView(device, said, last, sequence) if whole else None

    def _view(self, app: str, name: str, row: Row) -> DeviceView:
        body, actual, newest, firmware, newer, version, sequence = row[:7]
        key, what = ("device", app, name), f"device {name} of app {app}"
        device = self._record(key, what, Device, body, lambda d: (d.app, d.name) == (app, name))
        if firmware is not None:
            device = with_columns(what, device, firmware, newer, text(version))
        return DeviceView(device, self._actual(app, name, actual), self._newest(app, name, newest), sequence)

    def _actual(self, app: str, device: str, body: bytes | None) -> Actual | None:
        """What cannot be read was not said: the device says it again."""
        if not body:
            return None
        key, what = ("actual", app, device), f"what device {device} of app {app} said"
        with contextlib.suppress(UnreadableError):
            return self._record(key, what, Actual, body, lambda a: (a.app, a.device) == (app, device))
        return None

    def _newest(self, app: str, device: str, body: bytes | None) -> Deployment | None:
        """Return the newest deployment that can be read, which is most probably the one whose body is given.

        Where the very newest has ended and cannot be read, it stands for itself: nobody knows whether its verdict, or a user's
        cancel, keeps the image off this device, so it does.
        """
        with contextlib.suppress(UnreadableError):
            newest = None if body is None else decode("the newest deployment", Deployment, body)
            if newest is None or (newest.app, newest.device) == (app, device):
                return newest
        passed = 0
        while (row := self._reader.row(DEPLOYMENTS + NEWEST + "LIMIT 1 OFFSET ?", app, device, passed)) is not None:
            try:
                return self._deployment(row)
            except UnreadableError as error:
                if not passed and (stands := self._stands_for(text(row[0]), str(error))) is not None:
                    return stands
            passed += 1
        return None

    def _stands_for(self, deployment_id: str, why: str) -> Deployment | None:
        """Return what the other columns say of an unreadable deployment that has ended; None if it has not, or its image is gone."""
        row = self._reader.row(ENDED, deployment_id)
        if row is None:
            return None
        app, device, version, created_s, number, sha256 = row
        return Deployment(
            id=deployment_id,
            app=text(app),
            device=text(device),
            version=text(version),
            sha256=text(sha256),
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
        if app in self._purge.hidden:
            return []
        return await self._whole(
            ("device", app),
            lambda bad: self._page(f"{VIEW}, d.name", app, selector, after=after, bad=bad, limit=limit, offset=offset),
            lambda row: self._view(app, text(row[7]), row),
        )

    async def _page(self, columns: str, app: str, selector: Selector, **page: Any) -> list[Row]:
        return await self._reader.planned(
            lambda number: page_of(
                columns, app, selector, self._drives.of(app, selector, number, page["after"]), **page
            )
        )

    async def wishes(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, after: str = ""
    ) -> list[Wish]:
        if app in self._purge.hidden:
            return []

        def wish(row: Row) -> Wish:
            device = text(row[0])
            try:
                return Wish(device, firmware_of(f"device {device} of app {app}", row[1], row[2]))
            except UnreadableError as error:
                self._damage.found(error, "device", app, device)
                raise

        return await self._whole(
            ("device", app),
            lambda bad: self._page("d.name, d.body, d.firmware", app, selector, after=after, bad=bad, limit=limit),
            wish,
        )

    async def updating(self, app: str, *, limit: int = 1000, after: str = "") -> list[DeviceView]:
        if app in self._purge.hidden:
            return []
        query = f"""SELECT {VIEW}, d.name {FROM}
            WHERE d.app=? AND d.name>? AND d.name NOT IN (SELECT value FROM json_each(?))
            AND d.name IN (SELECT device FROM deployment WHERE app=? AND open)
            ORDER BY d.name LIMIT ?"""  # noqa: S608 - values are bound
        while True:
            rows = await self._whole(
                ("device", app),
                partial(self._rows_behind, query, app, after, limit),
                lambda row: self._view(app, text(row[-1]), row),
            )
            found = [view for view in rows if view.deployment is not None and not view.deployment.final]
            if found or not rows:
                return found
            after = rows[-1].device.name  # an older one is open, or unreadable

    async def _rows_behind(self, query: str, app: str, after: str, limit: int, bad: str) -> list[Row]:
        return await self._reader.rows(query, app, after, bad, app, limit)

    async def count(self, app: str, selector: Selector = EVERYTHING) -> int:
        if app in self._purge.hidden:
            return 0
        rows = await self._reader.planned(lambda number: count_of(app, selector, drive_of(app, selector, number)))
        return int(rows[0][0]) if rows else 0

    async def find_aliases(self, app: str, names: Sequence[str]) -> dict[str, str]:
        if app in self._purge.hidden:
            return {}
        asked = json.dumps(list(names))
        rows = await self._reader.rows(ALIASES, asked, app)
        return {text(name): text(device) for name, device in rows}

    async def find_alias(self, app: str, alias: str) -> str | None:
        if app in self._purge.hidden:
            return None
        row = self._reader.row("SELECT name FROM device WHERE app=? AND name=?", app, alias) or self._reader.row(
            "SELECT device FROM alias WHERE app=? AND alias=?", app, alias
        )
        return None if row is None else text(row[0])

    async def firmware(self, app: str, version: str) -> Firmware | None:
        row = self._reader.row("SELECT version, body FROM firmware WHERE app=? AND version=?", app, version)
        return None if row is None else self._firmware(app, row)

    def _firmware(self, app: str, row: Row) -> Firmware:
        version, body = text(row[0]), row[1]
        key, what = ("firmware", app, version), f"firmware {version} of app {app}"
        return self._record(key, what, Firmware, body, lambda f: (f.app, f.version) == (app, version))

    async def firmwares(self, app: str) -> list[Firmware]:
        query = "SELECT version, body FROM firmware WHERE app=? ORDER BY sequence DESC, version DESC"
        found: list[Firmware] = []
        for row in await self._reader.rows(query, app):
            with contextlib.suppress(UnreadableError):
                found.append(self._firmware(app, row))
        return found

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        passed = 0
        error: UnreadableError | None = None
        while (row := self._reader.row(BY_DIGEST, app, sha256, passed)) is not None:
            try:
                return self._firmware(app, row)
            except UnreadableError as unreadable_one:
                passed, error = passed + 1, unreadable_one
        if error is not None:
            raise error
        return None

    async def deployment(self, deployment_id: str) -> Deployment | None:
        row = self._reader.row("SELECT id, app, device, body FROM deployment WHERE id=?", deployment_id)
        return None if row is None or text(row[1]) in self._purge.hidden else self._deployment(row)

    def _deployment(self, row: Row) -> Deployment:
        deployment_id, app, device = map(text, row[:3])
        key, names = ("deployment", app, device, deployment_id), (app, device, deployment_id)
        what = f"deployment {deployment_id} of device {device} of app {app}"
        return self._record(key, what, Deployment, row[3], lambda d: (d.app, d.device, d.id) == names)

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        if app in self._purge.hidden:
            return []
        query = f"{DEPLOYMENTS} AND id NOT IN (SELECT value FROM json_each(?)) {NEWEST} LIMIT ?"  # noqa: S608
        return await self._whole(
            ("deployment", app, device), lambda bad: self._reader.rows(query, app, device, bad, limit), self._deployment
        )

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        if app in self._purge.hidden:
            return []
        query = "SELECT number, body FROM history WHERE app=? AND device=? ORDER BY number DESC, id DESC LIMIT ?"
        found: list[HistoryEntry] = []
        for number, body in await self._reader.rows(query, app, device, limit):
            try:
                entry = decode(f"entry {number} in the history of device {device} of app {app}", HistoryEntry, body)
                found.append(msgspec.structs.replace(entry, number=number))
            except UnreadableError as error:
                self._damage.found(error, "history", app, device, str(number))
        return found

    async def users_of(self, app: str, version: str) -> list[str]:
        if app in self._purge.hidden:
            return []
        return [text(row[0]) for row in await self._reader.rows(USERS, app, version)]

    async def document(self, collection: str, key: str) -> bytes | None:
        row = self._reader.row("SELECT value FROM document WHERE collection=? AND key=?", collection, key)
        return None if row is None else bytes(row[0])

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        # One range of the primary key: a scan of the collection would read every value of an audit log to list one app.
        where, values = ("key>?", [after]) if after >= prefix else ("key>=?", [prefix])
        if beyond := successor(prefix):
            where, values = f"{where} AND key<?", [*values, beyond]
        query = f"SELECT key, value FROM document WHERE collection=? AND {where} ORDER BY key LIMIT ?"  # noqa: S608
        rows = await self._reader.rows(query, collection, *values, limit)
        return [(text(row[0]), bytes(row[1])) for row in rows]

    async def collections(self) -> list[str]:
        return [text(row[0]) for row in await self._reader.rows("SELECT DISTINCT collection FROM document ORDER BY 1")]

    async def scopes(self, *, after: str = "", limit: int = 1000) -> list[str]:
        query = "SELECT DISTINCT scope FROM count WHERE scope>? AND number<>0 ORDER BY 1 LIMIT ?"
        return [text(row[0]) for row in await self._reader.rows(query, after, limit)]

    async def counts(self, scope: str) -> dict[str, int]:
        rows = await self._reader.rows("SELECT name, number FROM count WHERE scope=? AND number<>0", scope)
        return {text(row[0]): int(row[1]) for row in rows}
