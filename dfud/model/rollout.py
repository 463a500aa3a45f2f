"""A rollout: which firmware reaches whom, in which waves, when and how fast. The resource, and how its spec is read. Pure.

`spec` is the user's, in the words of docs/rollouts.md; `read_plan_untrusted()` turns it into a Plan or says which field is wrong.
`status` is dfud's alone (dfud.controller.rollouts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from dfud.errors import PeerError
from dfud.model.deployment import Actual
from dfud.model.names import check_name
from dfud.model.resources import Metadata
from dfud.model.rollout_states import State
from dfud.model.schedule import Window, read_windows_untrusted, read_zone_untrusted
from dfud.model.selectors import EVERYTHING, Selector, parse_selector_untrusted

WAVES_MAX = 32
DEVICES_MAX = 1000
VALUES_MAX = 64
SECONDS_MAX = 366 * 86400
RATE_MAX = 1_000_000
PRIORITY_MAX = 1000
# Fewer answers than this are no percentage.
ANSWERS_MIN = 3
SUCCESS_PERCENT = 90.0
ERROR_PERCENT = 5.0
SILENT_S = 7 * 86400.0


class Mode(StrEnum):
    FORCED = "forced"
    OFFER = "offer"  # the device's may_update(), or its user, decides
    DOWNLOAD_ONLY = "download-only"  # written, and not switched to before somebody says activate


class OnError(StrEnum):
    PAUSE = "pause"
    REVERT = "revert"  # devices that took it go back to what they ran


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


DEFAULT_WAVES = (Wave(percent=1.0), Wave(percent=10.0), Wave(percent=100.0))


class Whom(msgspec.Struct, frozen=True):
    """Which devices are members: all of these conditions, or exactly `devices`. Empty ones hold for everybody."""

    selector: Selector = EVERYTHING
    running: frozenset[str] = frozenset()
    hardware: frozenset[str] = frozenset()
    attributes: tuple[tuple[str, str], ...] = ()
    devices: frozenset[str] = frozenset()
    dynamic: bool = False


class Plan(msgspec.Struct, frozen=True):
    """A spec that was read. Times are seconds since the epoch, 0: none. zone_label, zone_attribute: where a device says its own.

    rate: devices told a minute, transfers: at one time; 0: no limit.
    """

    version: str
    mode: Mode = Mode.FORCED
    offer_until_s: float = 0.0
    activate: bool = False
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
    attempts: int = 0
    retry_s: int = 0
    on_error: OnError = OnError.PAUSE
    promote: bool = False
    priority: int = 0


class RolloutStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where a rollout is. wave counts from 0; since_s: when `state` began, wave_since_s: when the wave opened.

    shares: for each wave the place below which its devices are (dfud.model.membership), as text of decimal digits, for they have
    64 bits; set when it starts. expected: how many devices each wave had when it opened. code, reason: why it is paused, reverting
    or aborted; by: who did it, "" for dfud itself. author: who made it; approved: who agreed to its start.
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
    told_s: float = 0.0


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
    """What decides whether a device is a member. told: uid of the rollout of its newest deployment, "" if none."""

    device: str
    labels: Mapping[str, str]
    created_s: float = 0.0
    actual: Actual | None = None
    told: str = ""


def is_member(plan: Plan, uid: str, started_s: float, facts: Facts) -> bool:
    """Say whether a device is meant. What it runs may change by the rollout itself: whom it told, it keeps."""
    whom = plan.whom
    if whom.devices:
        return facts.device in whom.devices
    if not whom.selector.matches(facts.labels):
        return False
    if not whom.dynamic and started_s and facts.created_s > started_s:
        return False
    actual = facts.actual
    if whom.running and facts.told != uid:
        if actual is None or actual.version not in (*whom.running, plan.version):
            return False
    if whom.hardware and (actual is None or actual.hardware not in whom.hardware):
        return False
    found = actual.attributes if actual is not None else {}
    return all(found.get(key) == value for key, value in whom.attributes)


# Reading a spec


def read_plan_untrusted(spec: Mapping[str, Any]) -> Plan:
    """Read a rollout's spec. Raises PeerError that names the field, what was found and what was expected."""
    fields = _Fields(spec, "spec")
    version = check_name("version", fields.text("firmware"))
    plan = Plan(
        version=version,
        mode=Mode(fields.choice("mode", tuple(Mode), Mode.FORCED)),
        offer_until_s=fields.time("offerUntil"),
        activate=fields.flag("activate"),
        whom=_whom(fields.object("devices")),
        waves=_waves(fields.take("waves")),
        start_s=fields.time("start"),
        end_s=fields.time("end"),
        rate=fields.integer("perMinute", 0, RATE_MAX),
        transfers=fields.integer("transfers", 0, RATE_MAX),
        attempts=fields.integer("attempts", 0, 100),
        retry_s=fields.integer("retryS", 0, SECONDS_MAX),
        on_error=OnError(fields.choice("onError", tuple(OnError), OnError.PAUSE)),
        promote=fields.flag("promote"),
        priority=fields.integer("priority", -PRIORITY_MAX, PRIORITY_MAX),
        **_when(fields),
    )
    fields.end()
    if plan.end_s and plan.end_s <= plan.start_s:
        raise PeerError("spec.end: not behind spec.start, so it could never run")
    if plan.offer_until_s and plan.mode is not Mode.OFFER:
        raise PeerError(f"spec.offerUntil: the mode is {plan.mode}, expected offer")
    if plan.activate and plan.mode is not Mode.DOWNLOAD_ONLY:
        raise PeerError(f"spec.activate: the mode is {plan.mode}, expected download-only")
    return plan


