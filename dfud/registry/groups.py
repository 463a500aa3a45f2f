"""Setting the firmware of many devices: a durable job that goes on after a restart, a page of devices at a time.

What a user asks is stored before it is answered. Each page is one commit together with how far the job has come, so a page is
done whole or not at all, and done once. Jobs take turns, so a small one does not wait for a large one.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from itertools import groupby
from typing import Any

import msgspec
import trio

from dfud.api import (
    Bus,
    Change,
    ConflictError,
    DeleteDocument,
    DeviceChanged,
    DocumentChanged,
    Firmware,
    Missed,
    NotFoundError,
    PeerError,
    PutDocument,
    RefusedError,
    Selector,
    SetFirmware,
    Store,
    StoreError,
    Wish,
    contained,
    note,
    parse_selector_untrusted,
    read_record,
)
from dfud.model.kinds import APP, SYSTEM
from dfud.model.text import visible
from dfud.registry import audit, guards
from dfud.registry.rules import RecordLimits, check_spec_untrusted, firmware_shown
from dfud.wire.beside import do_not_run_together

log = logging.getLogger("dfud.registry")
COLLECTION = "group-job"
PAGE = 500  # devices of one commit: a few milliseconds of the writer
TELL_AT_ONCE = 50  # devices that are told of before others have their turn
OPEN_MAX = 100
KEPT_MAX = 200  # that have ended, of all apps
RETRY_S = 2.0
FROM_MAX = 20
DIGITS = 18


class JobState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class GroupJob(msgspec.Struct, frozen=True):
    """One group update. selector: as it was given; firmware None: spec.firmware is removed.

    matched: devices when it was accepted; after: the last one that is done, by name; replaced: what those that were changed
    asked for before, and how many, the rest under "other". problem: why it does not go on.
    """

    id: str
    app: str
    selector: str
    firmware: dict[str, Any] | None
    by: str
    created_s: float
    matched: int = 0
    state: JobState = JobState.RUNNING
    after: str = ""
    changed: int = 0
    unchanged: int = 0
    replaced: dict[str, int] = {}
    ended_s: float = 0.0
    problem: str = ""


class NobodyMatches(RefusedError):
    """A group update is for no device: there is nothing to do, and no job is kept."""


class _Stored(msgspec.Struct, frozen=True):
    """A job and the bytes that say so, which another commit may have replaced."""

    job: GroupJob
    value: bytes


WISHES = {"version": SYSTEM, "app": APP}  # the keys of spec.firmware that name a version, and of which kind


class GroupJobs:
    """All group updates. run() must run for them to go on; without it they are accepted and wait."""

    def __init__(self, store: Store, bus: Bus, now: Callable[[], float], limits: RecordLimits) -> None:
        self._store = store
        self._bus = bus
        self._now = now
        self._limits = limits
        self._wake = trio.Event()
        self._accepting = trio.Lock()
        self._problem: dict[str, str] = {}
        bus.subscribe(DocumentChanged, self._heard)
        bus.subscribe(Missed, lambda e: self._wake.set())

    def _heard(self, event: DocumentChanged) -> None:
        if event.collection == COLLECTION:
            self._wake.set()

    async def accept(
        self, app: str, selector: Selector, text: str, firmware: dict[str, Any] | None, by: str
    ) -> GroupJob:
        """Store that spec.firmware of every device that the selector matches is to be set; return the job.

        Raises PeerError for a firmware that no device could have, NotFoundError without the app or where it is not
        published, NobodyMatches, RefusedError where too many jobs are under way.
        """
        check_spec_untrusted({} if firmware is None else {"firmware": firmware}, self._limits)
        if await self._store.app(app) is None:
            raise NotFoundError(f"no app {app}")
        matched = await self._store.count(app, selector)
        if not matched:
            raise NobodyMatches(f"no device of app {app} matches {visible(text)!r}; nothing was changed")
        async with self._accepting:
            jobs = [stored.job for stored in await self._all()]
            if sum(job.state is JobState.RUNNING for job in jobs) >= OPEN_MAX:
                raise RefusedError(f"{OPEN_MAX} group updates are under way: wait for one to end, or cancel one")
            number = max((int(job.id) for job in jobs), default=0) + 1
            while True:
                published = await published_now(self._store, app, firmware)
                job = GroupJob(
                    id=str(number),
                    app=app,
                    selector=text,
                    firmware=firmware,
                    by=by,
                    created_s=self._now(),
                    matched=matched,
                )
                detail = (
                    f"job {job.id}: {visible(text)}, {matched} devices, spec.firmware -> {firmware_shown(firmware)}"
                )
                entry = audit.entry(self._now(), by, "update-group", app, detail)
                try:
                    await self._store.commit([_put(job), guards.touch(guards.wishes_of(app)), *published, entry])
                except ConflictError:  # another process took the number, or a firmware was deleted
                    number += 1
                else:
                    break
        self._wake.set()
        return job

    async def get(self, app: str, job_id: str) -> GroupJob:
        """Return a job. Raises NotFoundError."""
        return self._shown((await self._get(app, job_id)).job)

    async def _get(self, app: str, job_id: str) -> _Stored:
        found = None
        if _is_id(job_id):
            value = await self._store.document(COLLECTION, _key(job_id))
            found = None if value is None else _read(_key(job_id), value)
        if found is None or found.job.app != app:
            raise NotFoundError(f"no group update {visible(job_id[:40])} in app {app}")
        return found

    async def _unreadable(self, job_id: str) -> DeleteDocument | None:
        """Return what forgets a job that is stored and cannot be read."""
        value = await self._store.document(COLLECTION, _key(job_id)) if _is_id(job_id) else None
        broken = value is not None and _read(_key(job_id), value) is None
        return DeleteDocument(COLLECTION, _key(job_id)) if broken else None

    async def of_app(self, app: str) -> list[GroupJob]:
        """Return the jobs of an app, newest first; the oldest that have ended are forgotten."""
        return [self._shown(stored.job) for stored in reversed(await self._all()) if stored.job.app == app]

    async def cancel(self, app: str, job_id: str, by: str) -> GroupJob:
        """End a job; what it has changed stays. Raises NotFoundError, RefusedError if it has ended.

        One whose record cannot be read does nothing any more, and is forgotten.
        """
        if (broken := await self._unreadable(job_id)) is not None:
            await self._store.commit(
                [broken, audit.entry(self._now(), by, "cancel-group", app, f"job {job_id}: unreadable")]
            )
            problem = "its record could not be read: it is forgotten"
            return GroupJob(
                job_id,
                app,
                selector="",
                firmware=None,
                by=by,
                created_s=self._now(),
                state=JobState.CANCELLED,
                problem=problem,
            )
        while True:
            stored = await self._get(app, job_id)
            job = stored.job
            if job.state is not JobState.RUNNING:
                raise RefusedError(f"group update {job.id} is {job.state} already")
            ended = msgspec.structs.replace(job, state=JobState.CANCELLED, ended_s=self._now())
            detail = f"job {job.id}: {job.changed} of {job.matched} devices were changed before that"
            entry = audit.entry(self._now(), by, "cancel-group", app, detail)
            try:
                await self._store.commit([_put(ended, stored), entry])
            except ConflictError:
                continue  # a page of it was done meanwhile
            return ended

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the jobs, those of before the start first, where this process leads that work, until cancelled."""
        task_status.started()
        while True:
            async with self._store.lead("groups"):
                await self._work()

    async def _work(self) -> None:
        while True:
            self._wake = trio.Event()
            try:
                pause_s = await self._round()
            except StoreError as error:
                if not error.retryable:
                    note("registry.groups", error)
                await trio.sleep(RETRY_S)
                continue
            with trio.move_on_after(pause_s):
                await self._wake.wait()

    async def _round(self) -> float:
        """Do a page of each job; return after how long to look again if nobody asks for more: 0 if there is more to do."""
        found = [stored for stored in await self._all() if stored.job.state is JobState.RUNNING]
        stuck = 0
        for stored in found:
            job = stored.job
            try:
                await self._page(stored)
            except ConflictError:
                continue  # it was cancelled meanwhile
            except Exception as error:
                if isinstance(error, StoreError) and error.retryable:
                    self._problem[job.id] = str(error)
                    raise
                note("registry.groups", error, app=job.app, job=job.id)
                stuck += not await self._fail(stored, f"it could not go on: {visible(str(error)[:200])}")
            self._problem.pop(job.id, None)
        if not found:
            return float("inf")
        return RETRY_S if stuck == len(found) else 0.0

    async def _fail(self, stored: _Stored, problem: str) -> bool:
        """End a job that cannot go on; say whether that was done. Else it is tried again, and holds up no other."""
        with contained("registry.groups", app=stored.job.app, job=stored.job.id) as guard:
            failed = msgspec.structs.replace(stored.job, state=JobState.FAILED, problem=problem)
            with suppress(ConflictError):  # it was cancelled meanwhile
                await self._end(failed, stored, [])
        return guard.error is None

    async def _page(self, stored: _Stored) -> None:
        job = stored.job
        selector = parse_selector_untrusted(job.selector)
        wishes = await self._store.wishes(job.app, selector, limit=PAGE, after=job.after)
        wanted = msgspec.UNSET if job.firmware is None else job.firmware
        other = [wish for wish in wishes if wish.firmware != wanted]
        names = tuple(wish.device for wish in other)
        last = len(wishes) < PAGE
        after = msgspec.structs.replace(
            job,
            state=JobState.DONE if last else JobState.RUNNING,
            after=wishes[-1].device if wishes else job.after,
            changed=job.changed + len(other),
            unchanged=job.unchanged + len(wishes) - len(other),
            replaced=_counted(job.replaced, other),
        )
        changes: list[Change] = [SetFirmware(job.app, names, job.firmware, str(uuid.uuid4()))] if names else []
        async with self._telling(job.app, names):
            if last:
                await self._end(after, stored, changes)
            else:
                await self._store.commit([*changes, _put(after, stored)])

    async def _end(self, job: GroupJob, stored: _Stored, changes: list[Change]) -> None:
        ended = msgspec.structs.replace(job, ended_s=self._now())
        old = ", ".join(f"{count} from {version}" for version, count in sorted(job.replaced.items()))
        shown = f"job {job.id}: {job.changed} devices changed to {firmware_shown(job.firmware)}"
        detail = f"{shown} ({old or 'none'}), {job.unchanged} unchanged" + (f"; {job.problem}" if job.problem else "")
        entry = audit.entry(self._now(), job.by, "group-updated", job.app, detail)
        await self._store.commit([*changes, _put(ended, stored), *await self._outdated(), entry])
        about = {"app": job.app, "job": job.id, "state": str(job.state), "changed": job.changed}
        log.info("group update", extra=about)

    @asynccontextmanager
    async def _telling(self, app: str, names: tuple[str, ...]) -> AsyncIterator[None]:
        """Tell of the devices when the commit has returned, also where nobody waits for it any longer."""
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                for count, name in enumerate(names):
                    self._bus.publish(DeviceChanged(app, name, access=False))
                    if count % TELL_AT_ONCE == TELL_AT_ONCE - 1:
                        await trio.lowlevel.checkpoint()

    async def _outdated(self) -> list[Change]:
        ended = [stored.job for stored in await self._all() if stored.job.state is not JobState.RUNNING]
        return [DeleteDocument(COLLECTION, _key(job.id)) for job in ended[: max(0, len(ended) - KEPT_MAX + 1)]]

    async def _all(self) -> list[_Stored]:
        """Return every job that can be read, oldest first. There are no more than OPEN_MAX + KEPT_MAX."""
        read = (_read(key, value) for key, value in await self._store.documents(COLLECTION))
        return [stored for stored in read if stored is not None]

    def _shown(self, job: GroupJob) -> GroupJob:
        problem = self._problem.get(job.id, "")
        return msgspec.structs.replace(job, problem=problem) if problem else job


