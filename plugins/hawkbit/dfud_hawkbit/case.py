"""One device under work, from the look into the records to the one commit of its link."""

from __future__ import annotations

from typing import Any

import msgspec

from dfud.api import DeviceView, NotFoundError, Store
from dfud_hawkbit import records
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import Link


class Postponed(Exception):
    """Nothing is wrong; this device goes on when it is looked at again."""


class Case:
    """`link` changes as hawkBit is told; `again_s`: look at it again then.

    put_off: leave it alone for now, it has been put off already. asked: hawkBit wants its attributes. unanswered: hawkBit did
    not take what it must hear; it is told again, and nothing counts as told.
    """

    def __init__(self, key: str, generation: int, view: DeviceView | None, link: Link) -> None:
        self.key = key
        self.generation = generation
        self.app, self.device = records.split(key)
        self.target = target_id(self.app, self.device)
        self.view = view
        self.link = link
        self.cancelled = ""
        self.again_s = 0.0
        self.put_off = False
        self.asked = False
        self.unanswered = False

    def set(self, **changes: Any) -> None:
        self.link = msgspec.structs.replace(self.link, **changes)

    def later(self, at_s: float) -> None:
        self.again_s = min(self.again_s or at_s, at_s)

    async def fresh(self, store: Store) -> DeviceView:
        """Read the device again. Raises NotFoundError if it was deleted meanwhile."""
        view = await store.device(self.app, self.device)
        if view is None:
            raise NotFoundError(f"no device {self.device}")
        self.view = view
        return view