def _when(fields: _Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    windows = fields.take("windows")
    if windows is not None:
        found["windows"] = read_windows_untrusted(windows, "spec.windows")
    zone = fields.take("timeZone")
    if isinstance(zone, Mapping):
        own = _Fields(zone, "spec.timeZone")
        label, attribute = own.text("label", ""), own.text("attribute", "")
        if bool(label) == bool(attribute):
            raise PeerError("spec.timeZone: expected a label or an attribute that holds each device's own, not both")
        found |= {"zone_label": label, "zone_attribute": attribute}
        found["zone"] = read_zone_untrusted(own.text("default", "UTC"), "spec.timeZone.default")
        own.end()
    elif zone is not None:
        found["zone"] = read_zone_untrusted(zone, "spec.timeZone")
    return found


def _whom(value: Mapping[str, Any]) -> Whom:
    fields = _Fields(value, "spec.devices")
    names = fields.texts("names", DEVICES_MAX)
    selector = fields.text("selector", "")
    whom = Whom(
        selector=parse_selector_untrusted(selector) if selector else EVERYTHING,
        running=fields.texts("running", VALUES_MAX),
        hardware=fields.texts("hardware", VALUES_MAX),
        attributes=tuple(sorted(fields.pairs("attributes"))),
        devices=names,
        dynamic=fields.flag("dynamic"),
    )
    fields.end()
    if names and (selector or whom.running or whom.hardware or whom.attributes or whom.dynamic):
        raise PeerError("spec.devices.names: an explicit list stands alone, without conditions")
    return whom


def _waves(value: object) -> tuple[Wave, ...]:
    if value is None:
        return DEFAULT_WAVES
    if not isinstance(value, list) or not 1 <= len(value) <= WAVES_MAX:
        raise PeerError(f"spec.waves: expected a list of 1 to {WAVES_MAX} waves")
    waves = tuple(_wave(entry, f"spec.waves[{n}]") for n, entry in enumerate(value))
    percent, count = 0.0, 0
    for number, wave in enumerate(waves):
        if wave.percent and wave.percent <= percent:
            raise PeerError(
                f"spec.waves[{number}].percent: {wave.percent:g} of all, as the one before: nobody would be in it"
            )
        if wave.count and wave.count <= count:
            raise PeerError(
                f"spec.waves[{number}].count: {wave.count} of all, as the one before: nobody would be in it"
            )
        percent, count = max(percent, wave.percent), max(count, wave.count)
    return waves


def _wave(value: object, where: str) -> Wave:
    if not isinstance(value, Mapping):
        raise PeerError(f"{where}: expected an object with percent, count or selector")
    fields = _Fields(value, where)
    percent = fields.number("percent", 0, 100)
    count = fields.integer("count", 0, 1 << 31)
    selector = fields.text("selector", "")
    if sum((percent > 0, count > 0, bool(selector))) != 1:
        raise PeerError(f"{where}: expected exactly one of percent, count and selector; an empty wave reaches nobody")
    wave = Wave(
        percent=percent,
        count=count,
        selector=parse_selector_untrusted(selector) if selector else None,
        success=_threshold(fields, "success", SUCCESS_PERCENT, 0),
        error=_threshold(fields, "error", ERROR_PERCENT, ANSWERS_MIN),
        soak_s=fields.number("soakS", 0, SECONDS_MAX),
        silent_s=fields.number("silentS", 0, SECONDS_MAX, SILENT_S),
        approval=fields.flag("approval"),
    )
    fields.end()
    return wave


def _threshold(fields: _Fields, name: str, percent: float, at_least: int) -> Threshold:
    value = fields.take(name)
    if value is None:
        return Threshold(percent, 0, at_least)
    if not isinstance(value, Mapping):
        raise PeerError(f"{fields.where}.{name}: expected an object with percent or count")
    own = _Fields(value, f"{fields.where}.{name}")
    if ("percent" in value) == ("count" in value):
        raise PeerError(f"{own.where}: expected percent or count")
    found = Threshold(
        own.number("percent", 0, 100), own.integer("count", 0, 1 << 31), own.integer("atLeast", 0, 1 << 31, at_least)
    )
    own.end()
    if "count" in value and not found.count:
        raise PeerError(f"{own.where}.count: 0, expected at least 1")
    return found


class _Fields:
    """An object of a spec whose keys are taken one by one; end() refuses what nobody took."""

    def __init__(self, value: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._value = dict(value)
        self._known: list[str] = []

    def take(self, key: str) -> Any:
        self._known.append(key)
        return self._value.pop(key, None)

    def end(self) -> None:
        if self._value:
            raise PeerError(
                f"{self.where}.{str(next(iter(self._value)))[:40]}: not known, expected one of {', '.join(sorted(self._known))}"
            )

    def _wrong(self, key: str, value: object, expected: str) -> PeerError:
        return PeerError(f"{self.where}.{key}: {str(value)[:60]!r}, expected {expected}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "text")
        return value

    def texts(self, key: str, limit: int) -> frozenset[str]:
        value = self.take(key)
        if value is None:
            return frozenset()
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= limit
            or not all(isinstance(v, str) and v for v in value)
        ):
            raise self._wrong(key, value, f"a list of 1 to {limit} texts")
        return frozenset(value)

    def pairs(self, key: str) -> list[tuple[str, str]]:
        value = self.take(key)
        if value is None:
            return []
        if (
            not isinstance(value, Mapping)
            or len(value) > VALUES_MAX
            or not all(isinstance(v, str) for v in value.values())
        ):
            raise self._wrong(key, value, f"an object of up to {VALUES_MAX} texts")
        return [(str(k), v) for k, v in value.items()]

    def object(self, key: str) -> Mapping[str, Any]:
        value = self.take(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.take(key)
        if value is None:
            return default
        if value not in choices:
            raise self._wrong(key, value, f"one of {', '.join(choices)}")
        return str(value)

    def number(self, key: str, low: float, high: float, default: float = 0.0) -> float:
        value = self.take(key)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or not low <= value <= high
        ):
            raise self._wrong(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, low: int, high: int, default: int = 0) -> int:
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"an integer from {low} to {high}")
        return value

    def time(self, key: str) -> float:
        """Read RFC 3339 with its offset; 0.0 without."""
        value = self.take(key)
        if value is None:
            return 0.0
        try:
            found = datetime.fromisoformat(value) if isinstance(value, str) and len(value) <= 40 else None
        except ValueError:
            found = None
        if found is None or found.tzinfo is None or found.year < 1971:
            raise self._wrong(key, value, "a time with its offset, such as 2026-12-01T08:00:00+01:00")
        return found.timestamp()
