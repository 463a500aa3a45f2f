"""The fleet in numbers: every device is counted where it stands, in the commit that brings it there. Nothing is scanned.

What is kept in memory are copies for /metrics and the crashes that have a record already; losing them loses nothing. Of two processes
that add to the record of one crash at the same moment the later one's counts: a name may be left out of `versions` or `devices` then,
until that device says it again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio

from dfud.api import (
    Actual,
    AddCounts,
    Aged,
    AppChanged,
    Bus,
    Cache,
    Change,
    DeleteDocument,
    Deployment,
    DeviceStateChanged,
    DocumentChanged,
    Firmware,
    Missed,
    NotFoundError,
    PutDocument,
    Store,
    contained,
    read_record,
)
from dfud.model.crashes import Crash
from dfud.model.kinds import APP
from dfud.model.tally import (
    LOST,
    OTHER,
    adoption,
    crash_in,
    fleet_scope,
    folded,
    moved,
    of_kind,
    seen_within,
    tally_of,
)
from dfud.model.times import time_of
from dfud.wire.messages import code_name

CRASHES = "crash"  # <app>/<fingerprint> -> CrashRecord
UNPUBLISHED_MAX = 50  # versions that nobody published, of an app, that are counted one by one
CRASHES_MAX = 500  # of an app; those beyond are counted as one
NAMED_MAX = 10
TEXT_MAX = 2048
TOP = 10
REFRESH_S = 5.0
FOLD_S = 3600.0
PAGE = 1000
APPS_MAX = 10_000


class CrashRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A crash as it was seen first. versions: in the order in which they showed it; devices: the first that did.

    text, record: what the first device said, as it said it.
    """

    fingerprint: str
    title: str
    since_s: float
    versions: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    text: str = ""
    record: bytes = b""
    deployment: str = ""


