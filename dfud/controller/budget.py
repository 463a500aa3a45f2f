"""How much one device may write that stays: a bucket that fills up again with time."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import trio

from dfud.api import Cache, StoreError

log = logging.getLogger("dfud.controller")
HOUR_S = 3600.0
UNTOLD = 0.1  # of it may be used before other processes hear of it: no update comes near that


class _Bucket(msgspec.Struct, gc=False):
    """One for each device: nothing that a collection of garbage has to look at. at: when it was filled last."""

    left: float
    at: float
    told: bool = False
    untold: int = 0


class Budget:
    """Up to `per_hour` of something in an hour for each device, all of it at once if need be.

    key: of [controller], that says so. devices_max: devices that are told apart; the one that was silent longest begins anew.
    tell: have what was spent counted at other processes, too.
    """

    def __init__(self, per_hour: int, devices_max: int, key: str = "history_per_hour") -> None:
        self._per_hour = per_hour
        self._key = key
        self.tell: Callable[[str, str, int], None] = lambda app, device, number: None
        self._buckets: Cache[tuple[str, str], _Bucket] = Cache(devices_max)

    def spend(self, app: str, device: str, entries: int, now: float | None = None) -> None:
        """Take `entries` off; raise StoreError where they are not left. Then nothing is to be done of what was asked.

        now: on trio's clock, where the caller has asked for it.
        """
        if not entries:
            return
        bucket = self._filled(app, device, trio.current_time() if now is None else now)
        if bucket.left < entries:
            if not bucket.told:
                log.warning("a device changes too often", extra={"app": app, "device": device, "key": self._key})
            bucket.told = True
            raise StoreError(f"the device changes too often; [controller] {self._key}", retryable=True)
        bucket.left -= entries
        bucket.told = bucket.told and bucket.left < self._per_hour / 2
        bucket.untold += entries
        if self._per_hour - bucket.left > self._per_hour * UNTOLD:
            self.tell(app, device, bucket.untold)
            bucket.untold = 0

    def elsewhere(self, app: str, device: str, entries: int) -> None:
        """Another process has spent so many."""
        bucket = self._filled(app, device, trio.current_time())
        bucket.left = max(-float(self._per_hour), bucket.left - entries)

    def _filled(self, app: str, device: str, now: float) -> _Bucket:
        key = (app, device)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = _Bucket(self._per_hour, now)
            self._buckets.put(key, bucket)
            return bucket
        bucket.left = min(self._per_hour, bucket.left + (now - bucket.at) * self._per_hour / HOUR_S)
        bucket.at = now
        return bucket
