"""What hawkBit's kinds of action mean to a device: cancel, hold, download only, windows, weights, confirmation, rollouts."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import CancelRequested, Device, Metadata, PutDevice, State
from dfud.testing.device import SimulatedDevice
from dfud.wire.messages import Command, Phase, Progress, Type
from tests.amounts import sampled
from tests.plugins.hawkbit.harness import Harness, Person, Server, harness_at, person_at, sent, until, whole_way

NEW = b"new image " * 3000
NEWER = b"newer image " * 2500


@asynccontextmanager
async def settings(person: Person, **values: object) -> AsyncIterator[None]:
    """Change the tenant's settings for a while."""
    before = await person.ask("GET", "/system/configs")
    keys = [key.replace("__", ".") for key in values]
    await person.settings(**values)
    try:
        yield
    finally:
        for key in keys:
            await person.ask("PUT", f"/system/configs/{key}", json={"value": before[key]["value"]})


async def assigned(harness: Harness, person: Person, version: str, image: bytes = NEW, **how: Any) -> int:
    """Assign a set in hawkBit, and wait until dfud wants it."""
    action = await person.assign(await person.simple_set(version, image), harness.target(), **how)
    await until(f"{version} is wanted", lambda: harness.is_wanted(version))
    return action


async def to_fetching(device: SimulatedDevice) -> tuple[Command, bytes]:
    command = await sent(device)
    await device.poll(progress=Progress(command.package, 0, Phase.FETCHING))
    return command, await device.download(command)


async def gone(person: Person, harness: Harness, action: int) -> bool:
    return bool((await person.action(harness.target(), action))["status"] == "canceled")


