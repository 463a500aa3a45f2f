"""How much one device may write that stays: a bucket that fills up again with time."""

from __future__ import annotations

import logging

import trio

from dfud.api import Cache, StoreError

log = logging.getLogger("dfud.controller")
DEVICES_MAX = 100_000
HOUR_S = 3600.0


class _Bucket:
    __slots__ = ("at", "left", "told")

    def __init__(self, left: float) -> None:
        self.left = left
        self.at = trio.current_time()
        self.told = False


class Budget:
    """Up to `per_hour` entries of history in an hour for each device, all of them at once if need be."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._buckets: Cache[tuple[str, str], _Bucket] = Cache(DEVICES_MAX)

    def spend(self, app: str, device: str, entries: int) -> None:
        """Take `entries` off; raise StoreError where they are not left. Then nothing is to be stored of what was said."""
        if not entries:
            return
        key, now = (app, device), trio.current_time()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = _Bucket(self._per_hour)
            self._buckets.put(key, bucket)
        bucket.left = min(self._per_hour, bucket.left + (now - bucket.at) * self._per_hour / HOUR_S)
        bucket.at = now
        if bucket.left < entries:
            if not bucket.told:
                log.warning("a device changes too often", extra={"app": app, "device": device})
            bucket.told = True
            raise StoreError("the device changes too often; [controller] history_per_hour", retryable=True)
        bucket.left -= entries
        bucket.told = bucket.told and bucket.left < self._per_hour / 2