class Fleet:
    """image: returns the firmware of an app by its SHA-256; now: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        image: Callable[[str, str], Awaitable[Firmware | None]],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._image = image
        self._now = now
        self._counts: dict[str, dict[str, int]] = {}
        self._crashes: Cache[str, dict[str, CrashRecord]] = Cache(APPS_MAX)
        self._stale: set[str] = set()
        self._gone: set[str] = set()
        self._all_stale = True  # which apps there are, too
        bus.subscribe(AppChanged, self._app_changed)
        bus.subscribe(DeviceStateChanged, lambda e: self._stale.add(e.app))
        bus.subscribe(DocumentChanged, self._document_changed)
        bus.subscribe(Missed, lambda e: self._missed())
        bus.subscribe(Aged, lambda e: self._missed())

    def _missed(self) -> None:
        self._crashes.forget_all()
        self._all_stale = True

    def _document_changed(self, event: DocumentChanged) -> None:
        if event.collection == CRASHES:
            self._crashes.forget(event.key.partition("/")[0])

    def _app_changed(self, event: AppChanged) -> None:
        if event.deleted:
            self._counts.pop(event.app, None)
            self._crashes.forget(event.app)
            self._stale.discard(event.app)
            self._gone.add(event.app)
        else:
            self._stale.add(event.app)

    # Counting

    async def noted(self, actual: Actual, deployment: Deployment | None) -> tuple[Actual, list[Change]]:
        """Return what a device has said with the counters that it is in now, and what changes them; to be committed together.

        actual.tally: where it was counted till now. deployment: its newest one.
        """
        found = crash_in(actual, deployment)
        changes: list[Change] = []
        fingerprint = ""
        if found is not None:
            fingerprint, changes = await self._crashed(actual, deployment, *found)
        version, seen = actual.version, actual.of(APP) if actual.program is not None else None
        if f"version/{version}" not in actual.tally:
            version = await self._version(actual, "version")
        app = await self._version(seen, "app") if seen is not None and seen.version else ""
        code = (
            code_name(deployment.code, deployment.state) if deployment is not None and deployment.state in LOST else ""
        )
        tally = tally_of(version, deployment, actual.seen_s, code, fingerprint, app)
        if tally == actual.tally:
            return actual, changes
        change = moved(actual.tally, tally, self._now())
        if change:
            changes.append(AddCounts(fleet_scope(actual.app), change))
            self._stale.add(actual.app)
        return msgspec.structs.replace(actual, tally=tally), changes

    def moved(self, app: str) -> None:
        """Counters of an app change with a commit to come: read them again for /metrics."""
        self._stale.add(app)

    def left(self, actual: Actual | None) -> list[Change]:
        """Return what changes when a device is deleted that said this last."""
        if actual is None or not actual.tally:
            return []
        self._stale.add(actual.app)
        return [AddCounts(fleet_scope(actual.app), moved(actual.tally, (), self._now()))]

    async def _version(self, actual: Actual, counter: str) -> str:
        """Return the version that a device is counted under: of those that nobody published there may be any number."""
        if f"{counter}/{actual.version}" in actual.tally:
            return actual.version
        if await self._image(actual.app, actual.sha256) is not None:
            return actual.version
        counted = of_kind(self._counts.get(actual.app, {}), counter)
        return actual.version if actual.version in counted or len(counted) < UNPUBLISHED_MAX else OTHER

    async def _crashed(
        self, actual: Actual, deployment: Deployment | None, crash: Crash, version: str
    ) -> tuple[str, list[Change]]:
        known = await self._records(actual.app)
        record = known.get(crash.fingerprint)
        if record is None:
            if len(known) >= CRASHES_MAX:
                return OTHER, []
            both = deployment.both if deployment is not None else ()
            ours = next((d for d in both if d.version == version), None)
            record = CrashRecord(
                fingerprint=crash.fingerprint,
                title=crash.title,
                since_s=self._now(),
                text=(ours.text if ours is not None else actual.health.text if actual.health else "")[-TEXT_MAX:],
                record=ours.record if ours is not None else b"",
                deployment=ours.id if ours is not None else "",
            )
        after = msgspec.structs.replace(
            record,
            versions=_with(record.versions, version),
            devices=_with(record.devices, actual.device),
        )
        if known.get(crash.fingerprint) == after and f"crash/{crash.fingerprint}" in actual.tally:
            return crash.fingerprint, []
        known[crash.fingerprint] = after
        key = f"{actual.app}/{crash.fingerprint}"
        return crash.fingerprint, [PutDocument(CRASHES, key, msgspec.json.encode(after), tell=True)]

    async def _records(self, app: str) -> dict[str, CrashRecord]:
        async def read() -> dict[str, CrashRecord]:
            found = {}
            for key, raw in await self._store.documents(CRASHES, prefix=f"{app}/", limit=CRASHES_MAX):
                record = read_record("fleet.crash", raw, CrashRecord, crash=key)
                if record is not None:
                    found[record.fingerprint] = record
            # Somebody else may have read them, and added to them, meanwhile.
            return self._crashes.get(app) or found

        return await self._crashes.load(app, read)

    # Looking

    async def numbers(self, app: str, *, hours: int = 168, points: int = 60) -> dict[str, Any]:
        """Return the fleet of an app in numbers. Raises NotFoundError, StoreError."""
        if await self._store.app(app) is None:
            raise NotFoundError(f"no app {app}")
        counts, now_s = await self._store.counts(fleet_scope(app)), self._now()
        self._counts[app] = counts
        devices = await self._store.count(app)
        versions, apps = of_kind(counts, "version"), of_kind(counts, "app")
        records = await self._records(app)
        crashes = of_kind(counts, "crash")
        return {
            "devices": devices,
            "neverReported": max(0, devices - sum(versions.values())),
            "versions": versions,
            **({"apps": apps} if apps else {}),
            "atRisk": await self._at_risk(app, versions | apps),
            "states": of_kind(counts, "state"),
            "codes": of_kind(counts, "code"),
            "seen": {name: seen_within(counts, now_s, number) for name, number in SEEN.items()},
            "adoption": [
                {"at": time_of(point.at_s), "versions": point.versions}
                for point in adoption(counts, now_s, hours, points)
            ],
            "crashes": [
                _crash_json(records.get(fingerprint), fingerprint, number)
                for fingerprint, number in list(crashes.items())[:TOP]
            ],
        }

    async def _at_risk(self, app: str, versions: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return which recalled versions devices say they run, and how many do."""
        return [
            {"version": firmware.version, "devices": number, "reason": firmware.recalled.reason}
            for firmware in await self._store.firmwares(app)
            if firmware.recalled is not None and (number := versions.get(firmware.version, 0))
        ]

    async def crash(self, app: str, fingerprint: str) -> dict[str, Any]:
        """Return one crash with what the first device said. Raises NotFoundError, StoreError."""
        record = (await self._records(app)).get(fingerprint)
        if record is None:
            raise NotFoundError(f"no crash {fingerprint[:40]} in app {app}")
        counts = await self._store.counts(fleet_scope(app))
        found = _crash_json(record, fingerprint, counts.get(f"crash/{fingerprint}", 0))
        return found | {"text": record.text, "record": record.record.hex(), "deployment": record.deployment}

    def counted(self) -> dict[str, dict[str, int]]:
        """Return the counters of each app as they were read last, for /metrics."""
        return self._counts

    # Keeping

    async def run(self) -> None:
        """Read the counters again that have changed, and fold old hours, until cancelled."""
        fold_at = trio.current_time()
        while True:
            if self._all_stale:
                await self._look_at_all()
            while self._gone:
                await self._forget(self._gone.pop())
            stale, self._stale = self._stale, set()
            for app in stale:
                with contained("fleet.counts", app=app):
                    self._counts[app] = await self._store.counts(fleet_scope(app))
            if trio.current_time() >= fold_at:
                fold_at = trio.current_time() + FOLD_S
                for app in await self._apps():
                    with contained("fleet.fold", app=app):
                        await self._fold(app)
            await trio.sleep(REFRESH_S)

    async def _look_at_all(self) -> None:
        """Find out which apps there are, and read the counters of each again."""
        self._all_stale = False
        try:
            apps = set(await self._apps())
            gone = {key.partition("/")[0] for key in await self._keys("")} - apps
        except BaseException:
            self._all_stale = True
            raise
        self._stale |= apps
        self._gone |= gone
        for app in set(self._counts) - apps:
            del self._counts[app]

    async def _keys(self, prefix: str) -> list[str]:
        found: list[str] = []
        while page := await self._store.documents(CRASHES, prefix=prefix, after=found[-1] if found else "", limit=PAGE):
            found += [key for key, _ in page]
        return found

    async def _forget(self, app: str) -> None:
        """Forget the crashes of an app that is deleted."""
        with contained("fleet.forget", app=app):
            for key in await self._keys(f"{app}/"):
                with suppress(NotFoundError):
                    await self._store.commit([DeleteDocument(CRASHES, key)])

    async def _apps(self) -> list[str]:
        found: list[str] = []
        while page := await self._store.apps(limit=PAGE, offset=len(found)):
            found += [app.name for app in page]
            if len(page) < PAGE:
                break
        return found

    async def _fold(self, app: str) -> None:
        """Move old hours into days. What was read may be older than what is stored: only differences are added."""
        change = folded(await self._store.counts(fleet_scope(app)), self._now())
        if change:
            await self._store.commit([AddCounts(fleet_scope(app), change)])


SEEN = {"hour": 1, "day": 24, "week": 168}


def _with(names: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(names) if name in names or len(names) >= NAMED_MAX else (*names, name)


def _crash_json(record: CrashRecord | None, fingerprint: str, devices: int) -> dict[str, Any]:
    found: dict[str, Any] = {"fingerprint": fingerprint, "devices": devices}
    if record is not None:
        found |= {
            "title": record.title,
            "since": time_of(record.since_s),
            "sinceVersion": record.versions[0] if record.versions else "",
            "versions": list(record.versions),
            "among": list(record.devices),
        }
    return found
