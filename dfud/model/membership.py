"""Which devices are in which wave of a rollout: a function of both that never changes, so nothing is kept per device. Pure."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

UNIT = 1 << 64


def place(rollout_uid: str, device: str) -> int:
    """Return the device's place in a rollout, 0 to UNIT - 1, evenly spread and different in every rollout.

    The first eight bytes, big-endian, of BLAKE2b with a digest of 16 bytes over uid, a zero byte and the device's name.
    """
    digest = hashlib.blake2b(b"%s\0%s" % (rollout_uid.encode(), device.encode()), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big")


def share(percent: float) -> int:
    """Return the place below which `percent` of all devices are."""
    return min(UNIT, round(UNIT * percent / 100))


def share_of_count(places: Iterable[int], count: int) -> int:
    """Return the place below which exactly the first `count` of `places` are; all of them if there are no more."""
    first = heapq.nsmallest(count + 1, places)
    return first[count] if len(first) > count else UNIT
