"""Which firmware has yet to get into hawkBit, or out of it, one after the other; what goes wrong with one costs that one."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dfud.api import Store, StoreError, UnreadableError, note
from dfud_hawkbit import records
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.firmware import FirmwareSync, Unusable
from dfud_hawkbit.http import Away, Refused
from dfud_hawkbit.known import Known
from dfud_hawkbit.records import FirmwareSet
from dfud_hawkbit.work import Work

log = logging.getLogger("dfud.hawkbit")
BATCH = 200


class Publishing:
    """work: firmware ("APP/VERSION") that is due."""

    def __init__(
        self, store: Store, firmware: FirmwareSync, known: Known, config: HawkbitConfig, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._firmware = firmware
        self._known = known
        self._config = config
        self._now = now
        self.work = Work()

    async def load(self) -> None:
        """Take up what an earlier process left undone. Raises StoreError."""
        async for key, _ in records.every(self._store, records.DIRTY_FIRMWARE):
            self.work.poke(key, self._now())
        await self.retry()

    async def retry(self, app: str = "") -> None:
        """Try again what hawkBit refused, of one app or of all."""
        async for key, value in records.every(self._store, records.SETS, f"{app}/" if app else ""):
            known = records.decoded(records.SETS, key, value, FirmwareSet)
            if known is None or not known.set_id or known.problem:
                self.work.poke(key, self._now())

    async def due(self, there: Callable[[str], None]) -> int:
        """Do what is due and return how many that were; `there` hears of each app that has something new in hawkBit.

        Raises Away, StoreError.
        """
        taken = self.work.take(self._now(), BATCH)
        for key, generation in taken:
            try:
                await self._one(key, generation, there)
            except Exception as error:
                if isinstance(error, StoreError) and not isinstance(error, UnreadableError):
                    raise
                note("hawkbit.firmware", error, firmware=key)
                self._known.problems[f"firmware {key}"] = why(error)
                self.work.failed(key, self._now(), self._config.retry_max_s, self._config.retry_max_s)
        return len(taken)

    async def _one(self, key: str, generation: int, there: Callable[[str], None]) -> None:
        app, version = records.split(key)
        try:
            if await self._store.firmware(app, version) is None:
                await self._withdraw(app, version)
            else:
                await self._firmware.push(app, version)
            self._known.problems.pop(f"firmware {key}", None)
            there(app)
        except (Refused, Unusable) as error:
            self._known.problems[f"firmware {key}"] = str(error)
            log.error("a firmware does not get into hawkBit", extra={"firmware": key, "why": str(error)})
        except Away as away:
            if away.everywhere:
                raise
            self._known.problems[f"firmware {key}"] = str(away)
            self.work.failed(key, self._now(), self._config.retry_s, self._config.retry_max_s)
            return
        if self.work.unchanged(key, generation):
            await self._store.commit(await records.forget(self._store, records.DIRTY_FIRMWARE, key))
        self.work.finish(key, generation)

    async def _withdraw(self, app: str, version: str) -> None:
        known = await records.get(self._store, records.SETS, records.firmware_key(app, version), FirmwareSet)
        if known is not None and known.set_id:
            await self._firmware.withdraw(app, version, known)
        await self._store.commit(await records.forget(self._store, records.SETS, records.firmware_key(app, version)))


def why(error: Exception) -> str:
    """Say for people what went wrong; what is no error of ours in words is in the log."""
    return str(error) if isinstance(error, UnreadableError) else f"{type(error).__name__}, see the log"
