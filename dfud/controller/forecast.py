"""What a rollout would do, before anything is sent: how many devices, who is refused and why, bytes on the air, and how long.

It asks decide() for each device, as the device's next status would, and changes nothing. Only packages are made, which are a
cache. The fleet is read in pages, and what is kept does not grow with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import trio

from dfud.api import Actual, App, Desired, DeviceView, Firmware, PeerError, Store
from dfud.controller.case import new_deployment
from dfud.controller.config import ControllerConfig
from dfud.controller.decide import Action, Why, decide
from dfud.controller.explain import status_of_actual
from dfud.controller.rollout_rules import facts_of
from dfud.controller.sending import Order, order_of
from dfud.model.deployment import Deployment, State
from dfud.model.desired import joined
from dfud.model.kinds import KINDS, SYSTEM
from dfud.model.pacing import pace_of
from dfud.model.policy import wave_of, zone_of
from dfud.model.rollout import Mode, Plan, is_member
from dfud.model.times import time_of
from dfud.wire.manifest import FLAG_DOWNGRADE, decode_envelope_untrusted

PAGE = 500
AT_ONCE = 25  # devices between two looks at the rest of the world
NAMED_MAX = 5
KINDS_MAX = 200  # pairs of version and hardware that are told apart
ORDERS_MAX = 500  # packages that are told apart; the devices of the others are counted
STEPS_MAX = 32
SAMPLES_MAX = 500
UPDATE_S = 120.0  # one update, where the app has none yet to go by
FULL_SHARE, DELTA_SHARE = 0.65, 0.1  # of an image's size, till the package is made

OWN, NEVER_SEEN, SILENT, OTHER_ROLLOUT, FLOOR = "own-firmware", "never-seen", "silent", "other-rollout", "floor"
# They are told once what stands in the way is over; the others are not.
LATER = frozenset({NEVER_SEEN, SILENT, *(w.value for w in (Why.DEFERRED, Why.TRIAL, Why.BACK_OFF, Why.HOLD))})
SAID = {
    OWN: "It has a firmware of its own, so rollouts pass it by.",
    NEVER_SEEN: "It has never reported.",
    SILENT: "It was not heard of for a long time.",
    OTHER_ROLLOUT: "Another rollout of a higher priority speaks for it.",
    FLOOR: "It accepts only higher sequences, and the manifest allows no downgrade.",
    Why.DEFERRED.value: "The device puts it off.",
    Why.TRIAL.value: "It runs an image on trial.",
}


class Group(msgspec.Struct, rename="camel"):
    count: int = 0
    devices: list[str] = []
    sentence: str = ""
    later: bool = False


class Load(msgspec.Struct):
    """One package and who needs it."""

    order: Order
    devices: int = 0


class Forecast(msgspec.Struct):
    """What was counted so far. waves: devices to be told, by wave; unplaced: those whose wave is decided when it starts."""

    matching: int = 0
    in_sync: int = 0
    told: int = 0
    steps: int = 0
    unknown_base: int = 0
    codes: dict[str, Group] = {}
    running: Counter[tuple[str, str]] = Counter()
    loads: dict[tuple[str, str, int, int], Load] = {}
    more_loads: int = 0
    waves: Counter[int] = Counter()
    unplaced: int = 0
    zones: Counter[str] = Counter()
    samples: list[float] = []


Aim = Callable[[App, Desired, Actual | None, Deployment | None], Awaitable[tuple[Desired, Firmware | None]]]
Speaks = Callable[[App, DeviceView], Desired]


class Reader:
    """Reads a fleet into a Forecast. aim: the firmware that a wish means for a device; speaks: what is wanted of it now;
    priority: that of a rollout by its uid; image: a firmware by its SHA-256.
    """

    def __init__(
        self,
        store: Store,
        config: ControllerConfig,
        now: Callable[[], float],
        *,
        aim: Aim,
        speaks: Speaks,
        priority: Callable[[str], int | None],
        image: Callable[[str, str], Awaitable[Firmware | None]],
    ) -> None:
        self._store = store
        self._config = config
        self._now = now
        self._aim = aim
        self._speaks = speaks
        self._priority = priority
        self._image = image

    async def read(
        self,
        app: App,
        plan: Plan,
        *,
        uid: str = "",
        shares: tuple[int, ...] = (),
        started_s: float = 0.0,
        retries: int = 0,
        silent_s: float,
        progress: Callable[[int], None] = lambda number: None,
        most: int = 0,
    ) -> Forecast:
        """Read all devices, or the first `most`. uid, shares, started_s, retries: of a rollout that is made already.

        progress: told how many were read.
        """
        found = Forecast(codes={}, running=Counter(), loads={}, waves=Counter(), zones=Counter(), samples=[])
        number = 0
        async with aclosing(self._devices(app, plan)) as views:
            async for view in views:
                number += 1
                if number % AT_ONCE == 0:
                    progress(number)
                    await trio.lowlevel.checkpoint()
                if most and number > most:
                    break
                if is_member(plan, uid, started_s, facts_of(view)):
                    await self._one(found, app, plan, view, uid, shares, silent_s, retries)
        progress(number)
        return found

    async def _devices(self, app: App, plan: Plan) -> AsyncGenerator[DeviceView, None]:
        if plan.whom.devices:
            for name in sorted(plan.whom.devices):
                view = await self._store.device(app.name, name)
                if view is not None:
                    yield view
            return
        after = ""
        while page := await self._store.devices(app.name, plan.whom.selector, limit=PAGE, after=after):
            after = page[-1].device.name
            for view in page:
                yield view

    async def _one(
        self,
        found: Forecast,
        app: App,
        plan: Plan,
        view: DeviceView,
        uid: str,
        shares: tuple[int, ...],
        silent_s: float,
        retries: int,
    ) -> None:
        found.matching += 1
        actual, d = view.actual, view.deployment
        kind = (actual.version, actual.hardware) if actual is not None else ("", "")
        found.running[kind if kind in found.running or len(found.running) < KINDS_MAX else ("other", "")] += 1
        if d is not None and d.state is State.DONE and d.moved_s and len(found.samples) < SAMPLES_MAX:
            found.samples.append(max(0.0, d.updated_s - d.created_s))
        code, sentence, target, desired = await self._judged(app, plan, view, uid, silent_s, retries)
        if code == Why.IN_SYNC.value:
            found.in_sync += 1
            return
        if code != Why.SENT.value:
            _add(found.codes, code, view.device.name, sentence)
            return
        assert actual is not None and target is not None
        found.told += 1
        found.steps += desired.steps > 1
        await self._load(found, app, plan, view, target, desired)
        facts = facts_of(view)
        found.zones[zone_of(plan, facts).key] += 1
        wave = wave_of(plan, uid, shares, facts) if shares else _by_selector(plan, facts.labels)
        if wave is not None:
            found.waves[wave] += 1
        elif not shares:
            found.unplaced += 1

    async def _judged(
        self, app: App, plan: Plan, view: DeviceView, uid: str, silent_s: float, retries: int
    ) -> tuple[str, str, Firmware | None, Desired]:
        """Return the code and the sentence for a device, and what would be sent to it."""
        actual, now_s = view.actual, self._now()
        desired = _wish(plan, uid, retries, now_s)
        if "firmware" in view.device.spec:
            return OWN, SAID[OWN], None, desired
        if actual is None:
            return NEVER_SEEN, SAID[NEVER_SEEN], None, desired
        now = self._speaks(app, view)
        for one in (now, now.other):
            if one is None or one.rollout in ("", uid) or not plan.version_of(one.kind):
                continue
            if (self._priority(one.rollout) or 0) > plan.priority:
                return OTHER_ROLLOUT, f"{one.origin} speaks for it.", None, desired
        # What is under way now would end, for another target; what was left stays so.
        before = view.deployment if view.deployment is not None and view.deployment.final else None
        desired, target = await self._aim(app, desired, actual, before)
        status = msgspec.structs.replace(status_of_actual(actual, None, target, now_s), progress=None)
        verdict = decide(
            app=app.name,
            device=view.device.name,
            status=status,
            deployment=before,
            desired=desired,
            target=target,
            policy=self._config,
            now_s=now_s,
            heard=True,
        )
        code = verdict.why.value
        if verdict.action is not Action.SEND:
            return code, SAID.get(code, _sentence(verdict.reason)), target, desired
        assert target is not None
        accepts = actual.sequence if target.of_kind == SYSTEM else actual.program.sequence if actual.program else 0
        if target.sequence < accepts and not _allows_downgrade(target):
            text = f"{target.version} has sequence {target.sequence}, the device accepts {accepts} and more"
            return FLOOR, f"{text}.", target, desired
        if now_s - actual.seen_s > silent_s:
            return SILENT, f"It was not heard of since {time_of(actual.seen_s)}.", target, desired
        return code, "", target, desired

    async def _load(
        self, found: Forecast, app: App, plan: Plan, view: DeviceView, target: Firmware, desired: Desired
    ) -> None:
        """Count the packages on a device's way: one, or one for each step."""
        actual = view.actual
        assert actual is not None
        for step in range(STEPS_MAX):
            seen = actual.of(target.of_kind)
            if seen is None:
                return
            base = await self._image(app.name, seen.sha256) if seen.sha256 else None
            if base is None and step == 0:
                found.unknown_base += 1
            status = msgspec.structs.replace(status_of_actual(actual, None, target, self._now()), progress=None)
            made = new_deployment(
                app.name, view.device.name, target, None, self._now(), version=seen.version, sha256=seen.sha256
            )
            order = order_of(status if target.of_kind == SYSTEM else status.of_app, made, target, base)
            key = (target.sha256, order.base.sha256 if order.base is not None else "", order.kinds, order.payload)
            load = found.loads.get(key)
            if load is None and len(found.loads) < ORDERS_MAX:
                load = found.loads[key] = Load(order)
            if load is None:
                found.more_loads += 1
            else:
                load.devices += 1
            actual = _with(actual, target)
            if plan.runs_on(actual):
                return
            desired, following = await self._aim(app, _wish(plan, "", 0, self._now()), actual, None)
            if following is None or desired.problem:
                return
            target = following