@pytest.mark.parametrize("state", ["never seen", "pending", "fetching", "held back"])
async def test_a_cancellation_is_accepted_before_the_device_may_boot_it(
    hawkbit: Server, tmp_path: Path, state: str
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        how: dict[str, Any] = {"type": "downloadonly"} if state == "held back" else {}
        action = await assigned(harness, person, "2.0", **how)
        if state == "pending":
            await device.poll()
        elif state == "fetching" or state == "held back":
            await to_fetching(device)
        await harness.quiet()
        await person.ask("DELETE", f"/targets/{harness.target()}/actions/{action}")
        await until("hawkBit's action is cancelled", lambda: gone(person, harness, action))

        async def unwanted() -> bool:
            return await harness.wanted() is None

        await until("nothing is wanted any more", unwanted)

        async def calm() -> bool:
            command = await device.poll()
            return command is not None and command.type is not Type.UPDATE

        await until("the device is not sent it any more", calm)
        assert all(c.deployment.state is not State.DONE for c in harness.changes)


@pytest.mark.parametrize("state", ["told to boot", "trial"])
async def test_a_cancellation_is_refused_when_the_device_may_run_it(
    hawkbit: Server, tmp_path: Path, state: str
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await assigned(harness, person, "2.0")
        command, image = await to_fetching(device)
        await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        if state == "trial":
            device.image, device.version = image, "2.0"
            await device.poll(trial=True)
        await harness.quiet()
        await person.ask("DELETE", f"/targets/{harness.target()}/actions/{action}")

        async def refused() -> bool:
            told = await person.statuses(harness.target(), action)
            return any("point of return" in " ".join(status["messages"]) for status in told)

        await until("it is refused", refused)
        assert await harness.is_wanted("2.0")
        device.image, device.version = image, "2.0"
        await device.poll()
        await until("it is finished all the same", lambda: person.finished(harness.target(), action))


async def test_a_cancellation_in_dfud_cancels_the_action(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await assigned(harness, person, "2.0")
        await to_fetching(device)
        await harness.quiet()
        harness.bus.publish(CancelRequested(harness.app, "d1", "test"))
        await until("the action is cancelled", lambda: gone(person, harness, action))


async def test_a_wish_that_is_taken_back_in_dfud_cancels_the_action(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        action = await harness.action_of()
        await harness.want(None)
        await until("the action is cancelled", lambda: gone(person, harness, action))
        assert await harness.wanted() is None


async def test_a_wish_that_is_taken_back_while_hawkbit_is_asked_does_not_come_back(
    hawkbit: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.publish("2.0", NEW)
        client = harness.store.sync.client
        ask = client.order
        asked: list[Any] = []

        async def order(target: str, offer: Any) -> Any:
            found = await ask(target, offer)
            if not asked:
                asked.append(offer.action)
                await harness.want(None)
            return found

        monkeypatch.setattr(client, "order", order)
        await harness.want("2.0")

        async def cancelled() -> bool:
            return bool(asked) and await gone(person, harness, asked[0])

        await until("the action is cancelled", cancelled)
        assert await harness.wanted() is None


async def test_an_action_that_is_quit_by_force_ends_the_deployment(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, poll_s=1.0) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await assigned(harness, person, "2.0")
        await to_fetching(device)
        await harness.quiet()
        target = harness.target()
        await person.ask("DELETE", f"/targets/{target}/actions/{action}")
        await person.ask("DELETE", f"/targets/{target}/actions/{action}?force=true", ok=(404, 405))

        async def ended() -> bool:
            return await harness.wanted() is None

        await until("it is not wanted any more", ended)
        await harness.deployed("d1", State.CANCELLED)


async def test_a_deleted_action_is_missed_at_the_next_full_list(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, resync_s=1.0) as harness, person_at(hawkbit) as person:
        await harness.device()
        action = await assigned(harness, person, "2.0")
        await harness.quiet()
        await person.ask("DELETE", "/actions", params={"q": f"id=={action}"})

        async def ended() -> bool:
            return await harness.wanted() is None

        await until("it is not wanted any more", ended)


@pytest.mark.parametrize("autoclose", [False, True])
async def test_a_second_set_takes_the_place_of_the_first(hawkbit: Server, tmp_path: Path, autoclose: bool) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        async with settings(person, repository__actions__autoclose__enabled=autoclose):
            device = await harness.device()
            first = await assigned(harness, person, "2.0")
            await to_fetching(device)
            second = await assigned(harness, person, "3.0", NEWER)
            await until("the first is cancelled", lambda: gone(person, harness, first))
            await whole_way(device)
            assert device.image == NEWER
            await until("the second is finished", lambda: person.finished(harness.target(), second))
            assert await person.update_status(harness.target()) == "in_sync"


async def test_a_users_newer_wish_in_dfud_takes_the_place_of_hawkbits(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        first = await assigned(harness, person, "2.0")
        await harness.publish("3.0", NEWER)
        await harness.want("3.0")
        await until("the first is cancelled", lambda: gone(person, harness, first))
        assert await harness.is_wanted("3.0")

        async def assigned_too() -> bool:
            return await person.assigned(harness.target()) == "3.0"

        await until("hawkBit wants it too", assigned_too)
        await whole_way(device)
        assert device.image == NEWER
        await until("hawkBit sees it", lambda: _installed(person, harness, "3.0"))


async def _installed(person: Person, harness: Harness, version: str) -> bool:
    return await person.installed(harness.target()) == version


@pytest.mark.parametrize("kind", ["soft", "forced", "timeforced"])
async def test_soft_forced_and_time_forced_are_sent_and_the_device_may_defer(
    hawkbit: Server, tmp_path: Path, kind: str
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        how: dict[str, Any] = {"type": kind} | ({"forcetime": 4_000_000_000_000} if kind == "timeforced" else {})
        action = await assigned(harness, person, "2.0", **how)
        assert await harness.wanted() == {"version": "2.0"}
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), action))


async def test_soft_made_forced_is_the_same_action(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await assigned(harness, person, "2.0", type="soft")
        await person.ask("PUT", f"/targets/{harness.target()}/actions/{action}", json={"forceType": "forced"})
        await harness.quiet()
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), action))
        assert len({c.deployment.id for c in harness.changes}) == 1


async def test_download_only_writes_and_does_not_boot(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await assigned(harness, person, "2.0", type="downloadonly")
        command, _ = await to_fetching(device)
        written = Progress(command.package, command.chunks, Phase.WRITTEN)
        answer = await device.poll(progress=written)
        assert answer is not None and answer.type is Type.WAIT

        async def closed() -> bool:
            return not (await person.action(harness.target(), action)).get("active", True) or (
                (await person.action(harness.target(), action))["status"] == "downloaded"
            )

        await until("the action is over with the download", closed)
        answer = await device.poll(progress=written)
        assert answer is not None and answer.type is Type.WAIT


async def test_a_maintenance_window_holds_the_boot_back_until_it_opens(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        closed = {"schedule": "0 0 3 1 1 ? 2099", "duration": "01:00:00", "timezone": "+00:00"}
        await assigned(harness, person, "2.0", maintenanceWindow=closed)
        assert await harness.wanted() == {"version": "2.0", "downloadOnly": True}
        command, _ = await to_fetching(device)
        written = Progress(command.package, command.chunks, Phase.WRITTEN)
        answer = await device.poll(progress=written)
        assert answer is not None and answer.type is Type.WAIT and answer.reason == "download only"
        # The same without a window: now it is allowed.
        second = await assigned(harness, person, "3.0", NEWER)
        assert await harness.wanted() == {"version": "3.0"}
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), second))


async def test_an_open_maintenance_window_lets_it_through(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        began = datetime.now(UTC) - timedelta(minutes=5)
        schedule = f"0 {began.minute} {began.hour} * * ?"
        always = {"schedule": schedule, "duration": "10:00:00", "timezone": "+00:00"}
        action = await assigned(harness, person, "2.0", maintenanceWindow=always)

        async def now() -> bool:
            return bool(await harness.wanted() == {"version": "2.0"})

        await until("the window is open", now, timeout_s=90)
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), action))


