"""Names of records that are made in great numbers."""

from __future__ import annotations

import random
from collections.abc import Callable

_MS_MASK = (1 << 48) - 1
_RANDOM_BITS = 62
_VARIANT = 2 << 62


def ordered_id(now_s: float) -> str:
    """Return a new UUID of version 7 without its hyphens (RFC 9562 section 5.7, and 6.2 method 3: 12 bits of the millisecond).

    Those that are made later sort behind: an index takes them at its end, where random ones touch a page each.

    now_s: since the epoch.
    """
    return ids_of(now_s)()


def ids_of(now_s: float) -> Callable[[], str]:
    """Return what makes any number of ordered_id() of one moment."""
    whole_ms, part = divmod(max(0.0, now_s) * 1000.0, 1.0)
    high = f"{(int(whole_ms) & _MS_MASK) << 16 | 7 << 12 | int(part * 4096):016x}"
    draw = random.getrandbits
    return lambda: f"{high}{draw(_RANDOM_BITS) | _VARIANT:016x}"
