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
from tests.plugins.hawkbit.harness import Harness, Person, Server, harness_at, person_at, sent, until, whole_way
from tests.plugins.hawkbit.model.routes import Response
from tests.plugins.hawkbit.server import Hawkbit

NEW = b"new image " * 3000


async def killed(server: Hawkbit) -> None:
    if not server.can_be_killed:
        pytest.skip("this hawkBit is not ours to kill")
    await trio.to_thread.run_sync(server.kill)


async def back(server: Hawkbit) -> None:
    await trio.to_thread.run_sync(server.restart)


async def away(harness: Harness) -> None:
    async def ask() -> bool:
        return bool(harness.store.sync.worker.health.problem)

    await until("dfud notices", ask)


async def test_hawkbit_killed_in_mid_update_hears_all_of_it_afterwards(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        async with person_at(hawkbit) as person:
            number = await person.simple_set("2.0", NEW)
            action = await person.assign(number, harness.target())
            await until("it is wanted", lambda: harness.is_wanted("2.0"))
        command = await sent(device)
        held = [await device._fetch(command.package.hex(), 0)]
        await harness.quiet()
        await killed(hawkbit)
        try:
            image = await device.download(command, first=1, chunks=held)
            await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
            device.image, device.version = image, "2.0"
            await device.poll(trial=True)
            answer = await device.poll()
            assert answer is not None and answer.type is Type.SYNC, "the device went all the way without hawkBit"
            await away(harness)
            # Users go on too: what they publish and ask for waits.
            await harness.publish("3.0", NEW + b"3")
            await harness.registry.create_device(harness.app, Device(Metadata("d2")), "test")
            await harness.want("3.0", "d2")
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:
            await until("the action is finished", lambda: person.finished(harness.target(), action))
            told = await person.statuses(harness.target(), action)
            text = " ".join(line for status in told for line in status["messages"])
            for state in ("written", "trial", "done"):
                assert f" {state} (" in text, f"{state} is lost: {text}"
            assert await person.installed(harness.target()) == "2.0"

            async def assigned() -> bool:
                link = await harness.link("d2")
                if link is None or not link.registered:
                    return False
                return await person.assigned(harness.target("d2")) == "3.0"

            await until("what users asked for meanwhile is there", assigned)


async def test_dfud_starts_without_hawkbit_and_serves_what_it_has(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        action = await harness.action_of()
        await harness.quiet()
        await harness.stop()
        await killed(hawkbit)
        try:
            await harness.start()
            device = harness.simulate("d1")
            await whole_way(device)
            assert device.image == NEW
            await away(harness)
        finally:
            await back(hawkbit)
        async with person_at(hawkbit) as person:
            await until("the action is finished", lambda: person.finished(harness.target(), action))


@pytest.mark.parametrize("stop_after", range(5))
async def test_dfud_killed_at_any_step_tells_everything_once_it_is_back(
    hawkbit: Hawkbit, tmp_path: Path, stop_after: int
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))

        async def step(now: int) -> None:
            if now == stop_after:
                await harness.stop()
                await harness.start()

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
        await until("the action is finished", lambda: person.finished(harness.target(), action))
        kinds = [status["type"] for status in await person.statuses(harness.target(), action)]
        assert kinds.count("finished") == 1
        assert await harness.is_wanted("2.0")
        assert len(await person.actions(harness.target())) == 1


async def test_a_retry_of_hawkbits_outlives_a_dfud_that_is_killed_before_it_is_stored(
    hawkbit: Hawkbit, tmp_path: Path
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("2.0", NEW)
        await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await sent(device)
        await device.update(good=False, text="it crashed")
        await harness.quiet()
        harness.bus.publish = lambda event: None  # type: ignore[method-assign]  # nothing comes of what is asked for
        second = await person.assign(number, harness.target())

        async def taken_over() -> bool:
            link = await harness.link()
            return link is not None and link.action == second

        await until("the new action is on record", taken_over)
        await harness.stop()
        await harness.start()
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), second))


