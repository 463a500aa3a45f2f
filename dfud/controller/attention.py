"""Which deployments have not moved for too long, and what they wait for. Pure, but for the walk over those that are open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum

import msgspec
import trio

from dfud.api import DeviceView, State, Store
from dfud.controller.decide import Why

PAGE = 500
AT_ONCE = 50  # devices between two looks at the rest of the world
NAMED_MAX = 100  # devices named for each cause


class Need(StrEnum):
    """Why a deployment does not move."""

    SILENT = "silent"  # the device is not heard of
    USER = "user"  # it waits for somebody at the device, or for its application
    TRIAL = "trial"  # it runs the image and does not confirm it
    PACKAGE = "package"  # its package cannot be made
    STUCK = "stuck"  # it is heard of, and does not get further than where it is
    FAILING = "failing"  # attempt after attempt fails


# As somebody has asked for it: nobody needs to look.
MEANT = frozenset(w.value for w in (Why.HOLD, Why.DOWNLOAD_ONLY, Why.WINDOW, Why.RATE, Why.CEILING))


class One(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A deployment that needs attention. since: when it moved last; at: where it is."""

    device: str
    since_s: float
    version: str
    state: State
    at: str = ""
    sentence: str = ""


class Cause(msgspec.Struct, rename="camel"):
    """count: deployments with this cause; devices: the ones that have not moved for the longest time."""

    count: int = 0
    devices: list[One] = []


class Attention(msgspec.Struct, frozen=True, rename="camel"):
    """open: deployments that have not ended. after_s: how long one may stand still before it needs attention."""

    open: int
    after_s: float
    causes: dict[str, Cause]


def need_of(view: DeviceView, code: str, now_s: float, *, after_s: float, silent_s: float) -> Need | None:
    """Return why a deployment needs attention, or None. code: explain()'s; silent_s: without a word so long, a device is silent."""
    d, actual = view.deployment, view.actual
    if d is None or d.final or now_s - (d.moved_s or d.created_s) < after_s:
        return None
    if actual is None or now_s - actual.seen_s > max(silent_s, 0.0):
        return Need.SILENT
    if code in MEANT:
        return None
    if d.problem:
        return Need.PACKAGE
    if code == Why.DEFERRED.value:
        return Need.USER
    if d.state is State.TRIAL:
        return Need.TRIAL
    return Need.FAILING if d.attempts else Need.STUCK


def where_of(view: DeviceView) -> str:
    d = view.deployment
    if d is None or d.state is not State.FETCHING:
        return ""
    return f"chunk {d.chunks_done} of {d.chunks_total}"


async def attention(
    store: Store,
    app: str,
    code_of: Callable[[DeviceView], Awaitable[tuple[str, str]]],
    now: Callable[[], float],
    *,
    after_s: float,
    silent_s: float,
) -> Attention:
    """Look at every open deployment of an app. code_of: explain()'s code and first sentence for a device."""
    number, causes, after = 0, dict[str, Cause](), ""
    while page := await store.updating(app, limit=PAGE, after=after):
        after = page[-1].device.name
        for view in page:
            number += 1
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            d, now_s = view.deployment, now()
            if d is None or now_s - (d.moved_s or d.created_s) < after_s:
                continue
            code, sentence = await code_of(view)
            need = need_of(view, code, now_s, after_s=after_s, silent_s=silent_s)
            if need is not None:
                one = One(view.device.name, d.moved_s or d.created_s, d.version, d.state, where_of(view), sentence)
                _add(causes.setdefault(need.value, Cause(devices=[])), one)
    for cause in causes.values():
        cause.devices.sort(key=lambda one: one.since_s)
        del cause.devices[NAMED_MAX:]
    return Attention(number, after_s, dict(sorted(causes.items())))


def _add(cause: Cause, one: One) -> None:
    cause.count += 1
    cause.devices.append(one)
    if len(cause.devices) > 2 * NAMED_MAX:
        cause.devices.sort(key=lambda one: one.since_s)
        del cause.devices[NAMED_MAX:]
