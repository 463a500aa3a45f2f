"""That growth has an end: what has ended long ago is removed, a little at a time beside the work."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
import trio

from dfud.api import Section, Store, TrimDocuments, contained
from dfud.registry import audit

log = logging.getLogger("dfud.retention")
DAY_S = 86400.0
SWEEP_S = 3600.0
PAUSE_S = 0.05  # between two steps, so that a sweep is never more than a part of the work
STEP = 500
YEARS_MAX = 36500


class RetentionConfig(msgspec.Struct, frozen=True):
    history_days: Annotated[
        float,
        msgspec.Meta(
            description="how long the history of devices is kept, and deployments that have ended; of each device the newest stays",
            ge=1,
            le=YEARS_MAX,
            extra={"unit": "days"},
        ),
    ] = 400.0
    audit_days: Annotated[
        float,
        msgspec.Meta(
            description="how long entries of the audit log are kept", ge=1, le=YEARS_MAX, extra={"unit": "days"}
        ),
    ] = 1100.0
    audit_max: Annotated[
        int, msgspec.Meta(description="entries of the audit log that are kept", ge=1000, le=1_000_000_000)
    ] = 1_000_000
    claims_days: Annotated[
        float,
        msgspec.Meta(
            description="how long claim codes that have expired are still listed",
            ge=0,
            le=YEARS_MAX,
            extra={"unit": "days"},
        ),
    ] = 30.0


SECTION = Section("retention", RetentionConfig, "How long dfud keeps what has ended.")


class Retention:
    """claims: forgets the claim codes that expired before a time, seconds since the epoch; returns how many."""

    def __init__(
        self,
        store: Store,
        config: RetentionConfig,
        now: Callable[[], float] = time.time,
        *,
        claims: Callable[[float], Awaitable[int]] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._now = now
        self._claims = claims

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep once an hour until cancelled, where this process leads that work. A sweep that fails is one of many."""
        task_status.started()
        while True:
            async with self._store.lead("retention"):
                while True:
                    await self.sweep()
                    await trio.sleep(SWEEP_S)

    async def sweep(self) -> int:
        """Remove everything that is due; return how many records of devices and claims that were."""
        removed = 0
        for where, part in (("audit", self._audit), ("devices", self._devices), ("claims", self._expired_claims)):
            with contained("daemon.retention", part=where):
                removed += await part()
        if removed:
            log.info("old records were removed", extra={"records": removed})
        return removed

    async def _audit(self) -> int:
        below = audit.key_at(self._now() - self._config.audit_days * DAY_S)
        trim = TrimDocuments(audit.COLLECTION, self._config.audit_max, below)
        while True:
            await self._store.commit([trim])
            rest = await self._store.documents(audit.COLLECTION, limit=1)
            if not rest or rest[0][0] >= below:
                return 0
            await trio.sleep(PAUSE_S)

    async def _devices(self) -> int:
        now_s = self._now()
        before_s = now_s - self._config.history_days * DAY_S
        removed, after = 0, ""
        while True:
            found = await self._store.prune(before_s, now_s, after=after, limit=STEP)
            removed, after = removed + found.removed, found.after
            if not after:
                return removed
            await trio.sleep(PAUSE_S)

    async def _expired_claims(self) -> int:
        if self._claims is None:
            return 0
        return await self._claims(self._now() - self._config.claims_days * DAY_S)
