"""What each step of the work with one hawkBit needs, and a clock for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from dfud.api import Store
from dfud_hawkbit.client import Client
from dfud_hawkbit.config import HawkbitConfig


class Shared(msgspec.Struct, frozen=True):
    """store: the records; look: devices whose action must be read from hawkBit; now: seconds since the epoch."""

    store: Store
    client: Client
    config: HawkbitConfig
    now: Callable[[], float]
    look: set[str] = msgspec.field(default_factory=set)


def steady_clock() -> Callable[[], float]:
    """Return a clock that began with the wall's and only moves forward: what is due must not wait for one that was set back."""
    start_s = time.time() - time.monotonic()
    return lambda: start_s + time.monotonic()
