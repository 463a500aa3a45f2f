"""Reading: what is asked as SQL, and rows as the model's structs. A record that cannot be read costs itself only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dfud.api import (
    Actual,
    App,
    Deployment,
    Device,
    DeviceView,
    Firmware,
    HistoryEntry,
    Selector,
    Store,
    StoreError,
    UnreadableError,
)
from dfud_local.damage import Damage
from dfud_local.encoding import decode, text, unreadable
from dfud_local.reader import Reader, Row

T = TypeVar("T")
EVERYTHING = Selector()


class ReadingStore(Store):
    """The reading half of the local store; who inherits opens and closes the reader."""

    def __init__(self) -> None:
        self._damage = Damage()
        self._open_reader: Reader | None = None

    @property
    def _reader(self) -> Reader:
        if self._open_reader is None:
            raise StoreError("the store is not open")
        return self._open_reader

    async def app(self, name: str) -> App | None:
        row = self._reader.row("SELECT body FROM app WHERE name=?", name)
        return None if row is None else self._app(name, row[0])

    def _app(self, name: str, body: bytes) -> App:
        try:
            app = decode(f"app {name}", App, body)
            if app.name != name:
                raise unreadable(f"app {name}", "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, "app", name)
            raise
        self._damage.read("app", name)
        return app

    async def apps(self, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0) -> list[App]:
        where, values = _where(selector, "SELECT 1 FROM app_label WHERE app=a.name")
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
        row = self._reader.row(_DEVICE, app, device)
        return None if row is None else self._view(app, device, row)

    def _view(self, app: str, name: str, row: Row) -> DeviceView:
        body, actual, newest = row[:3]
        what = f"device {name} of app {app}"
        try:
            device = decode(what, Device, body)
            if (device.app, device.name) != (app, name):
                raise unreadable(what, "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, "device", app, name)
            raise
        self._damage.read("device", app, name)
        return DeviceView(device, self._actual(app, name, actual), self._newest(app, name, newest))

    def _actual(self, app: str, device: str, body: bytes | None) -> Actual | None:
        """What cannot be read was not said: the device says it again."""
        try:
            return None if body is None else decode(f"what device {device} of app {app} said", Actual, body)
        except UnreadableError as error:
            self._damage.found(error, "actual", app, device)
            return None

    def _newest(self, app: str, device: str, body: bytes | None) -> Deployment | None:
        """Return the newest deployment that can be read, which is most probably the one whose body is given."""
        with contextlib.suppress(UnreadableError):
            return None if body is None else decode("the newest deployment", Deployment, body)
        passed = 0
        while (row := self._reader.row(_DEPLOYMENTS + _NEWEST + "LIMIT 1 OFFSET ?", app, device, passed)) is not None:
            with contextlib.suppress(UnreadableError):
                return self._deployment(row)
            passed += 1
        return None

    async def devices(
        self, app: str, selector: Selector = EVERYTHING, *, limit: int = 1000, offset: int = 0, after: str = ""
    ) -> list[DeviceView]:
        where, values = _where(selector, "SELECT 1 FROM device_label WHERE app=d.app AND device=d.name")
        query = f"""SELECT {_VIEW}, d.name {_FROM}
            WHERE d.app=? AND d.name>? AND d.name NOT IN (SELECT value FROM json_each(?)) AND {where}
            ORDER BY d.name LIMIT ? OFFSET ?"""  # noqa: S608 - values are bound
        return await self._whole(
            ("device", app),
            lambda bad: self._reader.rows(query, app, after, bad, *values, limit, offset),
            lambda row: self._view(app, text(row[3]), row),
        )

    async def find_alias(self, app: str, alias: str) -> str | None:
        row = self._reader.row("SELECT name FROM device WHERE app=? AND name=?", app, alias) or self._reader.row(
            "SELECT device FROM alias WHERE app=? AND alias=?", app, alias
        )
        return None if row is None else text(row[0])

    async def firmware(self, app: str, version: str) -> Firmware | None:
        row = self._reader.row("SELECT version, body FROM firmware WHERE app=? AND version=?", app, version)
        return None if row is None else self._firmware(app, row)

    def _firmware(self, app: str, row: Row) -> Firmware:
        version, body = text(row[0]), row[1]
        what = f"firmware {version} of app {app}"
        try:
            firmware = decode(what, Firmware, body)
            if (firmware.app, firmware.version) != (app, version):
                raise unreadable(what, "it holds another name")
        except UnreadableError as error:
            self._damage.found(error, "firmware", app, version)
            raise
        return firmware

    async def firmwares(self, app: str) -> list[Firmware]:
        query = "SELECT version, body FROM firmware WHERE app=? ORDER BY sequence DESC, version DESC"
        found: list[Firmware] = []
        for row in await self._reader.rows(query, app):
            with contextlib.suppress(UnreadableError):
                found.append(self._firmware(app, row))
        return found

    async def firmware_by_digest(self, app: str, sha256: str) -> Firmware | None:
        query = "SELECT version, body FROM firmware WHERE app=? AND sha256=? ORDER BY sequence DESC LIMIT 1 OFFSET ?"
        passed = 0
        error: UnreadableError | None = None
        while (row := self._reader.row(query, app, sha256, passed)) is not None:
            try:
                return self._firmware(app, row)
            except UnreadableError as unreadable_one:
                passed, error = passed + 1, unreadable_one
        if error is not None:
            raise error
        return None

    async def deployment(self, deployment_id: str) -> Deployment | None:
        row = self._reader.row("SELECT id, app, device, body FROM deployment WHERE id=?", deployment_id)
        return None if row is None else self._deployment(row)

    def _deployment(self, row: Row) -> Deployment:
        deployment_id, app, device = map(text, row[:3])
        try:
            return decode(f"deployment {deployment_id} of device {device} of app {app}", Deployment, row[3])
        except UnreadableError as error:
            self._damage.found(error, "deployment", app, device, deployment_id)
            raise

    async def deployments(self, app: str, device: str, *, limit: int = 20) -> list[Deployment]:
        query = f"{_DEPLOYMENTS} AND id NOT IN (SELECT value FROM json_each(?)) {_NEWEST} LIMIT ?"  # noqa: S608
        return await self._whole(
            ("deployment", app, device), lambda bad: self._reader.rows(query, app, device, bad, limit), self._deployment
        )

    async def history(self, app: str, device: str, *, limit: int = 100) -> list[HistoryEntry]:
        query = "SELECT id, body FROM history WHERE app=? AND device=? ORDER BY number DESC, id DESC LIMIT ?"
        found: list[HistoryEntry] = []
        for number, body in await self._reader.rows(query, app, device, limit):
            try:
                found.append(
                    decode(f"entry {number} in the history of device {device} of app {app}", HistoryEntry, body)
                )
            except UnreadableError as error:
                self._damage.found(error, "history", app, device, str(number))
        return found

    async def users_of(self, app: str, version: str) -> list[str]:
        rows = await self._reader.rows(
            "SELECT name FROM device WHERE app=?1 AND wants=?2 AND wants<>'' "
            "UNION SELECT device FROM deployment WHERE app=?1 AND version=?2 AND open ORDER BY 1 LIMIT 10",
            app,
            version,
        )
        return [text(row[0]) for row in rows]

    async def document(self, collection: str, key: str) -> bytes | None:
        row = self._reader.row("SELECT value FROM document WHERE collection=? AND key=?", collection, key)
        return None if row is None else bytes(row[0])

    async def documents(
        self, collection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        rows = await self._reader.rows(
            "SELECT key, value FROM document WHERE collection=? AND key>? AND substr(key, 1, ?)=? ORDER BY key LIMIT ?",
            collection,
            after,
            len(prefix),
            prefix,
            limit,
        )
        return [(text(row[0]), bytes(row[1])) for row in rows]

    async def counts(self, scope: str) -> dict[str, int]:
        rows = await self._reader.rows("SELECT name, number FROM count WHERE scope=? AND number<>0", scope)
        return {text(row[0]): int(row[1]) for row in rows}


_DEPLOYMENTS = "SELECT id, app, device, body FROM deployment WHERE app=? AND device=? "
_NEWEST = "ORDER BY number DESC, created DESC, id DESC "
_VIEW = (
    "d.body, a.body, "
    "(SELECT body FROM deployment WHERE app=d.app AND device=d.name ORDER BY number DESC, created DESC, id DESC LIMIT 1)"
)
_FROM = "FROM device d LEFT JOIN actual a ON a.app=d.app AND a.device=d.name"
_DEVICE = f"SELECT {_VIEW} {_FROM} WHERE d.app=? AND d.name=?"


def _where(selector: Selector, labels: str) -> tuple[str, list[str]]:
    """Return the SQL condition of a selector, given the query of the labels of one row, and the values to bind."""
    clauses = ["1"]
    values: list[str] = []
    for r in selector.requirements:
        test = f"EXISTS ({labels} AND key=?"
        values.append(r.key)
        if r.operator in ("in", "notin"):
            test += " AND value IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(r.values))
        clauses.append(f"{'NOT ' if r.operator in ('notin', 'absent') else ''}{test})")
    return " AND ".join(clauses), values
