"""How the spec of a rollout is read: strictly, and every error names the field. Pure. The words are those of docs/rollouts.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dfud.errors import PeerError
from dfud.model.espimage import hardware_name
from dfud.model.names import check_name
from dfud.model.rollout import (
    ANSWERS_MIN,
    DEFAULT_WAVES,
    ERROR_PERCENT,
    SILENT_S,
    SOAK_S,
    SUCCESS_PERCENT,
    Mode,
    OnError,
    Plan,
    Threshold,
    Wave,
    Whom,
)
from dfud.model.schedule import read_windows_untrusted, read_zone_untrusted
from dfud.model.selectors import EVERYTHING, parse_selector_untrusted

WAVES_MAX = 32
DEVICES_MAX = 1000
VALUES_MAX = 64
SECONDS_MAX = 366 * 86400
RATE_MAX = 1_000_000
PRIORITY_MAX = 1000
ATTEMPTS_MAX = 100
BACKOFF_S_MAX = 7 * 86400
YEAR_MAX = 8999


def read_plan_untrusted(spec: Mapping[str, Any]) -> Plan:
    """Read a rollout's spec. Raises PeerError that names the field, what was found and what was expected."""
    fields = _Fields(spec, "spec")
    version, app = fields.text("firmware", ""), fields.text("app", "")
    if not version and not app:
        raise PeerError(
            "spec.firmware: missing, expected the version that it brings; or spec.app, that of the app firmware"
        )
    if version == app:
        raise PeerError(f"spec.app: {app}, as spec.firmware: a version is of one kind")
    for name in filter(None, (version, app)):
        check_name("version", name)
    plan = Plan(
        version=version,
        app=app,
        whom=_whom(fields.object("devices")),
        waves=_waves(fields.take("waves")),
        start_s=fields.time("start"),
        end_s=fields.time("end"),
        rate=fields.integer("perMinute", 0, RATE_MAX),
        transfers=fields.integer("transfers", 0, RATE_MAX),
        on_error=OnError(fields.choice("onError", tuple(OnError), OnError.PAUSE)),
        promote=fields.flag("promote"),
        priority=fields.integer("priority", -PRIORITY_MAX, PRIORITY_MAX),
        mode=Mode(fields.choice("mode", tuple(Mode), Mode.FORCED)),
        offer_until_s=fields.time("offerUntil"),
        attempts=fields.integer("attempts", 1, ATTEMPTS_MAX),
        backoff_s=fields.number("backoffS", 1, BACKOFF_S_MAX),
        **_when(fields),
    )
    fields.end()
    if plan.offer_until_s and plan.mode is not Mode.OFFER:
        raise PeerError(f'spec.offerUntil: only "mode": "offer" becomes forced at a time, the mode is {plan.mode}')
    if plan.offer_until_s and plan.offer_until_s <= plan.start_s:
        raise PeerError("spec.offerUntil: not behind spec.start, so nobody could decide")
    if plan.end_s and plan.end_s <= plan.start_s:
        raise PeerError("spec.end: not behind spec.start, so it could never run")
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
        hardware=frozenset(map(hardware_name, fields.texts("hardware", VALUES_MAX))),
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
    last = len(value) - 1
    waves = tuple(_wave(entry, f"spec.waves[{n}]", SOAK_S if n < last else 0.0) for n, entry in enumerate(value))
    percent, count = 0.0, 0
    for number, wave in enumerate(waves):
        if wave.percent and wave.percent <= percent:
            raise PeerError(
                f"spec.waves[{number}].percent: {wave.percent:g}, expected more than {percent:g}: it is of all, with the waves before"
            )
        if wave.count and wave.count <= count:
            raise PeerError(
                f"spec.waves[{number}].count: {wave.count}, expected more than {count}: it is of all, with the waves before"
            )
        percent, count = max(percent, wave.percent), max(count, wave.count)
    return waves


def _wave(value: object, where: str, soak_s: float) -> Wave:
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
        soak_s=fields.number("soakS", 0, SECONDS_MAX, soak_s),
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
        """Read RFC 3339 with its offset; 0.0 without. Up to YEAR_MAX: a forecast adds years, and calendars end at 9999."""
        value = self.take(key)
        if value is None:
            return 0.0
        try:
            found = datetime.fromisoformat(value) if isinstance(value, str) and len(value) <= 40 else None
        except ValueError:
            found = None
        if found is None or found.tzinfo is None or not 1971 <= found.year <= YEAR_MAX:
            raise self._wrong(key, value, "a time with its offset, such as 2026-12-01T08:00:00+01:00")
        return found.timestamp()