def _wish(plan: Plan, uid: str, retries: int, now_s: float) -> Desired:
    """Return what a rollout wants of a device whose turn it is."""
    system, app = (
        Desired(
            version=plan.version_of(kind),
            kind=kind,
            download_only=plan.mode is Mode.DOWNLOAD,
            origin="rollout",
            rollout=uid or "planned",
            retries=retries,
            forced=plan.is_forced(now_s),
        )
        for kind in KINDS
    )
    return joined(system, app)


def _with(actual: Actual, target: Firmware) -> Actual:
    """Return what a device will say once it runs a firmware."""
    what = {"version": target.version, "sha256": target.sha256, "manifest": target.sequence}
    if target.of_kind == SYSTEM:
        return msgspec.structs.replace(actual, **what, sequence=max(target.sequence, actual.sequence))
    assert actual.program is not None
    accepts = max(target.sequence, actual.program.sequence)
    return msgspec.structs.replace(actual, program=msgspec.structs.replace(actual.program, **what, sequence=accepts))


def _by_selector(plan: Plan, labels: Any) -> int | None:
    """Return the first wave whose selector takes the device before any share does, as far as that is certain."""
    for number, wave in enumerate(plan.waves):
        if wave.selector is not None:
            if wave.selector.matches(labels):
                return number
        else:
            return None
    return None


