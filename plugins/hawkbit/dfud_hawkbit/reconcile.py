"""Drift: what dfud wants, what hawkBit wants, what the device runs; compared for a whole app, and mended where that is plain.

What was mended is compared again afterwards: only what no longer differs counts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any

import msgspec
import trio

from dfud.api import App, DeviceView, NotFoundError, State, StoreError, UnreadableError
from dfud_hawkbit import records
from dfud_hawkbit.answers import Named, Target
from dfud_hawkbit.desire import wish_of
from dfud_hawkbit.http import Refused
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import FirmwareSet, Link
from dfud_hawkbit.store import HawkbitStore


class Row(msgspec.Struct, rename="camel"):
    """One device where the three differ. action: what reconcile does about it, or why nothing.

    result: "mended", "under way", or why it still differs; "" where nothing was tried.
    """

    device: str
    desired: str
    hawkbit: str
    actual: str
    finding: str
    action: str
    result: str = ""


class Report(msgspec.Struct, rename="camel"):
    devices: int = 0
    in_sync: int = 0
    mended: int = 0
    failed: int = 0
    rows: list[Row] = []


MENDED = "mended"
UNDER_WAY = "under way"
STILL = "still differs"
STILL_S = 10.0  # what makes no step for so long is left under way
MOST_S = 50.0  # below the time that dfuctl waits for its answer
SOON_S = 1.5  # a step that follows so soon is awaited


class _Hawkbit(msgspec.Struct):
    """What hawkBit holds of an app's targets: update status, assigned and installed version."""

    status: dict[str, str] = {}
    assigned: dict[str, str] = {}
    installed: dict[str, str] = {}


