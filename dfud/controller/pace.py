"""How fast a rollout tells devices: so many a minute, so many at one time. In memory; a restart starts slowly.

What other processes told is taken off here, too, so that the rate holds over all of them: each may run ahead by what a bucket
holds until it hears of the others, and owes that then.
"""

from __future__ import annotations

import msgspec

from dfud.model.desired import Held
from dfud.model.rollout import Plan

BURST_S = 10.0  # so much of a minute's devices may be told at once


class _Bucket(msgspec.Struct):
    tokens: float
    at_s: float


class Pace:
    """now_s: any clock that goes forward; a clock that is set back gives nobody anything."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._under_way: dict[str, int] = {}
        self._taken: dict[str, int] = {}

    def under_way(self, uid: str, number: int) -> None:
        """Take what was counted: how many devices of the rollout are being updated."""
        self._under_way[uid] = number

    def moved(self, uid: str, difference: int) -> None:
        self._under_way[uid] = self._under_way.get(uid, 0) + difference

    def held(self, uid: str, plan: Plan, now_s: float) -> Held | None:
        """Say why one more device is not told now, or None."""
        if plan.transfers and self._under_way.get(uid, 0) + self._taken.get(uid, 0) >= plan.transfers:
            return Held("ceiling")
        if plan.rate and (bucket := self._filled(uid, plan, now_s)).tokens < 1.0:
            return Held("rate", now_s + (1.0 - bucket.tokens) * 60.0 / plan.rate)
        return None

    def take(self, uid: str, plan: Plan, now_s: float) -> Held | None:
        """Take a place for one more device, which counts at once and not only when it is stored; or say why there is none.

        give_back() has to follow when it is counted, or was not stored. What that spent of the rate is not given back.
        """
        if (held := self.held(uid, plan, now_s)) is not None:
            return held
        self._taken[uid] = self._taken.get(uid, 0) + 1
        if plan.rate:
            self._filled(uid, plan, now_s).tokens -= 1.0
        return None

    def elsewhere(self, uid: str, plan: Plan, number: int, now_s: float) -> None:
        """Another process has told so many devices: they count for the rate here, too."""
        if plan.rate:
            bucket = self._filled(uid, plan, now_s)
            bucket.tokens = max(-float(plan.rate), bucket.tokens - number)

    def give_back(self, uid: str) -> None:
        if uid in self._taken:
            self._taken[uid] -= 1

    def forget(self, uid: str) -> None:
        self._buckets.pop(uid, None)
        self._under_way.pop(uid, None)
        self._taken.pop(uid, None)

    def _filled(self, uid: str, plan: Plan, now_s: float) -> _Bucket:
        bucket = self._buckets.get(uid)
        if bucket is None:
            bucket = self._buckets[uid] = _Bucket(1.0, now_s)
        gained = max(0.0, now_s - bucket.at_s) * plan.rate / 60.0
        bucket.tokens = min(max(1.0, plan.rate * BURST_S / 60.0), bucket.tokens + gained)
        bucket.at_s = now_s
        return bucket
