"""hawkBit away, wrong, slow or full; dfud killed: nothing is lost, and devices do not notice."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import pytest
import trio
from dfud_hawkbit import feedback
from dfud_hawkbit.reconcile import Reconciler

from dfud.api import Device, DeviceSeen, Metadata, PutDevice, State
from dfud.wire.messages import Outcome, Phase, Progress, Result, Type
from tests.hawkbit.house import House, Person, Server, house_at, person_at, sent, until, whole_way
from tests.hawkbit.model.routes import Response
from tests.hawkbit.server import Hawkbit

NEW = b"new image " * 3000


async def killed(server: Hawkbit) -> None:
    if not server.can_be_killed:
        pytest.skip("this hawkBit is not ours to kill")
    await trio.to_thread.run_sync(server.kill)


async def back(server: Hawkbit) -> None:
    await trio.to_thread.run_sync(server.restart)


async def away(house: House) -> None:
    async def ask() -> bool:
        return bool(house.store.parts.worker.health.problem)

    await until("dfud notices", ask)


async def test_hawkbit_killed_in_mid_update_hears_all_of_it_afterwards(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house:
        device = await house.device()
        async with person_at(hawkbit) as person:
            number = await person.simple_set("2.0", NEW)
            action = await person.assign(number, house.target())
            await until("it is wanted", lambda: house.is_wanted("2.0"))
        command = await sent(device)
        held = [await device._fetch(command.package.hex(), 0)]
        await house.quiet()
        await killed(hawkbit)
        try:
            image = await device.download(command, first=1, chunks=held)
            await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
            device.image, device.version = image, "2.0"
            await device.poll(trial=True)
            answer = await device.poll()
            assert answer is not None and answer.type is Type.SYNC, "the device went all the way without hawkBit"
            await away(house)
            # Users go on too: what they publish and ask for waits.
            await house.publish("3.0", NEW + b"3")
            await house.registry.create_device(house.app, Device(Metadata("d2")), "test")
            await house.want("3.0", "d2")
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:
            await until("the action is finished", lambda: person.finished(house.target(), action))
            told = await person.statuses(house.target(), action)
            text = " ".join(line for status in told for line in status["messages"])
            for state in ("written", "trial", "done"):
                assert f" {state} (" in text, f"{state} is lost: {text}"
            assert await person.installed(house.target()) == "2.0"

            async def assigned() -> bool:
                if (await house.link("d2") or None) is None or not (await house.link("d2")).registered:  # type: ignore[union-attr]
                    return False
                return await person.assigned(house.target("d2")) == "3.0"

            await until("what users asked for meanwhile is there", assigned)


async def test_dfud_starts_without_hawkbit_and_serves_what_it_has(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house:
        await house.device()
        await house.publish("2.0", NEW)
        await house.want("2.0")
        action = await house.action_of()
        await house.quiet()
        await house.stop()
        await killed(hawkbit)
        try:
            await house.start()
            device = house.simulate("d1")
            await whole_way(device)
            assert device.image == NEW
            await away(house)
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:
            await until("the action is finished", lambda: person.finished(house.target(), action))


@pytest.mark.parametrize("stop_after", range(5))
async def test_dfud_killed_at_any_step_tells_everything_once_it_is_back(
    hawkbit: Hawkbit, tmp_path: Path, stop_after: int
) -> None:
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        device = await house.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, house.target())
        await until("it is wanted", lambda: house.is_wanted("2.0"))

        async def step(now: int) -> None:
            if now == stop_after:
                await house.stop()
                await house.start()

        await step(0)
        command = await sent(device)
        await step(1)
        image = await device.download(command)
        await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        await step(2)
        device.image, device.version = image, "2.0"
        await device.poll(trial=True)
        await step(3)
        await device.poll()
        await step(4)
        await until("the action is finished", lambda: person.finished(house.target(), action))
        kinds = [status["type"] for status in await person.statuses(house.target(), action)]
        assert kinds.count("finished") == 1
        assert await house.is_wanted("2.0")
        assert len(await person.actions(house.target())) == 1


async def test_a_last_feedback_whose_answer_was_lost_is_not_a_second_one(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """hawkBit took it and dfud never heard: the replay gets 410, and that means done."""
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        device = await house.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, house.target())
        await until("it is wanted", lambda: house.is_wanted("2.0"))
        await sent(device)
        await house.quiet()
        told = feedback.body("closed", "success", ["dfud died behind this"])
        answer = await person.ddi("POST", house.target(), f"/deploymentBase/{action}/feedback", json=told)
        assert answer.status_code == 200
        await whole_way(device)
        await house.quiet()
        link = await house.link()
        assert link is not None and link.action == 0 and link.problem == ""
        assert await house.is_wanted("2.0")


@pytest.mark.parametrize("which", ["token", "password"])
async def test_a_wrong_secret_is_named_and_harms_nobody(hawkbit: Hawkbit, tmp_path: Path, which: str) -> None:
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        await house.device()
        await house.publish("2.0", NEW)
        await house.want("2.0")
        action = await house.action_of()
        await house.quiet()
        await house.stop()
        file = house.token if which == "token" else house.password
        right = file.read_text()
        file.write_text("wrong")
        await house.start()
        device = house.simulate("d1")
        await whole_way(device)
        assert device.image == NEW, "the device is served"
        await away(house)

        async def named() -> bool:
            key = "gateway_token_file" if which == "token" else "password_file"
            return key in house.store.parts.worker.health.problem

        await until("the wrong key is named", named)
        await house.stop()
        file.write_text(right)
        await house.start()
        await until("the action is finished", lambda: person.finished(house.target(), action))


async def test_an_action_full_of_statuses_still_gets_its_end(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """hawkBit's quota of 1000: intermediate feedback is refused with 429 and a code, which must not be taken for a pause."""
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        device = await house.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, house.target())
        await until("it is wanted", lambda: house.is_wanted("2.0"))
        await house.quiet()
        body = feedback.body("proceeding", "none", ["x"])
        for _ in range(1100):
            answer = await person.ddi("POST", house.target(), f"/deploymentBase/{action}/feedback", json=body)
            if answer.status_code == 429:
                break
        assert answer.status_code == 429 and "quota" in answer.json()["errorCode"]
        command = await sent(device)
        await house.quiet()
        link = await house.link()
        assert link is not None and link.full and "uota" in link.problem
        assert not house.store.parts.worker.health.problem
        image = await device.download(command)
        device.image, device.version = image, "2.0"
        await device.poll()
        await until("the action is finished", lambda: person.finished(house.target(), action))


