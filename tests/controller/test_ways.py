"""A device is given the image that is for it, is led over the steps that it needs, and never gets what is recalled."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from dfud.api import Firmware, Recall, Requires, State
from dfud.controller.decide import Why
from dfud.model.firmware import Image
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Code, Defer, Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_firmware, digest


@pytest.fixture
def world() -> World:
    found = World()
    for number, version in enumerate(("1.0", "1.1", "1.2", "1.3"), 1):
        publish(found, version, number)
    return found


def publish(world: World, version: str, sequence: int, **more: Any) -> Firmware:
    made = msgspec.structs.replace(a_firmware(version), sequence=sequence, **more)
    world.publish(made)
    return made


def another(version: str, name: str, hardware: str = "esp32c3", **attributes: str) -> Image:
    sha256 = hashlib.sha256(f"{version} {name}".encode()).hexdigest()
    made = unsigned(Manifest("app", version, hardware, 2, 900, bytes.fromhex(sha256)))
    return Image(hardware, 2, 900, sha256, made, attributes=attributes)


async def whole(world: World, command: Any, **said: Any) -> None:
    """Have the device write, boot and confirm what it was told."""
    before = world.deployment
    await world.poll(
        before.from_version, digest=bytes.fromhex(before.from_sha256), progress=Progress(command.package, 10, Phase.WRITTEN), **said
    )
    runs = bytes.fromhex(before.sha256)
    await world.poll(command.version, digest=runs, trial=True, **said)
    await world.poll(command.version, digest=runs, **said)


async def explained(world: World) -> Any:
    return await world.controller.insight.explain("app", "dev")


# Several images


async def test_each_device_gets_the_image_of_its_hardware_and_revision(autojump_clock: MockClock, world: World) -> None:
    plain = world.store.firmwares_["app", "1.1"]
    world.publish(plain.with_images([plain.first, another("1.1", "rev 2", rev="2"), another("1.1", "s3", "esp32s3")]))
    world.want("1.1")
    for said, expected in (
        ({}, plain.sha256),
        ({"attributes": {"rev": "2", "x": "y"}}, another("1.1", "rev 2").sha256),
        ({"hardware": "esp32s3"}, another("1.1", "s3").sha256),
    ):
        command = await world.poll(**said)
        assert (command.type, command.version, world.deployment.sha256) == (Type.UPDATE, "1.1", expected)
        assert world.packages.ordered[-1].target.sha256 == expected
    command = await world.poll(hardware="esp32")
    assert command.type is Type.WAIT and (world.deployment.state, world.deployment.code) == (State.FAILED, Code.HARDWARE)
    assert world.deployment.text == "1.1 is for esp32c3; esp32c3 with rev=2; esp32s3, the device is esp32"
    assert (await explained(world)).code == "left" and "esp32c3 with rev=2" in (await explained(world)).sentences[0]


async def test_an_image_that_comes_later_reaches_the_boards_that_it_is_for(autojump_clock: MockClock, world: World) -> None:
    world.want("1.1")
    await world.poll(hardware="esp32s3")
    assert world.deployment.state is State.FAILED
    plain = world.store.firmwares_["app", "1.1"]
    world.publish(plain.with_images([plain.first, another("1.1", "s3", "esp32s3")]))
    command = await world.poll(hardware="esp32s3")
    assert command.type is Type.UPDATE and world.deployment.sha256 == another("1.1", "s3").sha256


async def test_a_condition_alone_bars_boards_that_do_not_say_it(autojump_clock: MockClock, world: World) -> None:
    publish(world, "1.1", 2, attributes={"rev": "2"})
    world.want("1.1")
    await world.poll(attributes={"rev": "1"})
    assert world.deployment.text == "1.1 is for esp32c3 with rev=2, the device is esp32c3 with rev=1"


async def test_what_runs_is_known_by_any_image_of_its_version(autojump_clock: MockClock, world: World) -> None:
    base = world.store.firmwares_["app", "1.0"]
    second = another("1.0", "rev 2", rev="2")
    world.publish(base.with_images([base.first, second]))
    world.want("1.1")
    await world.poll(digest=bytes.fromhex(second.sha256), kinds=14, attributes={"rev": "2"})
    found = world.packages.ordered[-1].base
    assert found is not None and (found.version, found.sha256) == ("1.0", second.sha256), "the delta is made from it"


# Steps


async def test_a_device_is_led_over_every_version_that_may_not_be_skipped(autojump_clock: MockClock, world: World) -> None:
    publish(world, "1.1", 2, stop=True)
    publish(world, "1.3", 4, requires=Requires(3, 3))
    world.want("1.3")
    for number, version in enumerate(("1.1", "1.2", "1.3"), 1):
        command = await world.poll(world.store.actuals["app", "dev"].version if number > 1 else "1.0")
        assert (command.type, command.version) == (Type.UPDATE, version)
        route = world.deployment.route
        assert route is not None and (route.step, route.steps, route.toward, route.began) == (number, 3, "1.3", "1.0")
        found = await explained(world)
        assert f"That is step {number} of 3: {version}; 1.3 cannot follow directly." in found.sentences
        assert (found.values["step"], found.values["steps"], found.values["next"]) == (number, 3, version)
        await whole(world, command)
        world.restarted()
    assert (await world.poll("1.3")).type is Type.SYNC
    assert [e.text for e in world.store.entries if e.event == "created"] == [f"device, step {n} of 3 to 1.3" for n in (1, 2, 3)]


async def test_a_way_that_changes_on_the_way_is_followed_as_it_is_now(autojump_clock: MockClock, world: World) -> None:
    publish(world, "1.1", 2, stop=True)
    world.want("1.3")
    await whole(world, await world.poll())
    publish(world, "1.2", 3, stop=True)
    assert (await world.poll("1.1")).version == "1.2"
    route = world.deployment.route
    assert route is not None and (route.step, route.steps) == (2, 3)


async def test_where_no_way_leads_nothing_is_sent_and_the_reason_is_said(autojump_clock: MockClock, world: World) -> None:
    publish(world, "1.3", 4, requires=Requires(3, 3))
    world.withdraw("1.2")
    world.want("1.3")
    assert (await world.poll()).type is Type.WAIT
    found = await explained(world)
    assert found.code == Why.NO_PATH.value and "it takes sequences 3 to 3, the device runs sequence 1" in found.sentences[0]
    assert "dfuctl firmware ways 1.3" in found.todo
    publish(world, "1.2", 3)
    assert (await world.poll()).version == "1.2", "a step came"


async def test_an_image_that_nobody_published_has_the_sequence_that_the_device_accepts(
    autojump_clock: MockClock, world: World
) -> None:
    publish(world, "1.1", 2, stop=True)
    world.want("1.3")
    assert (await world.poll("odd", sequence=2)).version == "1.3"
    assert (await world.poll("odd")).version == "1.1", "nobody knows: it counts as older than all"


async def test_a_step_that_was_left_stands_in_the_way(autojump_clock: MockClock, world: World) -> None:
    publish(world, "1.1", 2, stop=True)
    world.want("1.3")
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll(result=Result(Outcome.ROLLED_BACK, bytes.fromhex(digest("1.1")), 1, "boom", 3))
    assert (await world.poll()).type is Type.WAIT and (await explained(world)).code == "left"
    await world.controller.retry("app", "dev", "eva")
    assert (await world.poll()).version == "1.1"


# Recalls


async def test_nobody_gets_what_is_recalled_and_what_is_under_way_is_stopped(autojump_clock: MockClock, world: World) -> None:
    world.want("1.1")
    command = await world.poll()
    package = command.package.hex()
    assert world.controller.fetches.package_of("app", "dev") == package
    publish(world, "1.1", 2, recalled=Recall("it burns", "eva"))
    assert not world.controller.fetches.package_of("app", "dev"), "not even the rest of a transfer"
    world.restarted()
    assert await world.controller.load_package_of("app", "dev") == "" and not world.controller.fetches.package_of("app", "dev")
    answer = await world.poll(progress=Progress(command.package, 3))
    assert (answer.type, answer.reason) == (Type.STOP, "1.1 is recalled: it burns")
    assert (world.deployment.state, world.deployment.blocks) == (State.CANCELLED, False)
    found = await explained(world)
    assert found.code == Why.RECALLED.value
    assert found.sentences[0] == "1.1 is not sent to anybody: 1.1 is recalled: it burns." and "unrecall 1.1" in found.todo
    publish(world, "1.1", 2)
    assert (await world.poll()).type is Type.UPDATE and world.controller.fetches.package_of("app", "dev")


async def test_who_runs_what_is_recalled_is_where_it_should_be(autojump_clock: MockClock, world: World) -> None:
    publish(world, "1.1", 2, recalled=Recall("it burns"))
    world.want("1.1")
    assert (await world.poll("1.1")).type is Type.SYNC
    world.want("1.2")
    assert (await world.poll("1.1")).version == "1.2"


async def test_a_pause_of_the_agents_own_is_told_from_the_applications(autojump_clock: MockClock, world: World) -> None:
    world.want("1.1")
    for own in (False, True):
        await world.poll(defer=Defer("later", 60, own))
        actual = world.store.actuals["app", "dev"]
        assert (actual.defer_reason, actual.defer_own) == ("later", own)
        assert (await explained(world)).code == "deferred"


async def test_an_image_that_knows_no_version_has_the_one_it_was_published_as(autojump_clock: MockClock, world: World) -> None:
    """A stock image that was flashed by hand has no manifest, and its agent says version 0."""
    world.want("1.1")
    await world.poll("0", digest=bytes.fromhex(digest("1.0")))
    assert (world.deployment.from_version, world.deployment.version) == ("1.0", "1.1")
    actual = world.store.actuals["app", "dev"]
    assert (actual.version, actual.sha256) == ("1.0", digest("1.0"))
    await world.poll("0", digest=hashlib.sha256(b"nobody published it").digest())
    assert world.store.actuals["app", "dev"].version == "0"
    await world.poll("1.7", digest=bytes.fromhex(digest("1.0")))
    assert world.store.actuals["app", "dev"].version == "1.7", "what a device says of itself is not corrected"
