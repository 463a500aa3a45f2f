"""A rollout: which firmware reaches whom, in which waves, when and how fast. Pure.

`spec` is the user's, in the words of docs/rollouts.md; dfud.model.rollout_spec reads it. `status` is dfud's alone
(dfud.controller.rollouts).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from dfud.model.deployment import Actual
from dfud.model.espimage import hardware_name
from dfud.model.kinds import KINDS, SYSTEM, Kind
from dfud.model.resources import Metadata
from dfud.model.rollout_states import State
from dfud.model.schedule import Window
from dfud.model.selectors import EVERYTHING, Selector

ROLLOUTS = "rollout"  # the collection of the store; keys are app/name
# Fewer answers than this are no percentage.
ANSWERS_MIN = 3
SHARE_DIGITS = 20  # of a place, at most 2^64
SUCCESS_PERCENT = 90.0
ERROR_PERCENT = 5.0
SILENT_S = 7 * 86400.0
# How long a wave has to be good before the next one opens, where nothing is said: long enough for a crash that comes with use.
SOAK_S = 3600.0


class OnError(StrEnum):
    PAUSE = "pause"
    REVERT = "revert"  # devices that took it go back to what they ran


class Mode(StrEnum):
    FORCED = "forced"  # the device's application is not asked
    OFFER = "offer"  # it decides, until a date
    DOWNLOAD = "download-only"  # written, and switched to when a user says so


class Threshold(msgspec.Struct, frozen=True):
    """percent of a whole, or count. A percentage needs `at_least` in the whole before it counts."""

    percent: float = 0.0
    count: int = 0
    at_least: int = 0

    def reached(self, number: int, whole: int) -> bool:
        """Say whether `number` of `whole` is as much as this."""
        if self.count:
            return number >= self.count
        return whole >= max(1, self.at_least) and number * 100 >= self.percent * whole

    def exceeded(self, number: int, whole: int) -> bool:
        """Say whether `number` of `whole` is more than this allows: an error condition."""
        if self.count:
            return number >= self.count
        return whole >= max(1, self.at_least) and number * 100 > self.percent * whole


class Wave(msgspec.Struct, frozen=True):
    """Who is in it: the first `percent` of all members, the first `count` of them, or those that `selector` matches.

    success is judged of the devices told, error of those that answered. soak_s: how long it must have been good before the
    next wave opens; silent_s: how long after its opening devices that were not heard of hold it up; approval: a user opens
    the next one.
    """

    percent: float = 0.0
    count: int = 0
    selector: Selector | None = None
    success: Threshold = Threshold(SUCCESS_PERCENT)
    error: Threshold = Threshold(ERROR_PERCENT, at_least=ANSWERS_MIN)
    soak_s: float = 0.0
    silent_s: float = SILENT_S
    approval: bool = False


DEFAULT_WAVES = (Wave(percent=1.0, soak_s=SOAK_S), Wave(percent=10.0, soak_s=SOAK_S), Wave(percent=100.0))


class Whom(msgspec.Struct, frozen=True):
    """Which devices are members: all of these conditions, or exactly `devices`. Empty ones hold for everybody."""

    selector: Selector = EVERYTHING
    running: frozenset[str] = frozenset()
    hardware: frozenset[str] = frozenset()
    attributes: tuple[tuple[str, str], ...] = ()
    devices: frozenset[str] = frozenset()
    dynamic: bool = False


class Plan(msgspec.Struct, frozen=True):
    """A spec that was read. version, app: the system and the app firmware, "": that kind is left as it is.

    Times are seconds since the epoch, 0: none. zone_label, zone_attribute: where a device says its own.
    rate: devices told a minute, transfers: at one time; 0: no limit. offer_until_s: when an offer becomes forced; attempts,
    backoff_s: transfers that may fail, and the first wait between them, 0: as the configuration has it.
    """

    version: str = ""
    app: str = ""
    whom: Whom = Whom()
    waves: tuple[Wave, ...] = DEFAULT_WAVES
    start_s: float = 0.0
    end_s: float = 0.0
    windows: tuple[Window, ...] = ()
    zone: ZoneInfo = ZoneInfo("UTC")
    zone_label: str = ""
    zone_attribute: str = ""
    rate: int = 0
    transfers: int = 0
    on_error: OnError = OnError.PAUSE
    promote: bool = False
    priority: int = 0
    mode: Mode = Mode.FORCED
    offer_until_s: float = 0.0
    attempts: int = 0
    backoff_s: float = 0.0

    def version_of(self, kind: Kind) -> str:
        return self.version if kind == SYSTEM else self.app

    @property
    def versions(self) -> tuple[str, ...]:
        """What it brings, of either kind."""
        return tuple(version for version in (self.version, self.app) if version)

    @property
    def title(self) -> str:
        """Say what it brings: `1.3`, `app 3.2` or `1.3 with app 3.2`."""
        return " with ".join([*([self.version] if self.version else ()), *([f"app {self.app}"] if self.app else ())])

    def runs_on(self, actual: Actual | None) -> bool:
        """Say whether a device runs all that it brings."""
        return actual is not None and all(
            actual.runs(kind) == self.version_of(kind) for kind in KINDS if self.version_of(kind)
        )

    def is_forced(self, now_s: float) -> bool:
        """Say whether devices take it whatever their application says."""
        return self.mode is Mode.FORCED or bool(self.offer_until_s and now_s >= self.offer_until_s)


class Happened(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One transition of a rollout. by: the user, "" for dfud itself."""

    at_s: float
    event: str
    state: State
    wave: int = 0
    code: str = ""
    reason: str = ""
    by: str = ""


class RolloutStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where a rollout is. wave counts from 0; since_s: when `state` began, wave_since_s: when the wave opened.

    shares: for each wave the place below which its devices are (dfud.model.membership), as text of decimal digits, for they have
    64 bits; set when it starts. expected: how many devices each wave had when it opened. code, reason: why it is paused, reverting
    or aborted; by: who did it, "" for dfud itself. author: who made it; approved: who agreed to its start. forgiven: how many
    had failed in each wave when a user resumed it. reverted: it was taken back, so it speaks for nobody any more.

    silent: how many of each wave were told and have not been heard of for too long. retries: how often a user had it try again what
    failed. activated_s: when devices that have only written it were to switch; before that waves are about writing. called_back:
    who is under way when it is aborted is stopped. settled: whoever can go back has, but for the silent. promoted: it is the app's
    default; default: what that was before.
    """

    state: State = State.DRAFT
    wave: int = 0
    since_s: float = 0.0
    wave_since_s: float = 0.0
    started_s: float = 0.0
    shares: tuple[str, ...] = ()
    expected: tuple[int, ...] = ()
    code: str = ""
    reason: str = ""
    by: str = ""
    author: str = ""
    approved: str = ""
    forgiven: tuple[int, ...] = ()
    reverted: bool = False
    silent: tuple[int, ...] = ()
    retries: int = 0
    activated_s: float = 0.0
    called_back: bool = False
    settled: bool = False
    promoted: bool = False
    default: dict[str, Any] | None = None
    history: tuple[Happened, ...] = ()


def status_problem(plan: Plan, status: RolloutStatus) -> str:
    """Say what is wrong with a stored status, "" if the plan can be led from there. The decision relies on it for every device."""
    if not 0 <= status.wave < len(plan.waves):
        return f"status.wave: {status.wave}, expected 0 to {len(plan.waves) - 1}"
    if len(status.shares) > len(plan.waves):
        return f"status.shares: {len(status.shares)}, expected at most {len(plan.waves)}, one a wave"
    for text in status.shares:
        if not (text.isascii() and text.isdigit() and len(text) <= SHARE_DIGITS):
            return f"status.shares: {text[:40]!r}, expected up to {SHARE_DIGITS} decimal digits"
    return ""


class Rollout(msgspec.Struct, frozen=True):
    """Identity: metadata.application and metadata.name; metadata.uid decides who is in which wave."""

    metadata: Metadata
    spec: dict[str, Any] = {}
    status: RolloutStatus = RolloutStatus()

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def app(self) -> str:
        return self.metadata.application


class Facts(msgspec.Struct, frozen=True):
    """What decides whether a device is a member. told, told_other: uid of the rollout of its newest deployment, and of the newest
    one of the other kind; "" if none.

    created: when it was registered, RFC 3339.
    """

    device: str
    labels: Mapping[str, str]
    created: str = ""
    actual: Actual | None = None
    told: str = ""
    told_other: str = ""


def is_member(plan: Plan, uid: str, started_s: float, facts: Facts) -> bool:
    """Say whether a device is meant. What it runs may change by the rollout itself: whom it told, it keeps."""
    whom = plan.whom
    if whom.devices:
        return facts.device in whom.devices
    if not whom.selector.matches(facts.labels):
        return False
    if not whom.dynamic and started_s and _epoch_s(facts.created) > started_s:
        return False
    actual = facts.actual
    if whom.running and uid not in (facts.told, facts.told_other):
        # Both kinds share one namespace of versions, so either may be meant.
        if actual is None or not {actual.runs(kind) for kind in KINDS} & {*whom.running, *plan.versions}:
            return False
    if whom.hardware and (actual is None or hardware_name(actual.hardware) not in whom.hardware):
        return False
    found = actual.attributes if actual is not None else {}
    return all(found.get(key) == value for key, value in whom.attributes)


def _epoch_s(created: str) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError):
        return 0.0
