"""What is kept in memory of the links, so that a row of the feed or a contact of a device costs no look into the records."""

from __future__ import annotations

from dfud.api import DeviceAddress
from dfud_hawkbit import records
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import Link

SPARE = 1000  # addresses that are kept of devices without a target


class Known:
    """targets: the device of each target. bound: the open action of each device that has one.

    windows: devices whose action waits for its time, or to be confirmed. foreign: devices whose target is another dfud's.
    recheck: devices whose target may have come to be another's. asked: devices whose attributes hawkBit asks for.
    addresses: where devices spoke from last. problems: what does not get into hawkBit and why, for people; by device, or
    "firmware APP/VERSION".
    """

    def __init__(self) -> None:
        self.targets: dict[str, str] = {}
        self.bound: dict[str, int] = {}
        self.windows: set[str] = set()
        self.foreign: set[str] = set()
        self.recheck: set[str] = set()
        self.asked: set[str] = set()
        self.addresses: dict[str, str] = {}
        self.problems: dict[str, str] = {}

    def note(self, key: str, link: Link | None) -> None:
        """Take what a link says now; None: the device is gone."""
        self.forget(key)
        if link is None:
            self.targets.pop(target_id(*records.split(key)), None)
            self.addresses.pop(key, None)
            self.recheck.discard(key)
            self.asked.discard(key)
            return
        self.targets[target_id(*records.split(key))] = key
        if link.action:
            self.bound[key] = link.action
            if link.mode == "window" or link.kind == "confirm":
                self.windows.add(key)
        if link.problem:
            self.problems[key] = link.problem
        if link.foreign:
            self.foreign.add(key)

    def forget(self, key: str) -> None:
        self.bound.pop(key, None)
        self.problems.pop(key, None)
        self.windows.discard(key)
        self.foreign.discard(key)

    def heard(self, event: DeviceAddress) -> None:
        key = records.device_key(event.app, event.device)
        # A new device speaks before hawkBit has its target; of one that was deleted nothing is kept for long.
        if key in self.addresses or len(self.addresses) < len(self.targets) + SPARE:
            self.addresses[key] = event.address