async def test_a_last_feedback_whose_answer_was_lost_is_not_a_second_one(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """hawkBit took it and dfud never heard: the replay gets 410, and that means done."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await sent(device)
        await harness.quiet()
        told = feedback.body("closed", "success", ["dfud died behind this"])
        answer = await person.ddi("POST", harness.target(), f"/deploymentBase/{action}/feedback", json=told)
        assert answer.status_code == 200
        await whole_way(device)
        await harness.quiet()
        link = await harness.link()
        assert link is not None and link.action == 0 and link.problem == ""
        assert await harness.is_wanted("2.0")


@pytest.mark.parametrize("which", ["token", "password"])
async def test_a_wrong_secret_is_named_and_harms_nobody(hawkbit: Hawkbit, tmp_path: Path, which: str) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        action = await harness.action_of()
        await harness.quiet()
        await harness.stop()
        file = harness.token if which == "token" else harness.password
        right = file.read_text()
        file.write_text("wrong")
        await harness.start()
        device = harness.simulate("d1")
        await whole_way(device)
        assert device.image == NEW, "the device is served"
        await away(harness)

        async def named() -> bool:
            key = "gateway_token_file" if which == "token" else "password_file"
            return key in harness.store.sync.worker.health.problem

        await until("the wrong key is named", named)
        await harness.stop()
        file.write_text(right)
        await harness.start()
        await until("the action is finished", lambda: person.finished(harness.target(), action))


async def test_an_action_full_of_statuses_still_gets_its_end(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """hawkBit's quota of 1000: intermediate feedback is refused with 429 and a code, which must not be taken for a pause."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await harness.quiet()
        body = feedback.body("proceeding", "none", ["x"])
        for _ in range(1100):
            answer = await person.ddi("POST", harness.target(), f"/deploymentBase/{action}/feedback", json=body)
            if answer.status_code == 429:
                break
        assert answer.status_code == 429 and "quota" in answer.json()["errorCode"]
        command = await sent(device)
        await harness.quiet()
        link = await harness.link()
        assert link is not None and link.full and "uota" in link.problem
        assert not harness.store.sync.worker.health.problem
        image = await device.download(command)
        device.image, device.version = image, "2.0"
        await device.poll()
        await until("the action is finished", lambda: person.finished(harness.target(), action))


async def test_limits_and_outages_pass_and_are_counted(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """What a hawkBit that is overloaded, or a proxy in front of it, answers; only the model can be told to."""
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit does not fail on request")
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("2.0", NEW)
        for status in (429, 503):
            if status == 429:
                model.limit_requests = 0
            else:
                model.outage = status
            await away(harness)
            model.limit_requests = model.outage = None

            async def here() -> bool:
                return not harness.store.sync.worker.health.problem

            await until("dfud is well again", here)
            assert harness.store.sync.client.failures[str(status)] > 0
        for method, part in (("GET", "deploymentBase"), ("POST", "feedback"), ("GET", "download"), ("GET", "/actions")):
            model.fail_next(method, part, None, carried_out=True)
        action = await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await whole_way(device)
        await until("the action is finished", lambda: person.finished(harness.target(), action))


async def test_a_full_hawkbit_is_named_and_tried_again_on_request(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """The quota of stored artifacts; only the model can be full on request."""
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit is not full on request")
    body = b'{"errorCode": "hawkbit.server.error.quota.storageExceeded", "message": "Storage quota exceeded"}'
    model.fail_next("POST", "/artifacts", Response(429, body, {"content-type": "application/json"}), times=2)
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        problems = harness.store.sync.known.problems

        async def named() -> bool:
            return "Storage quota exceeded" in problems.get(f"firmware {harness.app}/2.0", "")

        await until("the quota is named", named)
        assert not harness.store.sync.worker.health.problem
        await harness.quiet()
        report = await Reconciler(harness.store).run(harness.app, dry_run=False)
        assert any(row.finding == "refused" and "Storage quota exceeded" in row.action for row in report.rows)
        await harness.action_of()

        async def mended() -> bool:
            return not problems

        await until("no problem is left", mended)


async def test_idle_devices_cost_one_request_a_poll(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, poll_s=0.2, resync_s=3600.0) as harness:
        for number in range(30):
            await harness.registry.create_device(harness.app, Device(Metadata(f"d{number}")), "test")
            await harness.simulate(f"d{number}").poll()
        await harness.quiet()
        client = harness.store.sync.client
        before = client.requests.copy()

        async def polled() -> bool:
            return client.requests["mgmt feed"] - before["mgmt feed"] >= 10

        await until("ten polls", polled)
        spent = client.requests - before
        assert set(spent) == {"mgmt feed"}, spent


async def test_last_contact_is_passed_on_at_a_bounded_rate(hawkbit: Hawkbit, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path, seen_per_s=20.0) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        await device.poll()

        async def seen() -> bool:
            found = await person.ask("GET", f"/targets/{harness.target()}")
            return bool(found.get("lastControllerRequestAt"))

        await until("hawkBit knows of its last contact", seen)


async def test_a_neighbours_device_is_left_alone(hawkbit: Server, tmp_path: Path) -> None:
    """A device that speaks DDI itself lives in the same hawkBit, with an action, an attribute and a cancellation of its own."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        ours = await harness.device()
        neighbour = f"neighbour-{uuid.uuid4().hex[:8]}"
        lookalike = f"other.app:{uuid.uuid4().hex[:8]}"
        number = await person.simple_set("2.0", NEW)
        for target in (neighbour, lookalike):
            assert (await person.ddi("GET", target)).status_code == 200
            answer = await person.ddi("PUT", target, "/configData", json={"mode": "merge", "data": {"hw": "1"}})
            assert answer.status_code == 200
        action = await person.assign(number, neighbour)
        await person.assign(number, lookalike)
        mine = await person.assign(number, harness.target())
        await until("ours is wanted", lambda: harness.is_wanted("2.0"))
        await whole_way(ours)
        await until("ours is finished", lambda: person.finished(harness.target(), mine))
        await harness.quiet()
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

    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("2.0", NEW)
        action = await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        digest = hashlib.sha256(NEW).digest()
        for _ in range(3):
            command = await sent(device)
            await device.poll(progress=Progress(command.package, 0, Phase.FETCHING))
            await device.poll(result=Result(Outcome.FAILED, digest, 8, "chunk 3 is broken"))
        await harness.deployed("d1", State.FAILED)
        await until("it is closed", lambda: _error(person, harness, action))
        text = " ".join((await person.statuses(harness.target(), action))[-1]["messages"])
        assert "chunk 3 is broken" in text and "transfers given up: 3" in text


async def _error(person: Person, harness: Harness, action: int) -> bool:
    return bool((await person.action(harness.target(), action))["status"] == "error")


@pytest.mark.slow
async def test_ten_thousand_idle_devices_cost_what_the_guide_says(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """With the defaults, for a minute: the feed every 5 s, and no more than 5 last contacts a second."""
    names = [f"d{number:05}" for number in range(10_000)]
    defaults = {"poll_s": 5.0, "seen_per_s": 5.0, "resync_s": 900.0}
    async with harness_at(hawkbit, tmp_path, **defaults) as harness:
        for first in range(0, len(names), 500):
            puts = [PutDevice(Device(Metadata(name, harness.app))) for name in names[first : first + 500]]
            await harness.store.commit(puts)
        known = harness.store.sync.known
        await until("all are registered", lambda: registered(harness, len(names)), moving=lambda: len(known.targets))
        await harness.quiet()
        client = harness.store.sync.client
        before = client.requests.copy()
        for name in names:
            harness.bus.publish(DeviceSeen(harness.app, name, 0.0))
        await trio.sleep(60.0)
        spent = client.requests - before
        print("in 60 s:", dict(spent))
        # hawkBit asks for the attributes of each target once, after it was made.
        assert set(spent) <= {"mgmt feed", "ddi poll", "ddi attributes"}, spent
        assert spent["ddi attributes"] <= spent["ddi poll"]
        assert 1 <= spent["mgmt feed"] <= 13
        assert 1 <= spent["ddi poll"] <= 301


async def registered(harness: Harness, count: int) -> bool:
    return len(harness.store.sync.known.targets) >= count