class Reconciler:
    def __init__(self, store: HawkbitStore) -> None:
        self._store = store
        self._sync = store.sync
        self._records = store.inner

    async def run(self, app_name: str, *, dry_run: bool) -> Report:
        """Compare every device of an app. Raises NotFoundError, and Away or Refused as hawkBit says."""
        app = await self._records.app(app_name)
        if app is None:
            raise NotFoundError(f"no app {app_name}")
        if not dry_run:
            await self._sync.feed.resync()
        hawkbit = await self._hawkbit(app_name)
        report = Report(rows=[])
        mending: list[tuple[str, Row]] = []  # under "APP/DEVICE", or "firmware APP/VERSION"
        for name, problem in sorted(self._sync.known.problems.items()):
            if name.startswith(f"firmware {app_name}/"):
                row = Row(name, "", "", "", "refused", f"will try again: {problem}")
                report.rows.append(row)
                mending.append((name, row))
        if not dry_run:
            await self._sync.publishing.retry(app_name)
        known: set[str] = set()
        async with aclosing(self._views(app_name)) as views:
            async for view in views:
                target = target_id(app_name, view.device.name)
                known.add(target)
                report.devices += 1
                try:
                    found = await self._compare(app, view, target, hawkbit)
                except UnreadableError as error:
                    found = Row(view.device.name, "", "", "", "unreadable", f"none: {error}")
                if found is None:
                    report.in_sync += 1
                    continue
                report.rows.append(found)
                if not dry_run and found.action.startswith("will "):
                    try:
                        if await self._mend(app, view, target, found):
                            mending.append((records.device_key(app_name, view.device.name), found))
                    except Refused as refused:
                        found.result = f"{STILL}: {refused}"
        if not dry_run:
            await self._verify(app, mending)
            report.mended = sum(row.result == MENDED for row in report.rows)
            report.failed = sum(row.result not in ("", MENDED, UNDER_WAY) for row in report.rows)
        for target in sorted(set(hawkbit.status) - known):
            there = hawkbit.assigned.get(target, "")
            row = Row(
                target, "", there, "", "target-without-device", "none: make the device in dfud, or delete the target"
            )
            report.rows.append(row)
        return report

    async def _verify(self, app: App, mending: list[tuple[str, Row]]) -> None:
        """Wait for the worker, compare again, and say of each row what became of it."""
        if not mending:
            return
        under_way = await self._worked({key for key, _ in mending})
        targets = [target_id(*records.split(key)) for key, _ in mending if not key.startswith("firmware ")]
        hawkbit = await self._hawkbit(app.name, targets) if targets else _Hawkbit()
        for key, row in mending:
            again = None
            problem = self._sync.known.problems.get(key, "")
            if not key.startswith("firmware "):
                name = records.split(key)[1]
                view = await self._records.device(app.name, name)
                again = await self._compare(app, view, target_id(app.name, name), hawkbit) if view else None
            if key in under_way:
                row.result = UNDER_WAY
            elif again is not None or problem:
                row.result = f"{STILL}: {problem or (again.finding if again is not None else '')}"
            else:
                row.result = MENDED

    async def _worked(self, keys: set[str]) -> set[str]:
        """Wait until the worker has done these, as long as it makes progress; return what is left."""
        worker = self._sync.worker
        left, since_s = keys, trio.current_time()
        with trio.move_on_after(MOST_S):
            while left and trio.current_time() - since_s < STILL_S:
                soon_s = self._store.now() + SOON_S
                now = worker.work.due(keys, soon_s)
                now |= {key for key in keys if self._sync.publishing.work.due([key.removeprefix("firmware ")], soon_s)}
                if len(now) < len(left):
                    since_s = trio.current_time()
                left = now
                await trio.sleep(0.05)
        return left

    async def _hawkbit(self, app: str, only: Collection[str] = ()) -> _Hawkbit:
        try:
            return await self._read(app, only)
        except* StoreError as group:
            # One sentence for the user, out of as many as there were requests under way.
            raise _first(group) from None

    async def _views(self, app: str) -> AsyncGenerator[DeviceView, None]:
        after = ""
        while found := await self._records.devices(app, limit=500, after=after):
            for view in found:
                yield view
            after = found[-1].device.name

    async def _read(self, app: str, only: Collection[str] = ()) -> _Hawkbit:
        client = self._sync.client
        out = _Hawkbit({}, {}, {})
        query = f"controllerId=={app}:*"
        async with aclosing(client.pages("reconcile", "/targets", Target, q=query, sort="id:ASC")) as pages:
            async for rows in pages:
                out.status |= {
                    row.controller_id: row.update_status for row in rows if not only or row.controller_id in only
                }
        sets = await self._records.documents(records.SETS, prefix=f"{app}/", limit=1_000_000)
        known = [(key, records.decoded(records.SETS, key, value, FirmwareSet)) for key, value in sets]
        versions = {found.set_id: records.split(key)[1] for key, found in known if found is not None and found.set_id}

        async def ask(target: str, what: str, place: dict[str, str]) -> None:
            async with limiter:
                try:
                    answer = await client.mgmt("reconcile", "GET", f"/targets/{target}/{what}", expect=(200, 204))
                except Refused as refused:
                    if refused.status != 404:  # deleted while dfud was asking
                        raise
                    return
                if answer.body:
                    found = answer.read(Named, "distribution set of a target")
                    place[target] = versions.get(found.id, f"{found.name}:{found.version}")

        limiter = trio.CapacityLimiter(self._store.config.connections)
        targets = list(out.status)
        for at in range(0, len(targets), 500):
            async with trio.open_nursery() as nursery:
                for target in targets[at : at + 500]:
                    nursery.start_soon(ask, target, "assignedDS", out.assigned)
                    nursery.start_soon(ask, target, "installedDS", out.installed)
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

        if link.foreign:
            return row("of-another-dfud", f"none: {link.problem}")
        if link.problem:
            return row("refused", f"will try again: {link.problem}")
        if target not in hawkbit.status:
            return row("target-missing", "will make the target")
        if link.action:
            if desired != link.version and own.there:
                return row("desired-differs", "will read the open action again")
            return None
        if hawkbit.status[target] == "pending":
            if actual and actual != assigned:
                return row("stuck", "will assign what runs, which frees it")
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

    async def _mend(self, app: App, view: DeviceView, target: str, row: Row) -> bool:
        """Have the worker bring one device in line; return whether there is something that it can do."""
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
                    return False
                path = f"/distributionsets/{known.set_id}/assignedTargets"
                await self._sync.client.mgmt("reconcile", "POST", path, [{"id": target, "type": "forced"}])
                link = msgspec.structs.replace(link, wish="", deployment="", installed="")
            case "refused":
                link = msgspec.structs.replace(link, wish="", problem="")
            case _:
                link = msgspec.structs.replace(link, wish="", installed="")
        work = self._sync.worker.work
        work.hold([key])
        try:
            await self._records.commit([records.put(records.LINKS, key, link), records.dirty(key)])
        finally:
            self._sync.devices.look.add(key)
            work.release({key: 0.0})
        return True


def _first(group: BaseExceptionGroup[StoreError]) -> StoreError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StoreError)
    return error


def plain(report: Report) -> Any:
    return msgspec.to_builtins(report)
