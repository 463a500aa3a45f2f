"""Which counters of its app's fleet a device is counted in, and what they say when they are read. Pure.

What a device is counted in stands in its own record (Actual.tally), so that a change takes away exactly what was added: the
counters are at any time equal to a recount over the records, whichever dfud wrote them. One that has never reported is in none.

    version/<version>           devices that run it
    app/<version>               devices that run this app firmware
    state/<state>, code/<code>  where their newest deployment stands, and why it came to nothing
    hour/<number>               the hour (since the epoch) in which they were heard of last
    crash/<fingerprint>         devices that show this crash now
    at/<hour>/<version>         by how much version/<version> changed in that hour; old hours are folded into days, then into one
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from dfud.model.crashes import Crash, crash_of
from dfud.model.deployment import Actual, Deployment, State

HOUR_S = 3600
DAY = 24
HOURS_KEPT = 8 * DAY  # then a whole day is one count
DAYS_KEPT = 400 * DAY  # then everything before is one
OTHER = "other"  # versions beyond those that are counted one by one
NO_DEPLOYMENT = "none"
CODE_CRASHED = 1
POINTS_MAX = 1000
LOST = (State.FAILED, State.ROLLED_BACK)  # with a code that says why
SITUATIONS = 1024  # that are remembered: what devices are counted in is the same for many
HOUR_DIGITS = 9


def fleet_scope(app: str) -> str:
    """Return the name under which the store counts an app's devices."""
    return f"fleet/{app}"


def crash_in(actual: Actual | None, deployment: Deployment | None) -> tuple[Crash, str] | None:
    """Return the crash that a device shows now and the version that had it, or None.

    That is why its newest deployment of either kind was left or, once another runs, the last crash of the image that runs.
    """
    for d in deployment.both if deployment is not None else ():
        told = d is deployment or d.blocks  # of the other kind, what was left stays so while it is not sent again
        if told and d.state is State.ROLLED_BACK and (d.crashes or d.code == CODE_CRASHED or d.record):
            return crash_of(d.text, d.record, d.reset_reason), d.version
    health = actual.health if actual is not None else None
    if actual is not None and health is not None and health.crashes > health.crashes_before:
        return crash_of(health.text, b"", health.reset_reason), actual.version
    return None


@lru_cache(maxsize=SITUATIONS)
def _tally(version: str, state: str, hour: int, code: str, fingerprint: str, app: str) -> tuple[str, ...]:
    """One tuple for all devices that are in the same counters."""
    found = [f"version/{version}", f"state/{state}", _hour_name(hour)]
    if code:
        found.append(f"code/{code}")
    if fingerprint:
        found.append(f"crash/{fingerprint}")
    if app:
        found.append(f"app/{app}")
    return tuple(found)


def tally_of(
    version: str, deployment: Deployment | None, seen_s: float, code: str, fingerprint: str, app: str = ""
) -> tuple[str, ...]:
    """Return the counters that a device is in. code: the name of its newest deployment's code, which counts where that came to
    nothing; app: the app firmware that it runs.
    """
    state = NO_DEPLOYMENT if deployment is None else deployment.state.value
    told = code if deployment is not None and deployment.state in LOST else ""
    return _tally(version, state, int(seen_s // HOUR_S), told, fingerprint, app)


def hour_of(now_s: float) -> str:
    """Return the counter of the devices that were heard of last in the hour of that time."""
    return _hour_name(int(now_s // HOUR_S))


@lru_cache(maxsize=4)
def _hour_name(hour: int) -> str:
    return f"hour/{hour}"


def moved(before: tuple[str, ...], after: tuple[str, ...], now_s: float) -> dict[str, int]:
    """Return what is added to the counters when a device that was in `before` is in `after`. It is not the caller's to change."""
    return _moved(before, after, int(now_s // HOUR_S))


@lru_cache(maxsize=SITUATIONS)
def _moved(before: tuple[str, ...], after: tuple[str, ...], hour: int) -> dict[str, int]:
    change = dict.fromkeys(after, 1)
    for name in before:
        change[name] = change.get(name, 0) - 1
    found = {name: number for name, number in change.items() if number}
    found |= {f"at/{hour}/{n.removeprefix('version/')}": d for n, d in found.items() if n.startswith("version/")}
    return dict(sorted(found.items()))  # in one order: stores that lock rows never wait for each other in a ring


def _hour(text: str) -> int:
    """Return the hour of a counter's name; -1 for what is none: such a counter counts nowhere, and costs itself."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= HOUR_DIGITS else -1


def of_kind(counts: Mapping[str, int], kind: str) -> dict[str, int]:
    """Return the counters `kind/...` by the rest of their names, the highest first; those that are not above 0 left out."""
    found = {name[len(kind) + 1 :]: n for name, n in counts.items() if name.startswith(f"{kind}/") and n > 0}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def seen_within(counts: Mapping[str, int], now_s: float, hours: int) -> int:
    """Return how many devices were heard of in the present hour or the `hours` before it."""
    first = int(now_s // HOUR_S) - hours
    return max(0, sum(n for name, n in counts.items() if name.startswith("hour/") and _hour(name[5:]) >= first))


class Point(msgspec.Struct, frozen=True):
    """How many devices ran each version at the end of an hour."""

    at_s: float
    versions: dict[str, int]


def adoption(counts: Mapping[str, int], now_s: float, hours: int, points: int) -> list[Point]:
    """Return up to `points` points over the last `hours`, the last one now. Exact to the hour for eight days, then to the day."""
    changes: dict[int, Counter[str]] = {}
    for name, number in counts.items():
        if name.startswith("at/"):
            text, _, version = name[3:].partition("/")
            if (hour := _hour(text)) >= 0:
                changes.setdefault(hour, Counter())[version] += number
    last = int(now_s // HOUR_S)
    step = max(1, -(-hours // max(1, min(points, POINTS_MAX))))
    ends = sorted({max(0, last - back) for back in range(0, hours + 1, step)})
    found, running = [], Counter[str]()
    due = sorted(changes)
    for end in ends:
        while due and (due[0] <= end or end == last):
            running.update(changes[due.pop(0)])
        at_s = min(float((end + 1) * HOUR_S), now_s)
        found.append(Point(at_s, {v: n for v, n in sorted(running.items()) if n > 0}))
    return found


def folded(counts: Mapping[str, int], now_s: float) -> dict[str, int]:
    """Return what to add so that old hours are kept as days, and the oldest as one. No sum changes, whoever does it how often."""
    now = int(now_s // HOUR_S)
    change: Counter[str] = Counter()
    for name, number in counts.items():
        kind, _, rest = name.partition("/")
        if kind not in ("at", "hour") or not number:
            continue
        text, slash, version = rest.partition("/")
        hour = _hour(text)
        if hour < 0 or hour > now - HOURS_KEPT:
            continue
        # A day stands at its last hour, so that no change shows before it was.
        into = 0 if hour <= now - DAYS_KEPT else hour // DAY * DAY + DAY - 1
        if kind == "hour":
            into = 0  # longer ago than anybody asks for
        if into != hour:
            change[name] -= number
            change[f"{kind}/{into}{slash}{version}"] += number
    return {name: number for name, number in change.items() if number}
