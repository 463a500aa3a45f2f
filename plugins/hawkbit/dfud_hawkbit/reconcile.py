"""Drift: what dfud wants, what hawkBit wants, what the device runs; compared for a whole app, and mended where that is plain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from dfud.api import App, DeviceView, NotFoundError, State
from dfud_hawkbit import records
from dfud_hawkbit.answers import Target
from dfud_hawkbit.client import Refused
from dfud_hawkbit.desire import wish_of
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import FirmwareSet, Link
from dfud_hawkbit.store import HawkbitStore


class Row(msgspec.Struct, rename="camel"):
    """One device where the three differ. action: what reconcile does about it, or why nothing."""

    device: str
    desired: str
    hawkbit: str
    actual: str
    finding: str
    action: str


class Report(msgspec.Struct, rename="camel"):
    devices: int = 0
    in_sync: int = 0
    mended: int = 0
    rows: list[Row] = []


class _Hawkbit(msgspec.Struct):
    """What hawkBit holds of an app's targets: update status, assigned and installed version."""

    status: dict[str, str] = {}
    assigned: dict[str, str] = {}
    installed: dict[str, str] = {}


class Reconciler:
    def __init__(self, store: HawkbitStore) -> None:
        self._store = store
        self._parts = store.parts
        self._records = store.inner

    async def run(self, app_name: str, *, dry_run: bool) -> Report:
        """Compare every device of an app. Raises NotFoundError, and Away or Refused as hawkBit says."""
        app = await self._records.app(app_name)
        if app is None:
            raise NotFoundError(f"no app {app_name}")
        if not dry_run:
            await self._parts.feed.resync()
        hawkbit = await self._read(app_name)
        report = Report(rows=[])
        known: set[str] = set()
        async for view in self._views(app_name):
            target = target_id(app_name, view.device.name)
            known.add(target)
            report.devices += 1
            row = await self._compare(app, view, target, hawkbit)
            if row is None:
                report.in_sync += 1
                continue
            report.rows.append(row)
            if not dry_run and row.action.startswith("will "):
                report.mended += await self._mend(app, view, target, row)
        for target in sorted(set(hawkbit.status) - known):
            found = hawkbit.assigned.get(target, "")
            row = Row(
                target, "", found, "", "target-without-device", "none: make the device in dfud, or delete the target"
            )
            report.rows.append(row)
        return report

    async def _views(self, app: str) -> AsyncIterator[DeviceView]:
        after = ""
        while found := await self._records.devices(app, limit=500, after=after):
            for view in found:
                yield view
            after = found[-1].device.name

    async def _read(self, app: str) -> _Hawkbit:
        client = self._parts.client
        out = _Hawkbit({}, {}, {})
        query = f"controllerId=={app}:*"
        async for rows in client.pages("reconcile", "/targets", Target, q=query, sort="id:ASC"):
            out.status |= {row.controller_id: row.update_status for row in rows}
        sets = await self._records.documents(records.SETS, prefix=f"{app}/", limit=1_000_000)
        for key, value in sets:
            known = msgspec.msgpack.decode(value, type=FirmwareSet)
            if not known.set_id:
                continue
            for place, what in ((out.assigned, "assignedTargets"), (out.installed, "installedTargets")):
                path = f"/distributionsets/{known.set_id}/{what}"
                try:
                    async for rows in client.pages("reconcile", path, Target, sort="id:ASC"):
                        place |= {row.controller_id: records.split(key)[1] for row in rows}
                except Refused as refused:
                    if refused.status != 404:
                        raise
        return out

    async def _compare(self, app: App, view: DeviceView, target: str, hawkbit: _Hawkbit) -> Row | None:
        key = records.device_key(app.name, view.device.name)
        link = await records.get(self._records, records.LINKS, key, Link) or Link()
        own = wish_of(view.device.spec)
        desired = own.version if own.there else wish_of(app.spec).version
        assigned, installed = hawkbit.assigned.get(target, ""), hawkbit.installed.get(target, "")
        running = None
        if view.actual is not None:
            running = await self._records.firmware_by_digest(app.name, view.actual.sha256)
        actual = running.version if running is not None else ""
        shown = view.actual.version if view.actual is not None else ""

        def row(finding: str, action: str) -> Row:
            return Row(view.device.name, desired, assigned, shown, finding, action)

        if link.problem:
            return row("refused", f"none: {link.problem}")
        if target not in hawkbit.status:
            return row("target-missing", "will make the target")
        if link.action:
            if desired != link.version and own.there:
                return row("desired-differs", "will read the open action again")
            return None
        if hawkbit.status[target] == "pending":
            if actual and actual != assigned:
                return row("stuck", "will tell hawkBit what runs, and assign again")
            return row("stuck", "none: assign another distribution set in hawkBit, or delete the target")
        newest = view.deployment
        if newest is not None and newest.blocks and newest.version == desired:
            return (
                None if newest.state is State.CANCELLED else row("failed-here", "none: `dfuctl retry` tries once more")
            )
        if desired and own.there and assigned != desired:
            return row("desired-differs", "will assign what dfud wants" if actual != desired else "will tell what runs")
        if actual and installed != actual and not (newest is not None and not newest.final):
            return row("installed-differs", "will tell what runs")
        return None

    async def _mend(self, app: App, view: DeviceView, target: str, row: Row) -> int:
        key = records.device_key(app.name, view.device.name)
        link = await records.get(self._records, records.LINKS, key, Link) or Link()
        match row.finding:
            case "target-missing":
                link = Link()
            case "stuck":
                running = await self._records.firmware_by_digest(app.name, view.actual.sha256) if view.actual else None
                place = records.firmware_key(app.name, running.version) if running is not None else ""
                known = await records.get(self._records, records.SETS, place, FirmwareSet)
                if known is None or not known.set_id:
                    row.action = "none: hawkBit does not have what runs"
                    return 0
                path = f"/distributionsets/{known.set_id}/assignedTargets"
                await self._parts.client.mgmt("reconcile", "POST", path, [{"id": target}], offline="true")
                link = msgspec.structs.replace(link, wish="", deployment="", installed="")
            case _:
                link = msgspec.structs.replace(link, wish="", installed="")
        work = self._parts.worker.work
        work.hold([key])
        try:
            await self._records.commit([records.put(records.LINKS, key, link), records.dirty(key)])
        finally:
            self._parts.devices.look.add(key)
            work.release({key: 0.0})
        return 1


def plain(report: Report) -> Any:
    return msgspec.to_builtins(report)
