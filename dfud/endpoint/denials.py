"""Who was turned away, and why: a line in the log at a bounded rate, and an event for the metrics. Never the secret."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from dfud.api import Bus, DeviceDenied
from dfud.model.text import visible
from dfud.model.windows import PerMinute

log = logging.getLogger("dfud.endpoint")
NAME_MAX = 64


class Reason(StrEnum):
    """What was wrong. Told to operators only: a peer hears the same in every case."""

    MALFORMED = "malformed"  # credentials that cannot be read, or none
    UNKNOWN = "unknown"  # no such app or device
    DISABLED = "disabled"  # the app or the device is
    PASSWORD = "password"  # not the device's, or no longer  # noqa: S105 - a word, no password
    CERTIFICATE = "certificate"  # no app's anchor issued it, or not for now
    GATEWAY = "gateway"  # the other device does not name this one as its gateway
    CODE = "code"  # a claim code that is not right
    LIMIT = "limit"  # too many wrong ones in this minute


class Denied(Exception):
    """The credentials are not right; the peer is not told why. app, device: as they were named."""

    def __init__(self, reason: Reason, app: str = "", device: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.app = app
        self.device = device


class Denials:
    """Tells the bus of each denial, and the log of each kind once a minute, of `lines` kinds."""

    def __init__(self, bus: Bus, clock: Callable[[], float], lines: int) -> None:
        self._bus = bus
        self._clock = clock
        self._told = PerMinute(1, lines)  # each kind once, and so many kinds
        self._unlogged = 0

    def tell(self, reason: Reason, app: str, device: str, peer: str) -> None:
        app, device = _shown(app), _shown(device)
        self._bus.publish(DeviceDenied(str(reason), app, device, peer))
        if not self._told.take((str(reason), app, device), self._clock()):
            self._unlogged += 1
            return
        extra: dict[str, object] = {"reason": str(reason), "app": app, "device": device, "peer": peer}
        if self._unlogged:
            extra["unlogged_before"] = self._unlogged
            self._unlogged = 0
        log.warning("a device was denied", extra=extra)


def _shown(name: str) -> str:
    """Return a name that anybody could have sent, fit for a line of the log."""
    return visible(name[:NAME_MAX]) + ("..." if len(name) > NAME_MAX else "")
