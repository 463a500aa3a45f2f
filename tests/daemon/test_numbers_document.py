"""docs/fleet.md, events.md and rollouts.md name every metric, key, cause and code that there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from dfud.controller import forecast
from dfud.controller.attention import Need
from dfud.controller.config import ControllerConfig
from dfud.controller.outbox import OutboxConfig
from dfud.daemon.fleet_metrics import HELP, OUTBOX, fleet_lines, outbox_lines
from dfud.model.rollout_states import Event

DOCS = Path(__file__).parents[2] / "docs"
FLEET, EVENTS, ROLLOUTS = ((DOCS / f"{name}.md").read_text() for name in ("fleet", "events", "rollouts"))


def test_every_metric_is_in_its_document() -> None:
    assert set(re.findall(r"`(dfud_fleet_\w+)`", FLEET)) == set(HELP)
    assert set(re.findall(r"`(dfud_outbox_\w+)`", EVENTS)) == {metric for metric, _, _ in OUTBOX.values()}


def test_the_keys_of_the_outbox_stand_there_with_their_defaults() -> None:
    table = EVENTS.split("| `[outbox]` |")[1].split("\n\n")[0]
    told: dict[str, float] = {}
    for names, values in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d, ]+) \|", table, re.MULTILINE):
        told |= dict(zip(re.findall(r"`(\w+)`", names), map(float, values.split(",")), strict=True))
    assert told == {key: float(value) for key, value in msgspec.structs.asdict(OutboxConfig()).items()}


def test_causes_and_codes_are_explained() -> None:
    section = FLEET.split("## What needs attention")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {need.value for need in Need}
    assert ControllerConfig().attention_s == 86400 and "`[controller] attention_s` (a day)" in section
    section = ROLLOUTS.split("## Forecast")[1].split("\n## ")[0]
    own = {forecast.OWN, forecast.OTHER_ROLLOUT, forecast.FLOOR, forecast.SILENT}
    assert set(re.findall(r"^\| `([\w-]+)` \| (?:it|a rollout|not heard)", section, re.MULTILINE)) == own


def test_events_of_rollouts_are_those_of_the_table() -> None:
    """What the webhook tells of a rollout is `created`, `deleted`, or an event of the state table in rollouts.md."""
    for event in Event:
        assert f"| {event.value} |" in ROLLOUTS, event


def test_labels_are_bounded_and_quoted() -> None:
    counts = {f"version/{n}": 1 for n in range(100)} | {'version/a"b\n\\': 7, "version/other": 3, "hour/0": 5, "app/3.2": 4}
    lines = fleet_lines({"app": counts, "empty": {}}, {"app": {"stuck": 2}}, 4000.0).splitlines()
    versions = [line for line in lines if line.startswith("dfud_fleet_devices{")]
    assert len(versions) == 31 and versions[0] == 'dfud_fleet_devices{app="app",version="a\\"b\\n\\\\"} 7'
    assert versions[-1] == 'dfud_fleet_devices{app="app",version="other"} 74'
    assert 'dfud_fleet_attention{app="app",cause="stuck"} 2' in lines
    assert 'dfud_fleet_seen{app="app",within="1h"} 5' in lines
    assert 'dfud_fleet_app_firmware{app="app",version="3.2"} 4' in lines
    assert not any('app="empty"' in line for line in lines)
    many = {f"app{n:04}": {"version/1": n} for n in range(1000)}
    shown = [line for line in fleet_lines(many, {}, 0.0).splitlines() if line.startswith("dfud_fleet_devices{")]
    assert len(shown) == 200 and 'app="app0999"' in shown[0]
    assert outbox_lines([]) == ""