def placed(found: Forecast, plan: Plan) -> list[int]:
    """Return how many devices each wave tells. Where the rollout is not made yet, shares of those whose wave is open.

    As in shares_of(), which decides it: each share is of all, with the waves before, and one of percent has at least one device.
    """
    waves = [found.waves[number] for number in range(len(plan.waves))]
    reached = 0
    for number, wave in enumerate(plan.waves):
        if wave.selector is not None:
            continue
        limit = max(round(found.unplaced * wave.percent / 100), reached + 1) if wave.percent else wave.count
        limit = min(max(limit, reached), found.unplaced)
        waves[number] += limit - reached
        reached = limit
    return waves


def _add(groups: dict[str, Group], code: str, device: str, sentence: str) -> None:
    group = groups.get(code)
    if group is None:
        group = groups[code] = Group(devices=[], sentence=sentence, later=code in LATER)
    group.count += 1
    if len(group.devices) < NAMED_MAX:
        group.devices.append(device)


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:].rstrip('.')}." if reason else ""


def _allows_downgrade(target: Firmware) -> bool:
    try:
        return bool(decode_envelope_untrusted(target.manifest)[1].flags & FLAG_DOWNGRADE)
    except PeerError:
        return False


def update_s(found: Forecast) -> tuple[float, bool]:
    """Return how long an update takes, and whether that was measured: the median of the app's newest ones that are done."""
    if not found.samples:
        return UPDATE_S, False
    return max(1.0, sorted(found.samples)[len(found.samples) // 2]), True


def estimate(order: Order) -> int:
    """Return about how many bytes a package has that is not made yet."""
    return round(order.target.size_bytes * (DELTA_SHARE if order.base is not None else FULL_SHARE))


def time_json(plan: Plan, found: Forecast, now_s: float, poll_s: float) -> dict[str, Any]:
    """Return how long it takes, wave by wave."""
    one_s, measured = update_s(found)
    paces = pace_of(plan, placed(found, plan), found.zones, now_s, poll_s=poll_s, update_s=one_s)
    out: dict[str, Any] = {
        "begins": time_of(paces[0].begins_s),
        "ends": time_of(paces[-1].ends_s),
        "seconds": round(paces[-1].ends_s - paces[0].begins_s),
        "pollS": poll_s,
        "updateS": round(one_s, 1),
        "updateMeasured": measured,
        "waves": [
            {
                "wave": number + 1,
                "devices": pace.devices,
                "begins": time_of(pace.begins_s),
                "ends": time_of(pace.ends_s),
                "limit": pace.limit,
                **({"approval": True} if plan.waves[number].approval else {}),
            }
            for number, pace in enumerate(paces)
        ],
    }
    if plan.end_s and paces[-1].ends_s > plan.end_s:
        out["tooLate"] = f"spec.end {time_of(plan.end_s)} comes before all devices are told"
    return out
