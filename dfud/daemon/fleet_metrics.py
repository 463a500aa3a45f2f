"""The fleets in numbers for Prometheus. The number of lines is bounded, whatever versions devices say that they run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dfud.model.tally import OTHER, of_kind, seen_within

APPS_MAX = 200  # those with the most devices; the others are not shown
VERSIONS_MAX = 30  # of an app; the others are summed
SEEN = {"1h": 1, "24h": 24, "7d": 168}

HELP = {
    "dfud_fleet_devices": "Devices that have reported, by the version that they run",
    "dfud_fleet_app_firmware": "Devices by the version of the app firmware that they run",
    "dfud_fleet_deployments": "Devices by where their newest deployment stands",
    "dfud_fleet_failures": "Devices whose newest deployment came to nothing, by why",
    "dfud_fleet_seen": "Devices that were heard of within that time, to the hour",
    "dfud_fleet_crashing": "Devices that show a crash of their newest or running image",
    "dfud_fleet_attention": "Deployments that have stood still for too long at the last look, by why",
}


def fleet_lines(counts: Mapping[str, Mapping[str, int]], needs: Mapping[str, Mapping[str, int]], now_s: float) -> str:
    """Return the lines for Prometheus. counts, needs: by app, as dfud.controller.fleet and .insight have them."""
    sizes = {app: sum(of_kind(found, "version").values()) for app, found in counts.items()}
    apps = sorted((app for app in sizes if sizes[app]), key=lambda app: (-sizes[app], app))[:APPS_MAX]

    def of(kind: str, label: str, most: int) -> Callable[[str], Iterator[tuple[str, int]]]:
        def lines(app: str) -> Iterator[tuple[str, int]]:
            for name, number in _at_most(of_kind(counts[app], kind), most).items():
                yield f"{label}={_quoted(name)}", number

        return lines

    def seen(app: str) -> Iterator[tuple[str, int]]:
        for name, hours in SEEN.items():
            yield f"within={_quoted(name)}", seen_within(counts[app], now_s, hours)

    def crashing(app: str) -> Iterator[tuple[str, int]]:
        yield "", sum(of_kind(counts[app], "crash").values())

    def attention(app: str) -> Iterator[tuple[str, int]]:
        for cause, number in needs.get(app, {}).items():
            yield f"cause={_quoted(cause)}", number

    shown = {
        "dfud_fleet_devices": of("version", "version", VERSIONS_MAX),
        "dfud_fleet_app_firmware": of("app", "version", VERSIONS_MAX),
        "dfud_fleet_deployments": of("state", "state", VERSIONS_MAX),
        "dfud_fleet_failures": of("code", "code", VERSIONS_MAX),
        "dfud_fleet_seen": seen,
        "dfud_fleet_crashing": crashing,
        "dfud_fleet_attention": attention,
    }
    out: list[str] = []
    for metric, lines in shown.items():
        found = [f"{metric}{{{_labels(app, label)}}} {number}" for app in apps for label, number in lines(app)]
        if found:
            out += [f"# HELP {metric} {HELP[metric]}", f"# TYPE {metric} gauge", *found]
    return "".join(f"{line}\n" for line in out)


OUTBOX = {
    "waiting": ("dfud_outbox_waiting", "gauge", "Changes that wait for an event sink"),
    "dead": ("dfud_outbox_dead_letters", "gauge", "Changes that an event sink did not take"),
    "delivered": ("dfud_outbox_delivered_total", "counter", "Changes that an event sink has taken"),
    "failedAttempts": ("dfud_outbox_failed_attempts_total", "counter", "Attempts that came to nothing"),
    "lost": ("dfud_outbox_lost_total", "counter", "Changes that were not kept, for too many waited"),
}


def outbox_lines(sinks: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines for Prometheus about what is told to event sinks. sinks: Deliveries.status()."""
    out: list[str] = []
    for key, (metric, kind, text) in OUTBOX.items() if sinks else ():
        out += [f"# HELP {metric} {text}", f"# TYPE {metric} {kind}"]
        out += [f"{metric}{{sink={_quoted(one['sink'])}}} {one[key]}" for one in sinks]
    return "".join(f"{line}\n" for line in out)


def _at_most(found: Mapping[str, int], most: int) -> dict[str, int]:
    """Return the highest, and the sum of the rest as OTHER."""
    ordered = sorted(((n, name) for name, n in found.items() if name != OTHER), key=lambda pair: (-pair[0], pair[1]))
    out = {name: n for n, name in ordered[:most]}
    rest = found.get(OTHER, 0) + sum(n for n, _ in ordered[most:])
    return out | ({OTHER: rest} if rest else {})


def _labels(app: str, more: str) -> str:
    return f"app={_quoted(app)}" + (f",{more}" if more else "")


def _quoted(text: str) -> str:
    """Return a label's value as the text format of Prometheus has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.encode("utf-8", "replace").decode() + '"'
