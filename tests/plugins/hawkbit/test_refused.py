"""What hawkBit refuses is never taken for told: the end of an action reaches it, if need be without a word."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from dfud.wire.messages import Phase, Progress
from tests.plugins.hawkbit.harness import Harness, Person, Server, harness_at, person_at, sent, until, whole_way
from tests.plugins.hawkbit.model import HawkbitModel
from tests.plugins.hawkbit.model.routes import Response
from tests.plugins.hawkbit.server import Hawkbit

NEW = b"new image " * 3000
TRACE = 'Traceback (most recent call last):\n  File "main.py", line 3, in <module>\nValueError: no such pin'
BAD = Response(
    400,
    b'{"errorCode":"hawkbit.server.error.repo.constraintViolation","message":"Invalid characters in string."}',
    {"content-type": "application/json"},
)


def model_of(hawkbit: Hawkbit) -> HawkbitModel:
    if hawkbit.model is None:
        pytest.skip("a real hawkBit does not refuse on request")
    return hawkbit.model


async def status(person: Person, harness: Harness, action: int, name: str = "d1") -> str:
    return str((await person.action(harness.target(name), action))["status"])


async def ends(person: Person, harness: Harness, action: int, wanted: str, name: str = "d1") -> None:
    async def ask() -> bool:
        return await status(person, harness, action, name) == wanted

    await until(f"the action is {wanted}", ask)


async def test_a_traceback_closes_the_action_and_is_read_in_hawkbit(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await sent(device)
        await device.update(good=False, text=TRACE)
        await ends(person, harness, action, "error")
        text = " ".join((await person.statuses(harness.target(), action))[-1]["messages"])
        assert "in \N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}module\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}" in text
        assert "ValueError: no such pin" in text
        await harness.quiet()  # hawkBit has it before dfud has kept that
        link = await harness.link()
        assert link is not None and (link.action, link.problem) == (0, "")


async def test_a_bad_firmware_does_not_reach_the_next_group_of_a_rollout(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        for name in ("one", "two"):
            await harness.device(name)
        group = {
            "targetPercentage": 100,
            "successCondition": {"condition": "THRESHOLD", "expression": "50"},
            "errorCondition": {"condition": "THRESHOLD", "expression": "20"},
            "errorAction": {"action": "PAUSE", "expression": ""},
        }
        body = {
            "name": f"rollout-{uuid.uuid4().hex[:8]}",
            "targetFilterQuery": f"controllerId=={harness.app}:*",
            "distributionSetId": await person.simple_set("2.0", NEW),
            "groups": [
                {**group, "name": name, "targetFilterQuery": f"controllerId=={harness.target(name)}"}
                for name in ("one", "two")
            ],
        }
        rollout = (await person.ask("POST", "/rollouts", json=body))["id"]

        async def is_(wanted: str) -> bool:
            return bool((await person.ask("GET", f"/rollouts/{rollout}"))["status"] == wanted)

        await until("the rollout is ready", lambda: is_("ready"))
        await person.ask("POST", f"/rollouts/{rollout}/start")
        await until("the first group wants it", lambda: harness.is_wanted("2.0", "one"))
        await sent(harness.devices["one"])
        await harness.devices["one"].update(good=False, text=TRACE)
        await until("the rollout pauses", lambda: is_("paused"))
        await harness.quiet()
        assert await harness.wanted("two") is None
        (waiting,) = await person.actions(harness.target("two"))
        assert waiting["status"] == "scheduled"


async def test_an_end_that_is_refused_for_its_text_is_sent_again_bare(hawkbit: Hawkbit, tmp_path: Path) -> None:
    model = model_of(hawkbit)
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        command = await sent(device)
        await device.download(command)
        await harness.quiet()
        model.fail_next("POST", f"/deploymentBase/{action}/feedback", BAD, says=b'"closed"')
        await device.update(good=False, text="any text")
        await ends(person, harness, action, "error")
        last = (await person.statuses(harness.target(), action))[-1]
        assert last["messages"] == ["Update Server: Target reported CLOSED with ERROR!."]


async def test_an_end_that_is_refused_bare_too_is_not_told_and_comes_again(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """Also over a restart: nothing counts as told but what hawkBit took."""
    model = model_of(hawkbit)
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await sent(device)
        await harness.quiet()
        model.fail_next("POST", f"/deploymentBase/{action}/feedback", BAD, times=100_000)
        try:
            await device.update(good=False, text="any text")

            async def told() -> bool:
                link = await harness.link()
                return link is not None and "sent again" in link.problem and link.action == action

            await until("its refusal is told", told)
            assert await status(person, harness, action) != "error"
            await harness.stop()
            await harness.start()
            assert "sent again" in harness.store.sync.known.problems[f"{harness.app}/d1"]
        finally:
            model.fail_next_clear()
        await ends(person, harness, action, "error")

        async def well() -> bool:
            link = await harness.link()
            return link is not None and (link.action, link.problem) == (0, "")

        await until("no problem is left", well)


@pytest.mark.parametrize("refused", [False, True], ids=["told first", "refused"])
@pytest.mark.parametrize("good", [False, True], ids=["rolled back", "done"])
async def test_a_cancel_of_a_deployment_that_has_ended_is_answered(
    hawkbit: Hawkbit, tmp_path: Path, good: bool, refused: bool
) -> None:
    """Its end is told in place of a refusal; where hawkBit does not take that, the cancel is accepted."""
    model = model_of(hawkbit)
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await sent(device)
        await harness.quiet()
        model.fail_next("POST", f"/deploymentBase/{action}/feedback", BAD, times=100_000)
        try:
            await (whole_way(device) if good else device.update(good=False, text="any text"))

            async def stuck() -> bool:
                link = await harness.link()
                return link is not None and "sent again" in link.problem

            await until("its end is not taken", stuck)
            await person.ask("DELETE", f"/targets/{harness.target()}/actions/{action}")
            if not refused:
                model.fail_next_clear()
            await ends(person, harness, action, "canceled" if refused else "finished" if good else "error")
        finally:
            model.fail_next_clear()
        said = [text for s in await person.statuses(harness.target(), action) for text in s["messages"]]
        assert not any("point of return" in text for text in said)


async def test_a_proxys_not_found_does_not_end_an_action(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """While hawkBit is being replaced, what stands before it answers 404 with a page of its own."""
    model = model_of(hawkbit)
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        command = await sent(device)
        image = await device.download(command)
        await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        await harness.quiet()
        page = Response(404, b"<html><body>404 Not Found</body></html>", {"content-type": "text/html"})
        model.fail_next("POST", "/feedback", page, times=3)
        device.image, device.version = image, "2.0"
        await device.poll()
        await ends(person, harness, action, "finished")
        assert harness.store.sync.client.failures["404"] == 3


@pytest.mark.parametrize("code", [301, 302, 202, 204])
async def test_only_what_hawkbit_answers_itself_counts_as_done(hawkbit: Hawkbit, tmp_path: Path, code: int) -> None:
    """A login page in front of it, or a proxy that takes everything: nothing is told, and the sentence says what was found."""
    model = model_of(hawkbit)
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await harness.quiet()
        headers = {"location": "https://u:secret@login.example/in?token=secret"} if code < 400 and code > 299 else {}
        model.fail_next("POST", "/feedback", Response(code, b"", headers), times=100_000)
        try:
            await whole_way(device)
            seen: set[str] = set()

            async def told() -> bool:
                sync = harness.store.sync
                seen.update([sync.worker.health.problem, *sync.known.problems.values()])
                return any(f"answered {code}" in text and "expected 200" in text for text in seen)

            await until("what was found is told", told)
            assert not any("secret" in text for text in seen)
            assert await status(person, harness, action) != "finished"
        finally:
            model.fail_next_clear()
        await ends(person, harness, action, "finished")
