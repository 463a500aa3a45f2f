"""Every answer of decide() has a code and a sentence; and what is explained is what the next status will be told."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from dfud.api import App, Metadata, NotFoundError
from dfud.controller.decide import HELD_TEXT, Why
from dfud.controller.explain import NEVER_SEEN, SENTENCES, SILENT
from dfud.wire.messages import Code, Defer, Outcome, Result, Type
from tests.controller.world import World, a_firmware, digest


def test_every_code_has_its_sentence() -> None:
    assert set(SENTENCES) == set(Why)
    assert {Why(code) for code in HELD_TEXT} == {Why.WINDOW, Why.RATE, Why.CEILING}


@pytest.fixture
def world() -> World:
    found = World()
    found.want("1.1")
    return found


async def test_who_was_never_seen_and_who_is_silent(world: World, autojump_clock: trio.testing.MockClock) -> None:
    assert (await world.controller.explain("app", "dev")).code == NEVER_SEEN
    with pytest.raises(NotFoundError):
        await world.controller.explain("app", "nobody")
    await world.poll("1.0")
    await trio.sleep(10 * 86400)
    found = await world.controller.explain("app", "dev")
    assert found.code == SILENT and found.values["silentS"] >= 10 * 86400
    assert "not heard of since" in found.sentences[0] and "power" in found.todo


async def test_what_it_runs_what_it_should_and_who_says_so(world: World) -> None:
    await world.poll("1.1")
    found = await world.controller.explain("app", "dev")
    assert found.code == "in-sync"
    assert found.sentences[0] == "It runs what it should, 1.1."
    assert "It should run 1.1: its own spec.firmware says so." in found.sentences
    world.want(None)
    assert (await world.controller.explain("app", "dev")).code == "nothing-wanted"
    world.put_app({"signing": {"mode": "optional"}, "rules": [{"selector": "!x", "firmware": {"version": "1.2"}}]})
    found = await world.controller.explain("app", "dev")
    assert "It should run 1.2: rule 1 says so." in found.sentences and found.code == "sent"
    await world.poll("9.9")
    assert any("an image that nobody published here" in s for s in (await world.controller.explain("app", "dev")).sentences)


async def test_what_stands_in_its_way(world: World, autojump_clock: trio.testing.MockClock) -> None:
    async def code() -> str:
        return (await world.controller.explain("app", "dev")).code

    command = await world.poll("1.0")
    assert command.type is Type.UPDATE
    found = await world.controller.explain("app", "dev")
    assert found.code == "sent" and "notified, 0 of 10 chunks" in found.sentences[0]
    await world.poll("1.0", trial=True)
    assert await code() == "trial"
    world.want("1.1", hold=True, reason="not on Fridays")
    await world.poll("1.0")
    found = await world.controller.explain("app", "dev")
    assert (found.code, "not on Fridays" in found.sentences[0]) == ("hold", True)
    world.want("1.1")
    await world.poll("1.0", defer=Defer("valve open", 600))
    found = await world.controller.explain("app", "dev")
    assert found.code == "deferred" and "valve open" in found.sentences[0] and found.values["deferred"] == "valve open"
    await world.poll("1.0")
    await world.poll("1.0", result=Result(Outcome.FAILED, bytes.fromhex(digest("1.1")), int(Code.CHUNK), "torn"))
    found = await world.controller.explain("app", "dev")
    assert found.code == "back-off" and "Attempt 1 came to nothing (torn)" in found.sentences[0]
    await trio.sleep(60)
    await world.poll("1.0")
    await world.poll("1.0", result=Result(Outcome.ROLLED_BACK, bytes.fromhex(digest("1.1")), 1, "boom", 3))
    found = await world.controller.explain("app", "dev")
    assert found.code == "left" and "ran it and went back and said: boom" in found.sentences[0]
    assert "dfuctl retry dev" in found.todo


async def test_what_can_never_be_and_what_may_not_be(world: World) -> None:
    await world.poll("1.0")
    for firmware, expected in (
        (a_firmware("1.2", hardware="esp32"), "hardware"),
        (a_firmware("1.2", size=200_000), "too-large"),
    ):
        world.publish(firmware)
        world.want("1.2")
        assert (await world.controller.explain("app", "dev")).code == expected
    world.want("7.7")
    assert (await world.controller.explain("app", "dev")).code == "bad-spec"
    world.publish(a_firmware("1.3"))
    world.want("1.3")
    world.put_app({"signing": {"mode": "required", "keys": []}})
    found = await world.controller.explain("app", "dev")
    assert found.code == "barred" and "it is not signed" in found.sentences[0]


async def test_what_a_rollout_waits_for(world: World, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    app = App(Metadata("app", uid="u"), {"signing": {"mode": "optional"}})
    world.store.apps_["app"] = app
    world.want(None)
    await nursery.start(world.controller.run)
    await world.poll("1.0")
    window = {"days": ["sun"], "from": "01:00", "to": "01:01"}
    spec: dict[str, object] = {"firmware": "1.1", "waves": [{"percent": 100}], "windows": [window]}
    await world.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=False)
    await trio.sleep(5)
    found = await world.controller.explain("app", "dev")
    assert found.code == "window" and found.values["until"] in found.sentences[0]
    assert "It should run 1.1: rollout r says so." in found.sentences
    nursery.cancel_scope.cancel()


async def test_explaining_changes_nothing(world: World) -> None:
    await world.poll("1.0")
    commits, deployment = world.store.commits, world.deployment
    for _ in range(3):
        await world.controller.explain("app", "dev")
    assert world.store.commits == commits and world.deployment == deployment


def test_the_document_has_every_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text().split("## Explain")[1]
    for code in (NEVER_SEEN, SILENT, *(why.value for why in Why)):
        assert f"`{code}`" in text, code