async def test_limits_and_outages_pass_and_are_counted(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """What a hawkBit that is overloaded, or a proxy in front of it, answers; only the model can be told to."""
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit does not fail on request")
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        device = await house.device()
        number = await person.simple_set("2.0", NEW)
        for status in (429, 503):
            if status == 429:
                model.limit_requests = 0
            else:
                model.outage = status
            await away(house)
            model.limit_requests = model.outage = None

            async def here() -> bool:
                return not house.store.parts.worker.health.problem

            await until("dfud is well again", here)
            assert house.store.parts.client.failures[str(status)] > 0
        for method, part in (("GET", "deploymentBase"), ("POST", "feedback"), ("GET", "download"), ("GET", "/actions")):
            model.fail_next(method, part, None, carried_out=True)
        action = await person.assign(number, house.target())
        await until("it is wanted", lambda: house.is_wanted("2.0"))
        await whole_way(device)
        await until("the action is finished", lambda: person.finished(house.target(), action))


async def test_a_full_hawkbit_is_named_and_tried_again_on_request(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """The quota of stored artifacts; only the model can be full on request."""
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit is not full on request")
    body = b'{"errorCode": "hawkbit.server.error.quota.storageExceeded", "message": "Storage quota exceeded"}'
    model.fail_next("POST", "/artifacts", Response(429, body, {"content-type": "application/json"}), times=2)
    async with house_at(hawkbit, tmp_path) as house:
        await house.device()
        await house.publish("2.0", NEW)
        await house.want("2.0")
        problems = house.store.parts.worker.problems

        async def named() -> bool:
            return "Storage quota exceeded" in problems.get(f"firmware {house.app}/2.0", "")

        await until("the quota is named", named)
        assert not house.store.parts.worker.health.problem
        await house.quiet()
        report = await Reconciler(house.store).run(house.app, dry_run=False)
        assert any(row.finding == "refused" and "Storage quota exceeded" in row.action for row in report.rows)
        await house.action_of()

        async def mended() -> bool:
            return not problems

        await until("no problem is left", mended)


async def test_idle_devices_cost_one_request_a_poll(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path, poll_s=0.2, resync_s=3600.0) as house:
        for number in range(30):
            await house.registry.create_device(house.app, Device(Metadata(f"d{number}")), "test")
            await house.simulate(f"d{number}").poll()
        await house.quiet()
        client = house.store.parts.client
        before = client.requests.copy()

        async def polled() -> bool:
            return client.requests["mgmt feed"] - before["mgmt feed"] >= 10

        await until("ten polls", polled)
        spent = client.requests - before
        assert set(spent) == {"mgmt feed"}, spent


async def test_last_contact_is_passed_on_at_a_bounded_rate(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path, seen_per_s=20.0) as house, person_at(hawkbit) as person:
        device = await house.device()
        await device.poll()

        async def seen() -> bool:
            found = await person.ask("GET", f"/targets/{house.target()}")
            return bool(found.get("lastControllerRequestAt"))

        await until("hawkBit knows of its last contact", seen)


async def test_a_neighbours_device_is_left_alone(hawkbit: Server, tmp_path: Path) -> None:
    """A device that speaks DDI itself lives in the same hawkBit, with an action, an attribute and a cancellation of its own."""
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        ours = await house.device()
        neighbour = f"neighbour-{uuid.uuid4().hex[:8]}"
        lookalike = f"other.app:{uuid.uuid4().hex[:8]}"
        number = await person.simple_set("2.0", NEW)
        for target in (neighbour, lookalike):
            assert (await person.ddi("GET", target)).status_code == 200
            answer = await person.ddi("PUT", target, "/configData", json={"mode": "merge", "data": {"hw": "1"}})
            assert answer.status_code == 200
        action = await person.assign(number, neighbour)
        await person.assign(number, lookalike)
        mine = await person.assign(number, house.target())
        await until("ours is wanted", lambda: house.is_wanted("2.0"))
        await whole_way(ours)
        await until("ours is finished", lambda: person.finished(house.target(), mine))
        await house.quiet()
        for target in (neighbour, lookalike):
            (found,) = await person.actions(target)
            kinds = [status["type"] for status in await person.statuses(target, found["id"])]
            assert kinds == ["running"], "dfud spoke for a device that is not its own"
        # The neighbour goes its own way, as its own client would.
        base = (await person.ddi("GET", neighbour)).json()["_links"]
        assert "deploymentBase" in base
        assert (await person.ddi("GET", neighbour, f"/deploymentBase/{action}")).status_code == 200
        told = feedback.body("closed", "success", ["done"])
        answer = await person.ddi("POST", neighbour, f"/deploymentBase/{action}/feedback", json=told)
        assert answer.status_code == 200
        assert await person.installed(neighbour) == "2.0"
        attributes = await person.ask("GET", f"/targets/{neighbour}/attributes")
        assert attributes == {"hw": "1"}


async def test_a_failure_of_every_attempt_closes_the_action(hawkbit: Server, tmp_path: Path) -> None:

    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        device = await house.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, house.target())
        await until("it is wanted", lambda: house.is_wanted("2.0"))
        digest = hashlib.sha256(NEW).digest()
        for _ in range(3):
            command = await sent(device)
            await device.poll(progress=Progress(command.package, 0, Phase.FETCHING))
            await device.poll(result=Result(Outcome.FAILED, digest, 8, "chunk 3 is broken"))
        await house.deployed("d1", State.FAILED)
        await until("it is closed", lambda: _error(person, house, action))
        text = " ".join((await person.statuses(house.target(), action))[-1]["messages"])
        assert "chunk 3 is broken" in text and "transfers given up: 3" in text


async def _error(person: Person, house: House, action: int) -> bool:
    return bool((await person.action(house.target(), action))["status"] == "error")


@pytest.mark.slow
async def test_ten_thousand_idle_devices_cost_what_the_guide_says(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """With the defaults, for a minute: the feed every 5 s, and no more than 5 last contacts a second."""
    names = [f"d{number:05}" for number in range(10_000)]
    defaults = {"poll_s": 5.0, "seen_per_s": 5.0, "resync_s": 900.0}
    async with house_at(hawkbit, tmp_path, **defaults) as house:
        for first in range(0, len(names), 500):
            puts = [PutDevice(Device(Metadata(name, house.app))) for name in names[first : first + 500]]
            await house.store.commit(puts)
        await until("all are registered", lambda: registered(house, len(names)), timeout_s=250)
        await house.quiet()
        client = house.store.parts.client
        before = client.requests.copy()
        for name in names:
            house.bus.publish(DeviceSeen(house.app, name, 0.0))
        await trio.sleep(60.0)
        spent = client.requests - before
        print("in 60 s:", dict(spent))
        assert set(spent) <= {"mgmt feed", "ddi poll"}, spent
        assert 1 <= spent["mgmt feed"] <= 13
        assert 1 <= spent["ddi poll"] <= 301


async def registered(house: House, count: int) -> bool:
    return len(house.store.parts.worker.targets) >= count
