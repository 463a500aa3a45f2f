"""Writing what was read: records with their metadata and audit entries, only if nobody changed them meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import msgspec

from dfud.api import App, Change, ConflictError, Device, Metadata, Store
from dfud.registry import audit
from dfud.registry.rules import RecordLimits, check_metadata_untrusted, what_changed
from dfud.registry.status import timestamp

TRIES = 8


class Precondition(msgspec.Struct, frozen=True):
    """What a user read before he asked for a change; empty: anything."""

    uid: str = ""
    resource_version: str = ""

    def __bool__(self) -> bool:
        return bool(self.uid or self.resource_version)


class Overtaken(Exception):
    """What was read has changed before it was written back: nothing was written."""


class Writer:
    """Writes records with their audit entries, and makes their metadata."""

    def __init__(self, store: Store, now: Callable[[], float], limits: RecordLimits) -> None:
        self._store = store
        self._now = now
        self._limits = limits

    def new_metadata(self, given: Metadata, app: str) -> Metadata:
        check_metadata_untrusted(given, self._limits)
        return Metadata(
            name=given.name,
            application=app,
            uid=str(uuid.uuid4()),
            creation_timestamp=timestamp(self._now()),
            generation=1,
            resource_version=str(uuid.uuid4()),
            finalizers=given.finalizers,
            labels=given.labels,
            annotations=given.annotations,
        )

    def next_metadata(self, old: Metadata, given: Metadata, spec_changed: bool) -> Metadata:
        check_condition(old, Precondition(given.uid, given.resource_version), old.name)
        check_metadata_untrusted(given, self._limits, old)
        return msgspec.structs.replace(
            old,
            generation=old.generation + spec_changed,
            resource_version=str(uuid.uuid4()),
            finalizers=given.finalizers,
            labels=given.labels,
            annotations=given.annotations,
        )

    def deleting(self, old: Metadata) -> Metadata:
        return msgspec.structs.replace(
            old, deletion_timestamp=timestamp(self._now()), resource_version=str(uuid.uuid4())
        )

    async def commit(self, changes: list[Change], by: str, what: str, target: str, detail: str = "") -> None:
        await self._store.commit([*changes, audit.entry(self._now(), by, what, target, detail)])

    async def write(self, changes: list[Change], by: str, what: str, target: str, detail: str = "") -> None:
        """Commit what expects the version that was read. Raises Overtaken."""
        try:
            await self.commit(changes, by, what, target, detail)
        except ConflictError as error:
            raise Overtaken(str(error)) from error


async def retried(once: Callable[[], Awaitable[None]], what: str) -> None:
    """Read and write until nobody was in between; a user's own precondition fails when it is read again."""
    told = ""
    for _ in range(TRIES):
        try:
            await once()
        except Overtaken as error:
            told = str(error)
        else:
            return
    raise ConflictError(told or f"{what} is being changed by others; try again")


def check_condition(old: Metadata, condition: Precondition, what: str) -> None:
    if condition.uid not in ("", old.uid) or condition.resource_version not in ("", old.resource_version):
        raise ConflictError(f"{what} has changed since it was read")


def no_condition(condition: Precondition, what: str) -> None:
    if condition:
        raise ConflictError(
            f"the record of {what} cannot be read: replace or delete it without uid and resourceVersion"
        )


def same_metadata(old: Metadata, given: Metadata) -> bool:
    return (old.labels, old.annotations, old.finalizers) == (given.labels, given.annotations, given.finalizers)


def detail_of(old: App | Device, new: App | Device) -> str:
    """Say what a change is about, without values that may be secrets."""
    told = [what_changed(old.spec, new.spec)]
    told += [
        f"metadata.{name}"
        for name in ("labels", "annotations", "finalizers")
        if getattr(old.metadata, name) != getattr(new.metadata, name)
    ]
    return ", ".join(filter(None, told))