def _counted(before: dict[str, int], wishes: list[Wish]) -> dict[str, int]:
    found = dict(before)
    # Most of a page ask for the same.
    for firmware, same in groupby(wishes, lambda wish: wish.firmware):
        shown = firmware_shown(None if firmware is msgspec.UNSET else firmware)
        key = shown if shown in found or len(found) < FROM_MAX else "other"
        found[key] = found.get(key, 0) + sum(1 for _ in same)
    return found


def _key(job_id: str) -> str:
    return f"{int(job_id):0{DIGITS}d}"


def _read(key: str, value: bytes) -> _Stored | None:
    """Return a stored job; None: it cannot be read, or says that it is another."""
    job = read_record("registry.groups", value, GroupJob, key=key)
    if job is None:
        return None
    if not _is_id(job.id) or _key(job.id) != key:
        note("registry.groups", PeerError(f"the group update stored as {key} says that it is {visible(job.id[:40])}"))
        return None
    return _Stored(job, value)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS


def _put(job: GroupJob, stored: _Stored | None = None) -> PutDocument:
    """Return the change to a job that is stored so, or to a new one."""
    value = msgspec.json.encode(job)
    return PutDocument(
        COLLECTION,
        _key(job.id),
        value,
        create=stored is None,
        expect=None if stored is None else stored.value,
        tell=stored is None,
    )


