"""A re-signed manifest and devices that run its image: who gets it, and that it has an end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from dfud.api import Firmware, State
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Code, Outcome, Phase, Progress, Result, Type
from tests.controller.test_verdicts import left, shown, whole_way
from tests.controller.world import World, a_firmware, digest


@pytest.fixture
def world() -> World:
    made = World()
    made.want("1.1")
    return made


def signed_again(sequence: int, **fields: Any) -> Firmware:
    sha256 = bytes.fromhex(digest("1.1"))
    manifest = unsigned(Manifest("app", "1.1", "esp32c3", sequence, 1000, sha256, **fields))
    return msgspec.structs.replace(a_firmware("1.1"), sequence=sequence, manifest=manifest)


async def test_a_newer_manifest_reaches_a_device_that_runs_its_image(autojump_clock: MockClock, world: World) -> None:
    await whole_way(world)
    assert (await world.poll("1.1", manifest=1)).type is Type.SYNC
    renewed = signed_again(5, floor=4)
    world.publish(renewed)
    command = await world.poll("1.1", manifest=1)
    assert (command.type, command.manifest, command.version) == (Type.UPDATE, renewed.manifest, "1.1")
    assert shown(world)["InSync"][:2] == ("False", "notified")  # type: ignore[index]
    assert "not in force there yet" in shown(world)["ManifestCurrent"][2]  # type: ignore[index]
    told = await world.controller.insight.explain("app", "dev")
    assert any("under the manifest with sequence 1; it gets it again under the one with sequence 5" in s for s in told.sentences)
    await world.poll("1.1", manifest=1, progress=Progress(command.package, command.chunks, Phase.WRITTEN))
    assert world.deployment.state == "written", "it is no sign of success that it runs the image: it did before"
    await world.poll("1.1", manifest=5, trial=True)
    assert world.deployment.state == "trial"
    for _ in range(20):
        assert (await world.poll("1.1", manifest=5)).type is Type.SYNC
    assert (world.deployment.state, world.deployment.number) == (State.DONE, 2)
    assert shown(world)["InSync"][0] == "True"  # type: ignore[index]
    assert "ManifestCurrent" not in shown(world)
    world.restarted()
    assert (await world.poll("1.1", manifest=5)).type is Type.SYNC


@pytest.mark.parametrize("fields", [{"floor": 5}, {"add": (bytes(32),)}, {"revoke": (bytes(8),)}])
async def test_floor_and_keys_matter(autojump_clock: MockClock, world: World, fields: dict[str, Any]) -> None:
    world.publish(signed_again(5, **fields))
    assert (await world.poll("1.1", manifest=4)).type is Type.UPDATE


@pytest.mark.parametrize(
    ("sequence", "fields", "has"),
    [
        (5, {}, 4),  # it says nothing that the device needs
        (5, {"floor": 5}, None),  # the device does not say what it has
        (5, {"floor": 5}, 5),
        (5, {"floor": 5}, 9),  # an older one would be refused
    ],
)
async def test_nothing_is_sent_where_it_would_change_nothing(
    autojump_clock: MockClock, world: World, sequence: int, fields: dict[str, Any], has: int | None
) -> None:
    world.publish(signed_again(sequence, **fields))
    assert (await world.poll("1.1", manifest=has)).type is Type.SYNC
    assert shown(world)["InSync"][0] == "True"  # type: ignore[index]


async def test_one_that_is_refused_is_given_up(autojump_clock: MockClock, world: World) -> None:
    world.publish(signed_again(5, floor=5))
    sent = 0
    for number in range(1, 60):
        command = await world.poll("1.1", manifest=1)
        sent += command.type is Type.UPDATE
        if command.type is Type.UPDATE:
            result = Result(Outcome.FAILED, bytes.fromhex(digest("1.1")), int(Code.SIGNATURE), "no key", number=number)
            await world.poll("1.1", manifest=1, result=result)
    assert sent == 1
    assert (world.deployment.state, world.deployment.blocks) == (State.FAILED, True)
    assert shown(world)["InSync"] == ("False", "failed", "no key")
    # Another manifest may do better.
    world.publish(signed_again(6, floor=5))
    assert (await world.poll("1.1", manifest=1)).type is Type.UPDATE


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("told", [False, True])
async def test_one_that_is_left_is_not_sent_again(autojump_clock: MockClock, world: World, confirmed: bool, told: bool) -> None:
    """The device runs the same image before and after: only the manifest says which of its copies."""
    world.publish(signed_again(5, floor=1))
    assert (await world.poll("1.1", manifest=1)).type is Type.UPDATE
    await world.poll("1.1", manifest=5, trial=True)
    if confirmed:
        await world.poll("1.1", manifest=5)
        assert world.deployment.state is State.DONE
    for _ in range(30):
        assert (await world.poll("1.1", manifest=1, result=left("1.1") if told else None)).type is Type.WAIT
    assert (world.deployment.state, world.deployment.blocks) == (State.ROLLED_BACK, True)


async def test_a_manifest_that_is_replaced_on_the_way_is_the_one_that_counts(autojump_clock: MockClock, world: World) -> None:
    world.publish(signed_again(5, floor=5))
    await world.poll("1.1", manifest=1)
    world.publish(signed_again(7, floor=7))
    assert (await world.poll("1.1", manifest=1)).manifest == signed_again(7, floor=7).manifest
    await world.poll("1.1", manifest=7)
    assert world.deployment.state is State.DONE
    # And one that is taken back ends what was begun for it.
    world.publish(signed_again(9, floor=9))
    assert (await world.poll("1.1", manifest=7)).type is Type.UPDATE
    world.publish(signed_again(7, floor=7))
    assert (await world.poll("1.1", manifest=7)).type is Type.SYNC
    assert (world.deployment.state, world.deployment.blocks) == (State.CANCELLED, False)
