"""Echo, RFC 9175: whether a peer receives what is sent to its address, and whether a request is fresh. Pure.

An Echo value is a time and a MAC over the time and what it is for; nothing is stored until one comes back.
"""

from __future__ import annotations

import hmac
import struct
from collections import OrderedDict

ECHO_LIFETIME_S = 30.0
VERIFIED_S = 3600.0
AMPLIFICATION = (
    3  # RFC 9175, 2.4: what may be sent to an address of unknown reachability, as a multiple of what it sent
)
MAC_BYTES = 8
_TIME = struct.Struct(">d")


class Echo:
    """Makes and checks values. `key`: 16 random bytes or more, new for each process; or one that several processes have, whose clocks
    differ by up to `skew_s`.
    """

    def __init__(self, key: bytes, skew_s: float = 0.0) -> None:
        self._key = key
        self._skew_s = skew_s

    def make(self, purpose: bytes, now_s: float) -> bytes:
        """Return 16 bytes that are good for ECHO_LIFETIME_S, for this purpose only."""
        time = _TIME.pack(now_s)
        return time + hmac.digest(self._key, time + purpose, "sha256")[:MAC_BYTES]

    def check_untrusted(self, value: bytes | None, purpose: bytes, now_s: float) -> float | None:
        """Return when the value was made, if it was made here, for this purpose, and not too long ago."""
        if value is None or len(value) != _TIME.size + MAC_BYTES:
            return None
        time = value[: _TIME.size]
        mac = hmac.digest(self._key, time + purpose, "sha256")[:MAC_BYTES]
        if not hmac.compare_digest(mac, value[_TIME.size :]):
            return None
        (made_s,) = _TIME.unpack(time)
        oldest_s, newest_s = now_s - ECHO_LIFETIME_S - self._skew_s, now_s + self._skew_s
        return float(made_s) if oldest_s <= made_s <= newest_s else None


class Verified:
    """Addresses (with port) that have shown that they receive: at most `count_max`, for VERIFIED_S."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._until_s: OrderedDict[object, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_s)

    def add(self, key: object, now_s: float) -> None:
        self._until_s.pop(key, None)
        self._until_s[key] = now_s + VERIFIED_S
        if len(self._until_s) > self._count_max:
            self._until_s.popitem(last=False)

    def has(self, key: object, now_s: float) -> bool:
        until_s = self._until_s.get(key)
        return until_s is not None and until_s > now_s
