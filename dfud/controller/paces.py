"""How devices fetch and decode, as their transfers have shown it: each one's own, and what is usual for boards of its kind.

A device's own is part of what is stored of it, and changes once a transfer, with a status that is stored anyway. What is usual is
kept in memory, by app, hardware and transport, and learned anew after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.api import Actual, Cache, Deployment, State
from dfud.model.quickest import Measured, Pace, learned, link_of, pace_of, sample
from dfud.wire.messages import Phase, Status

KINDS_MAX = 1000  # apps x hardware x transports
USUAL_WEIGHT = 8  # one transfer is so small a part of what is usual: a device that lies moves little


class Paces:
    """assumed_rate: bytes a second of a link of which nothing is known."""

    def __init__(self, assumed_rate: int) -> None:
        self._assumed_rate = assumed_rate
        self._usual: Cache[tuple[str, str, str], Measured] = Cache(KINDS_MAX, lambda key: key[0])

    def __len__(self) -> int:
        return len(self._usual)

    def of(self, actual: Actual, device_spec: Mapping[str, Any], app_spec: Mapping[str, Any]) -> Pace:
        """Return the pace of a device of which `actual` is known."""
        link = link_of(app_spec, device_spec)
        return pace_of(link, actual.measured, self._usual.get(_kind(actual)), self._assumed_rate)

    def shown(self, said: Actual, before: Actual | None, status: Status, deployment: Deployment | None) -> Actual:
        """Return what a device says together with what is known of its pace, to which this status may add.

        Once a transfer, when it says that the package is written. deployment: the newest, before this status is heard.
        """
        measured = before.measured if before is not None else None
        progress = status.progress
        if (
            progress is not None
            and progress.took is not None
            and progress.phase == Phase.WRITTEN
            and deployment is not None
            and not deployment.final
            and deployment.state is not State.WRITTEN
            and deployment.package == progress.package.hex()
        ):
            took, choice = progress.took, deployment.choice
            work_ms = choice.work_ms if choice is not None else 0
            shown = sample(took.received_bytes, took.receive_ms, took.decode_ms, work_ms, deployment.bytes_total)
            if shown != Measured():
                measured = learned(measured, shown)
                usual = learned(self._usual.get(_kind(said)), shown, USUAL_WEIGHT)
                self._usual.put(_kind(said), usual)
        return msgspec.structs.replace(said, measured=measured) if said.measured != measured else said


def _kind(actual: Actual) -> tuple[str, str, str]:
    return actual.app, actual.hardware, actual.transport
