"""What hawkBit is told of a device: where it is, how far it is, what it asks for, and what happened while it was away."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from dfud.api import DeviceAddress, State
from dfud.wire.messages import Phase, Progress, Type
from tests.plugins.hawkbit.harness import OLD, Harness, Person, Server, harness_at, person_at, sent, until, whole_way
from tests.plugins.hawkbit.server import Hawkbit
from tests.plugins.hawkbit.test_faults import away, back, killed

NEW = b"new image " * 3000
NEWER = b"newer image " * 2500


async def lines(person: Person, harness: Harness, action: int) -> list[str]:
    """Return what was said of an action, oldest first."""
    return [text for s in await person.statuses(harness.target(), action) for text in s["messages"]]


def in_order(said: list[str], *wanted: str) -> bool:
    """Say whether these are in the lines, each with its time, in this order."""
    stamped = [text for text in said if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", text)]
    rest = iter(stamped)
    return all(any(want in text for text in rest) for want in wanted)


async def test_the_devices_address_is_the_targets(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, seen_per_s=20.0) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        for address, shown in (("203.0.113.7", "203.0.113.7"), ("2001:db8::7", "2001:0db8:")):
            harness.bus.publish(DeviceAddress(harness.app, "d1", address))
            await device.poll(attributes={"n": address})
            harness.store.sync.feed.look(f"{harness.app}/d1")

            async def told(shown: str = shown) -> bool:
                return shown in str((await person.ask("GET", f"/targets/{harness.target()}")).get("address"))

            await until("the address is there", told)
        await harness.quiet()
        await harness.stop()
        await harness.start()
        harness.store.sync.feed.look(f"{harness.app}/d1")
        await harness.quiet()
        assert "2001:0db8:" in (await person.ask("GET", f"/targets/{harness.target()}"))["address"], "kept over a restart"


async def test_progress_is_told_in_per_cent(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        command = await sent(device)
        await device.poll(progress=Progress(command.package, command.chunks, Phase.FETCHING))

        async def told() -> bool:
            return any(re.fullmatch(r"100 % \((\d+) of \1 chunks\)", t) for t in await lines(person, harness, action))

        await until("it is told", told)


async def test_attributes_that_hawkbit_asks_for_are_sent_again(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, resync_s=1.0) as harness, person_at(hawkbit) as person:
        device = await harness.device(site="attic")
        device.status = msgspec.structs.replace(device.status, attributes={"rssi": "-70"})
        await device.poll()
        path = f"/targets/{harness.target()}"

        async def answered() -> bool:
            there = (await person.ask("GET", f"{path}/attributes") or {}).get("rssi") == "-70"
            return there and not (await person.ask("GET", path))["requestAttributes"]

        await until("they are there", answered)
        await person.ddi("PUT", harness.target(), "/configData", json={"mode": "replace", "data": {"x": "y"}})
        await person.ask("PUT", path, json={"requestAttributes": True})
        await until("they are there again", answered)


async def test_an_update_that_ended_while_hawkbit_was_away_is_told_state_by_state(
    hawkbit: Hawkbit, tmp_path: Path
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        await device.poll()
        await harness.quiet()
        await killed(hawkbit)
        try:
            await harness.publish("2.0", NEW)
            await harness.want("2.0")
            command = await sent(device)
            image = await device.download(command)
            await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
            device.image, device.version = image, "2.0"
            await device.poll(trial=True)
            answer = await device.poll()
            assert answer is not None and answer.type is Type.SYNC
            await away(harness)
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:

            async def closed() -> int:
                for action in await person.actions(harness.target()):
                    if action["status"] == "finished":
                        return int(action["id"])
                return 0

            action = await until("an action is finished", closed)
            said = await lines(person, harness, action)
            assert in_order(said, " notified (", " written (", " trial (", " done ("), said
            assert not any("already" in text for text in said)
            assert await person.installed(harness.target()) == "2.0"


async def test_updates_one_after_the_other_while_hawkbit_is_away_are_all_told(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """The first has an action, which is closed as what it was; the others come with their versions in that of the last."""
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        images = {"2.0": NEW, "3.0": NEWER, "4.0": NEW + NEWER}
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        first = await harness.action_of()
        await harness.quiet()
        await killed(hawkbit)
        try:
            for version, image in images.items():
                if version != "2.0":
                    await harness.publish(version, image)
                    await harness.want(version)
                await whole_way(device)
                assert device.image == image
            await away(harness)
            await harness.stop()
            await harness.start()
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:

            async def last() -> int:
                found = (await person.actions(harness.target()))[-1]
                return int(found["id"]) if found["status"] == "finished" and found["id"] != first else 0

            action = await until("the last is finished", last)
            assert (await person.action(harness.target(), first))["status"] == "finished"
            assert in_order(await lines(person, harness, first), " done (")
            said = await lines(person, harness, action)
            assert in_order(said, " 3.0: notified (", " 3.0: done (", " done ("), said
            assert await person.installed(harness.target()) == "4.0"
            assert not any(" 2.0: done" in text for text in said), "told already"


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_is_set_back_loses_nothing_and_repeats_nothing(
    hawkbit: Hawkbit, tmp_path: Path, restarted: bool
) -> None:
    """Three updates, the first seen by hawkBit, the others while it is away, each at an earlier time than the one before."""
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        images = {"2.0": NEW, "3.0": NEWER, "4.0": NEW + NEWER}
        for version, image in images.items():
            await harness.publish(version, image)
        await harness.want("2.0")
        first = await harness.action_of()
        await whole_way(device)
        async with person_at(hawkbit) as person:

            async def finished() -> bool:
                return str((await person.action(harness.target(), first))["status"]) == "finished"

            await until("the first is finished", finished)
        await harness.quiet()
        await killed(hawkbit)
        try:
            for version in ("3.0", "4.0"):
                harness.shift_s -= 300 * 86400.0
                await harness.want(version)
                await whole_way(device)
                assert device.image == images[version]
            await away(harness)
            if restarted:
                await harness.stop()
                await harness.start()
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:

            async def last() -> int:
                found = (await person.actions(harness.target()))[-1]
                return int(found["id"]) if found["status"] == "finished" and found["id"] != first else 0

            action = await until("the last is finished", last)
            said = await lines(person, harness, action)
            assert in_order(said, " 3.0: notified (", " 3.0: done (", " notified (", " done ("), said
            before = await lines(person, harness, first)
            for told in (before, said):
                stamped = [text for text in told if re.match(r"\d{4}-", text)]
                assert len(stamped) == len(set(stamped)), told
            assert not any(" 2.0: " in text for text in said), "told already"


async def test_a_roll_back_while_hawkbit_was_away_is_a_failure_there(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        await harness.publish("2.0", NEW)
        await harness.quiet()
        await killed(hawkbit)
        try:
            await harness.want("2.0")
            await sent(device)
            await device.update(good=False, text="in <module>")
            await harness.deployed("d1", State.ROLLED_BACK)
            await away(harness)
        finally:
            await back(hawkbit)
        assert device.image == OLD
        async with person_at(hawkbit) as person:

            async def failed() -> int:
                return next((int(a["id"]) for a in await person.actions(harness.target()) if a["status"] == "error"), 0)

            action = await until("an action ends in error", failed)
            said = await lines(person, harness, action)
            assert in_order(said, " rolled-back (") and any("in \u2039module\u203a" in text for text in said), said


async def test_an_app_default_that_arrived_while_hawkbit_was_away_is_told(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        await harness.publish("2.0", NEW)
        await harness.quiet()
        await killed(hawkbit)
        try:
            await harness.want("2.0", None)
            await whole_way(device)
            await away(harness)
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:

            async def finished() -> int:
                return next((int(a["id"]) for a in await person.actions(harness.target()) if not a.get("active")), 0)

            action = await until("an action is finished", finished)
            said = await lines(person, harness, action)
            assert in_order(said, " notified (", " done ("), said
            assert await harness.wanted() is None