@pytest.mark.parametrize("where", ["in hawkBit", "by dfud"])
async def test_an_action_waits_for_confirmation(hawkbit: Server, tmp_path: Path, where: str) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        async with settings(person, user__confirmation__flow__enabled=True):
            device = await harness.device()
            action = await assigned(harness, person, "2.0", confirmationRequired=True)
            wanted = await harness.wanted()
            assert wanted["hold"] is True and "confirmed" in wanted["reason"]
            command = await device.poll()
            assert command is not None and command.type is Type.WAIT
            if where == "in hawkBit":
                path = f"/targets/{harness.target()}/actions/{action}/confirmation"
                await person.ask("PUT", path, json={"confirmation": "confirmed"})
            else:
                told = {"confirmation": "confirmed", "details": ["by a user"]}
                client = harness.store.sync.client
                assert await client.feedback(harness.target(), "confirmationBase", action, told)
                harness.store.sync.feed.look(f"{harness.app}/d1")

            async def released() -> bool:
                return bool(await harness.wanted() == {"version": "2.0"})

            await until("it is released", released)
            await whole_way(device)
            await until("it is finished", lambda: person.finished(harness.target(), action))


async def test_a_heavier_action_goes_first(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        await assigned(harness, person, "2.0", weight=100)
        heavy = await assigned(harness, person, "3.0", NEWER, weight=900)
        await whole_way(device)
        assert device.image == NEWER
        await until("the heavy one is finished", lambda: person.finished(harness.target(), heavy))


async def test_locks_of_what_was_assigned_do_not_disturb(hawkbit: Server, tmp_path: Path) -> None:
    """hawkBit locks a set at its first assignment; dfud assigns it again, and publishes the next one."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        for name in ("d1", "d2"):
            device = await harness.device(name)
            if name == "d1":
                await harness.publish("2.0", NEW)
            await harness.want("2.0", name)
            number = await harness.action_of(name)
            await whole_way(device)
            await until("it is finished", partial(person.finished, harness.target(name), number))
        found = await person.ask("GET", "/distributionsets", params={"q": f"name=={harness.app}"})
        assert [ds["locked"] for ds in found["content"]] == [True]
        await harness.publish("3.0", NEWER)
        await harness.want("3.0", "d1")
        await harness.quiet()
        assert harness.store.sync.known.problems == {}


@pytest.mark.parametrize("count", sampled(200, 1000))
async def test_a_rollout_of_a_thousand_devices(hawkbit: Server, tmp_path: Path, count: int) -> None:
    """In two groups, as hawkBit makes them; every device gets it, one artifact is downloaded, nothing is told twice."""
    async with harness_at(hawkbit, tmp_path, poll_s=0.5) as harness, person_at(hawkbit) as person:
        for first in range(0, count, 200):
            names = [f"d{number:04}" for number in range(first, first + 200)]
            await harness.store.commit([PutDevice(Device(Metadata(name, harness.app))) for name in names])
        names = [f"d{number:04}" for number in range(count)]
        await harness.quiet()
        number = await person.simple_set("2.0", NEW)
        body = {
            "name": f"rollout-{uuid.uuid4().hex[:8]}",
            "targetFilterQuery": f"controllerId=={harness.app}:*",
            "distributionSetId": number,
            "amountGroups": 2,
            "successCondition": {"condition": "THRESHOLD", "expression": "50"},
            "errorCondition": {"condition": "THRESHOLD", "expression": "50"},
        }
        rollout = (await person.ask("POST", "/rollouts", json=body))["id"]

        seen: dict[str, Any] = {}

        async def rollout_is(status: str) -> bool:
            seen.update(await person.ask("GET", f"/rollouts/{rollout}"))
            return bool(seen["status"] == status)

        def counts() -> Any:
            return seen.get("status"), seen.get("totalTargetsPerStatus")

        await until("the rollout is ready", lambda: rollout_is("ready"), moving=counts)
        await person.ask("POST", f"/rollouts/{rollout}/start")
        waiting = set(names)

        async def one(name: str) -> None:
            await whole_way(harness.simulate(name))

        async def all_updated() -> bool:
            ready = [v.device.name for v in await harness.all_devices() if v.device.spec.get("firmware")]
            due = [name for name in ready if name in waiting][:100]
            async with trio.open_nursery() as nursery:
                for name in due:
                    nursery.start_soon(one, name)
            waiting.difference_update(due)
            return not waiting

        await until("all are updated", all_updated, moving=lambda: len(waiting))
        await until("the rollout is finished", lambda: rollout_is("finished"), moving=counts)
        assert all(device.image == NEW for device in harness.devices.values())
        assert harness.store.sync.firmware.downloads == 1
        requests = harness.store.sync.client.requests
        print("requests:", dict(requests))
        assert requests["ddi feedback"] <= 4 * count, requests
        assert requests["ddi poll"] <= 2 * count, requests


async def test_a_confirmation_that_came_too_late_is_not_called_one(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, poll_s=3600.0) as harness, person_at(hawkbit) as person:
        async with settings(person, user__confirmation__flow__enabled=True):
            await harness.device()
            action = await person.assign(await person.simple_set("2.0", NEW), harness.target(), confirmationRequired=True)
            harness.store.sync.feed.look(f"{harness.app}/d1")
            await until("it is on hold", lambda: harness.is_wanted("2.0"))
            told = {"confirmation": "confirmed", "details": ["by a user"]}
            client = harness.store.sync.client
            assert await client.feedback(harness.target(), "confirmationBase", action, told)
            assert not await client.feedback(harness.target(), "confirmationBase", action, told), "it waits no longer"
