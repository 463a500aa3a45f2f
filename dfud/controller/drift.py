"""Which devices of an app are not where they should be, and why: explain() of all of them, counted by its code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from dfud.api import DeviceView, Store
from dfud.controller.decide import Why
from dfud.controller.explain import Explanation

PAGE = 500
AT_ONCE = 50  # devices between two looks at the rest of the world
NAMED_MAX = 100  # devices named for each code
STRANGERS_MAX = 100


class Group(msgspec.Struct, rename="camel"):
    """count: devices with this code; devices: the first of them; sentence: the first one's, with its own values."""

    count: int = 0
    devices: list[str] = []
    sentence: str = ""


class Drift(msgspec.Struct, rename="camel"):
    """drifting: by code of explain(), in-sync left out. strangers: devices that run an image nobody published, by its version.

    Read page by page while devices go on reporting: each device is as it was when its page was read.
    """

    devices: int = 0
    in_sync: int = 0
    drifting: dict[str, Group] = {}
    strangers: dict[str, Group] = {}


async def drift(
    store: Store, app: str, explained: Callable[[DeviceView], Awaitable[tuple[Explanation, bool]]]
) -> Drift:
    """Look at every device of an app. explained: explains one, and says whether what it runs is published."""
    found = Drift(drifting={}, strangers={})
    after = ""
    while page := await store.devices(app, limit=PAGE, after=after):
        after = page[-1].device.name
        for number, view in enumerate(page):
            if number % AT_ONCE == AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            explanation, published = await explained(view)
            found.devices += 1
            if explanation.code == Why.IN_SYNC.value:
                found.in_sync += 1
            else:
                _add(found.drifting, explanation.code, view, explanation.sentences[0])
            if view.actual is not None and not published:
                known = view.actual.version in found.strangers or len(found.strangers) < STRANGERS_MAX
                _add(found.strangers, view.actual.version if known else "others", view, "")
    return found


def _add(groups: dict[str, Group], key: str, view: DeviceView, sentence: str) -> None:
    group: Any = groups.get(key)
    if group is None:
        group = groups[key] = Group(devices=[], sentence=sentence)
    group.count += 1
    if len(group.devices) < NAMED_MAX:
        group.devices.append(view.device.name)