async def jobs_for(store: Store, app: str, version: str) -> list[str]:
    """Return the ids of the group updates of an app that are under way to a version."""
    found = [_read(key, value) for key, value in await store.documents(COLLECTION)]
    jobs = [stored.job for stored in found if stored is not None]
    return [
        job.id
        for job in jobs
        if job.app == app and job.state is JobState.RUNNING and version in versions_of(job.firmware)
    ]


async def published_now(store: Store, app: str, firmware: dict[str, Any] | None) -> list[Change]:
    """Return what to commit with a wish, so that its versions are still published then. Raises NotFoundError where one is not now,
    RefusedError for one of the other kind, and for two that do not run together.
    """
    if not versions_of(firmware):
        return []
    held = await guards.hold(store, guards.deletions_in(app))
    found: dict[str, Firmware] = {}
    for key, kind in WISHES.items():
        version = (firmware or {}).get(key)
        if not isinstance(version, str):
            continue
        record = await store.firmware(app, version)
        if record is None:
            raise NotFoundError(
                f"no firmware {visible(version[:80])} in app {app}: publish it first; `dfuctl firmware list` shows what there is"
            )
        if record.of_kind != kind:
            other = next(name for name, of in WISHES.items() if of == record.of_kind)
            raise RefusedError(
                f"spec.firmware.{key}: {version} is {record.of_kind} firmware, it stands in spec.firmware.{other}"
            )
        found[key] = record
    if len(found) == len(WISHES) and (why := do_not_run_together(found["version"], found["app"])):
        raise RefusedError(f"spec.firmware: {why}")
    return held


def versions_of(firmware: dict[str, Any] | None) -> list[str]:
    """Return the versions that a spec.firmware names, of both kinds."""
    return [version for key in WISHES if isinstance(version := (firmware or {}).get(key), str)]


def with_firmware(spec: dict[str, Any], firmware: dict[str, Any] | None) -> dict[str, Any]:
    """Return the spec with this spec.firmware, None: without any."""
    rest = {key: value for key, value in spec.items() if key != "firmware"}
    return rest if firmware is None else {**rest, "firmware": firmware}
