"""What must hold after any fault: no report lost, no device told twice, the actual state as the devices say it, in every process.

A device is right about itself: what it was answered has to be found in what is stored.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import trio

from dfud.wire.messages import Phase, Status, Type
from tests.cluster.fleet import Fleet, LivingDevice
from tests.cluster.whole import Whole
from tests.plugins.postgres.cluster import APP, LATEST_S

HISTORY_MAX = 1000


async def check(cluster: Whole, fleet: Fleet, versions: Sequence[str]) -> None:
    """Raise AssertionError that lists what is wrong. versions: every one that was wanted of all, in order; the last was reached."""
    wrong: list[str] = []
    for device in fleet.devices:
        wrong += _told_twice(device, versions)
        wrong += await _lost(cluster, device, versions)
        for number in sorted(cluster.alive):
            wrong += await _actual(cluster, device, number)
        if device.without_retry_after:
            wrong.append(f"{device.name}: {device.without_retry_after} answers with 503 and no Retry-After")
    for number in sorted(cluster.alive):
        wrong += await _counted(cluster, fleet, number)
    assert not wrong, "\n".join(wrong)


def _ended(said: Status, version: str) -> bool:
    """Whether a device says with this that it is done with the version: runs it for good, or has left it."""
    return said.result is not None or (said.version == version and not said.trial and said.progress is None)


def _told_twice(device: LivingDevice, versions: Sequence[str]) -> list[str]:
    """Whoever has said that it is done with a version, and was answered, is not told to take it again."""
    wrong = []
    done: set[str] = set()
    wanted = ""
    for said, told in zip(device.answers.said, device.answers.told, strict=True):
        if said.result is not None and wanted:
            done.add(wanted)
        done |= {version for version in versions if said.result is None and _ended(said, version)}
        if told is not None and told.type is Type.UPDATE:
            wanted = told.version
            if told.version in done:
                wrong.append(f"{device.name}: told to take {told.version} though it had said that it was done with it")
            if told.version not in versions:
                wrong.append(f"{device.name}: told to take {told.version}, which nobody wants")
    return wrong


async def _lost(cluster: Whole, device: LivingDevice, versions: Sequence[str]) -> list[str]:
    """Whatever step a device was answered for stands in its history, of one deployment for each version."""
    path = f"/api/dfu/v1/apps/{APP}/history/{device.name}"
    entries: list[dict[str, Any]] = (await cluster.ask("GET", path, cluster.living, params={"limit": HISTORY_MAX})).json()
    wrong = []
    for version in {e["version"] for e in entries} - set(versions):
        wrong.append(f"{device.name}: history of {version}, which nobody wanted")
    for version in versions:
        events = Counter(e["event"] for e in entries if e["version"] == version)
        last = "left" if version in device.leaves else "confirmed"
        expected = {"created": 1, last: 1}
        if any(s.progress is not None and s.progress.phase is Phase.WRITTEN for s in device.answers.said):
            expected["written"] = events["written"] or 1
        if any(s.version == version and s.trial for s in device.answers.said):
            expected["booted"] = events["booted"] or 1
        if found := {event: events[event] for event, number in expected.items() if events[event] != number}:
            wrong.append(f"{device.name}, {version}: history has {found}, expected {expected}; all: {dict(events)}")
        if len({e["deployment"] for e in entries if e["version"] == version}) != 1:
            wrong.append(f"{device.name}, {version}: expected one deployment, found {entries}")
    numbers = [e["number"] for e in entries]
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        wrong.append(f"{device.name}: history is numbered {numbers}")
    return wrong


async def _actual(cluster: Whole, device: LivingDevice, number: int) -> list[str]:
    found = await cluster.firmware_of(device.name, number)
    actual = found.get("actual", {})
    stored = {"version": actual.get("version"), "sha256": actual.get("sha256"), "trial": actual.get("trial")}
    says = {"version": device.version, "sha256": hashlib.sha256(device.image).hexdigest(), "trial": False}
    if stored != says:
        return [f"{device.name} says {says}, process {number} says {stored}"]
    return []


async def _counted(cluster: Whole, fleet: Fleet, number: int) -> list[str]:
    """The numbers of the fleet are those of its devices, as soon as a process has heard of the last report."""
    expected = Counter(device.version for device in fleet.devices)
    found: dict[str, int] = {}
    with trio.move_on_after(LATEST_S):
        while True:
            found = (await cluster.ask("GET", f"/api/dfu/v1/apps/{APP}/fleet", number)).json()["versions"]
            if found == expected:
                return []
            await trio.sleep(0.1)
    return [f"process {number} counts {found}, expected {dict(expected)}"]
