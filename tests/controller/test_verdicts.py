"""What ends an update loop, what counts as an attempt, and what ends a verdict: a device's statuses through the controller."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dfud.api import DeviceView, Firmware, State, StoreError
from dfud.controller.observe import are_twins
from dfud.model.desired import desired_of
from dfud.model.quickest import Measured
from dfud.registry.status import firmware_status
from dfud.wire.messages import Code, Command, Outcome, Phase, Progress, Result, Starts, Type, code_name
from tests.controller.world import World, a_firmware, digest


@pytest.fixture
def world() -> World:
    made = World()
    made.want("1.1")
    return made


async def whole_way(world: World, version: str = "1.1", start: str = "1.0") -> None:
    command = await world.poll(start)
    assert command.type is Type.UPDATE
    await world.poll(start, progress=Progress(command.package, command.chunks, Phase.WRITTEN))
    await world.poll(version, trial=True)
    await world.poll(version)
    assert world.deployment.state is State.DONE


def left(version: str, text: str = "") -> Result:
    return Result(
        outcome=Outcome.ROLLED_BACK,
        digest=bytes.fromhex(digest(version)),
        code=int(Code.CRASHED),
        text=text,
        attempts=3,
        reset=12,
        record=b"rec",
    )


def failed(version: str, code: Code = Code.CHUNK, number: int = 0) -> Result:
    return Result(Outcome.FAILED, bytes.fromhex(digest(version)), int(code), "x", number=number)


def status_of(world: World) -> dict[str, Any]:
    store = world.store
    found = DeviceView(store.devices_["app", "dev"], store.actuals.get(("app", "dev")), store.newest("app", "dev"))
    target = store.firmwares_.get(("app", found.device.spec.get("firmware", {}).get("version", "")))
    app = store.apps_["app"]
    return firmware_status(app, found, target, desired_of(app.spec, found.device.spec))


def shown(world: World) -> dict[str, object]:
    out = status_of(world)
    return {c["type"]: (c["status"], c.get("reason", ""), c.get("message", "")) for c in out["conditions"]} | {
        "deployment": out.get("deployment")
    }


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (None, None),
        (Measured(), None),
        (Measured(180), {"bytesPerSecond": 180}),
        (Measured(0, 1500), {"slowness": 1.5}),
        (Measured(180, 1500), {"bytesPerSecond": 180, "slowness": 1.5}),
    ],
)
async def test_what_no_transfer_has_shown_is_left_out(
    autojump_clock: MockClock, world: World, measured: Measured | None, expected: dict[str, object] | None
) -> None:
    await world.poll()
    key = ("app", "dev")
    world.store.actuals[key] = msgspec.structs.replace(world.store.actuals[key], measured=measured)
    assert status_of(world)["actual"].get("measured") == expected


async def test_who_goes_back_without_a_word_is_not_called_ok(autojump_clock: MockClock, world: World) -> None:
    await whole_way(world)
    await world.poll("1.0")
    found: Any = shown(world)["deployment"]
    assert (found["state"], found["result"]["code"], found["result"]["reason"]) == ("rolled-back", 0, "unexplained")
    assert code_name(Code.OK, "done") == "ok" and code_name(Code.CRASHED, "rolled-back") == "crashed"


async def test_an_image_that_confirms_and_is_left_later_is_not_sent_again(
    autojump_clock: MockClock, world: World
) -> None:
    updates = 0
    await whole_way(world)
    for _ in range(30):
        command = await world.poll("1.0", result=left("1.1", "MemoryError"))
        updates += command.type is Type.UPDATE
    assert updates == 0
    d = world.deployment
    assert (d.state, d.blocks, d.text, d.record, d.crashes) == (State.ROLLED_BACK, True, "MemoryError", b"rec", 3)
    assert shown(world)["InSync"] == ("False", "rolled-back", "MemoryError")
    world.restarted()
    assert (await world.poll("1.0", result=left("1.1", "MemoryError"))).type is Type.WAIT
    world.want("1.2")
    assert (await world.poll()).type is Type.UPDATE, "another one is sent"


async def test_one_that_goes_back_without_a_word_is_not_sent_again_either(
    autojump_clock: MockClock, world: World
) -> None:
    await whole_way(world)
    for _ in range(30):
        assert (await world.poll("1.0")).type is Type.WAIT
    assert (world.deployment.state, world.deployment.blocks) == (State.ROLLED_BACK, True)
    await world.poll("1.0", result=left("1.1", "the reason"))
    assert world.deployment.text == "the reason", "it may come later"


async def test_a_repeated_report_does_not_undo_a_retry(autojump_clock: MockClock, world: World) -> None:
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll("1.1", trial=True)
    await world.poll("1.0", result=left("1.1"))
    assert world.deployment.blocks
    await world.controller.retry("app", "dev", "eve")
    for _ in range(3):  # its answers were lost
        assert (await world.poll("1.0", result=left("1.1"))).type is Type.UPDATE
    assert world.deployment.number == 2
    # A new one of the same words is a new one.
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll("1.1", trial=True)
    await world.poll("1.0", result=left("1.1"))
    assert (world.deployment.number, world.deployment.state, world.deployment.blocks) == (2, State.ROLLED_BACK, True)


@pytest.mark.parametrize("number", [0, 7])
async def test_one_failure_and_its_repeats_are_one_failure(
    autojump_clock: MockClock, world: World, number: int
) -> None:
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 3))
    for _ in range(5):
        await world.poll(result=failed("1.1", number=number))
    assert world.deployment.attempts == 1
    await trio.sleep(20)
    for _ in range(5):
        assert (await world.poll(result=failed("1.1", number=number))).type is Type.UPDATE
    assert (world.deployment.attempts, world.deployment.state) == (1, State.NOTIFIED)


async def test_failures_before_the_first_chunk_come_to_an_end_though_they_read_alike(
    autojump_clock: MockClock, world: World
) -> None:
    """Each update fails where it begins, with the same words: nobody can tell that from a lost answer, but not for ever."""
    for number in range(400):
        await world.poll(result=failed("1.1") if number else None)
        await trio.sleep(5)
        if world.deployment.state is State.FAILED:
            break
    assert world.deployment.state is State.FAILED
    assert world.deployment.attempts == 3


async def test_restarts_in_mid_transfer_end_where_the_device_gets_no_further(
    autojump_clock: MockClock, world: World
) -> None:
    transfers = 0
    for _ in range(200):
        command = await world.poll()
        transfers += command.type is Type.UPDATE
        if command.type is Type.UPDATE:
            await world.poll(progress=Progress(command.package, 4))
        await trio.sleep(3)
    assert (world.deployment.state, world.deployment.attempts) == (State.FAILED, 3)
    assert transfers <= 12
    assert "beyond chunk 4 of 10" in world.deployment.text


async def test_a_device_that_gets_a_little_further_each_time_arrives(autojump_clock: MockClock, world: World) -> None:
    for reached in range(1, 10):
        command = await world.poll()
        assert command.type is Type.UPDATE, reached
        await world.poll(progress=Progress(command.package, reached))
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll("1.1", trial=True)
    await world.poll("1.1")
    assert (world.deployment.state, world.deployment.attempts) == (State.DONE, 0)


async def test_chunks_that_are_fetched_over_and_over_come_to_an_end(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    await nursery.start(world.controller.run)
    fetched = 0
    for _ in range(1000):
        command = await world.poll()
        if world.deployment.state is State.FAILED:
            break
        for number in range(9 if command.type is Type.UPDATE else 0):
            world.controller.fetched("app", "dev", command.package.hex(), number)
            fetched += 1
            await trio.sleep(0.01)
        if command.type is Type.UPDATE:
            await world.poll(progress=Progress(command.package, 0))
        await trio.sleep(40)
    assert world.deployment.state is State.FAILED
    assert fetched < 400
    nursery.cancel_scope.cancel()


async def test_a_chunk_that_is_fetched_in_blocks_is_one_chunk(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    await nursery.start(world.controller.run)
    command = await world.poll()
    for number in range(10):
        for _ in range(64):
            world.controller.fetched("app", "dev", command.package.hex(), number)
        await trio.sleep(10)
        await world.poll(progress=Progress(command.package, number))
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    assert (world.deployment.state, world.deployment.attempts) == (State.WRITTEN, 0)
    nursery.cancel_scope.cancel()


async def test_a_verdict_ends_with_its_cause(autojump_clock: MockClock, world: World) -> None:
    world.publish(a_firmware("1.1", size=200_000))
    assert (await world.poll()).type is Type.WAIT
    assert world.deployment.code == Code.TOO_LARGE
    assert (await world.poll()).type is Type.WAIT
    assert (await world.poll(capacity=1 << 20)).type is Type.UPDATE, "repartitioned"
    world.publish(a_firmware("1.1", hardware="esp32s3"))
    world.want("1.2")
    await world.poll()
    world.publish(a_firmware("1.2", hardware="esp32s3"))
    world.want("1.1")
    assert (await world.poll()).type is Type.WAIT
    assert world.deployment.code == Code.HARDWARE
    assert (await world.poll(hardware="esp32s3")).type is Type.UPDATE, "another board"


async def test_a_refused_signature_ends_with_the_manifest(autojump_clock: MockClock, world: World) -> None:
    await world.poll()
    await world.poll(result=failed("1.1", Code.SIGNATURE))
    assert (await world.poll()).type is Type.WAIT
    again = a_firmware("1.1")
    other: Firmware = msgspec.structs.replace(again, manifest=a_firmware("1.1", size=999).manifest)
    world.publish(other)
    assert (await world.poll()).type is Type.UPDATE


async def test_what_a_user_cancelled_stays_so_whatever_changes(autojump_clock: MockClock, world: World) -> None:
    await world.controller.cancel("app", "dev", "eve")
    assert (await world.poll(capacity=1 << 20)).type is Type.WAIT
    assert (await world.poll(hardware="esp32s3", capacity=5)).type is Type.WAIT


async def test_two_boards_with_one_identity_are_noticed_and_neither_is_blocked(
    autojump_clock: MockClock, world: World
) -> None:
    await whole_way(world)
    for _ in range(3):
        await world.poll("1.0")  # the other board
        assert (await world.poll("1.1")).type is Type.SYNC
    actual = world.store.actuals["app", "dev"]
    assert are_twins(actual.twins, actual.seen_s)
    assert shown(world)["DuplicateIdentity"][:2] == ("True", "Contradiction")  # type: ignore[index]
    assert [e.event for e in world.store.entries].count("duplicate-identity") == 1
    # The other one gets the update, too, while this one goes on saying that it has it.
    for _ in range(100):
        command = await world.poll("1.0")
        await world.poll("1.1")
        if command.type is Type.UPDATE:
            break
        await trio.sleep(10)
    assert command.type is Type.UPDATE
    await world.poll("1.0", progress=Progress(command.package, 3))
    await world.poll("1.1")
    assert (await world.poll("1.0", progress=Progress(command.package, 10, Phase.WRITTEN))).type is Type.UPDATE
    await world.poll("1.1", trial=True)
    await world.poll("1.1")
    assert (world.deployment.state, world.deployment.blocks) == (State.DONE, False)


async def test_a_count_of_starts_that_jumps_is_a_sign_of_two_boards(autojump_clock: MockClock, world: World) -> None:
    for _ in range(3):
        await world.poll("1.1", starts=Starts(40))
        await world.poll("1.1", starts=Starts(7))
    actual = world.store.actuals["app", "dev"]
    assert are_twins(actual.twins, actual.seen_s)


async def test_one_board_that_is_flashed_by_hand_is_not_taken_for_two(autojump_clock: MockClock, world: World) -> None:
    for number in range(5):
        await whole_way(world)
        await world.poll("1.0", starts=Starts(number))
        await world.controller.retry("app", "dev", "eve")
    assert not are_twins(world.store.actuals["app", "dev"].twins, world.wall)


async def test_crashes_after_a_confirmation_are_counted_and_shown(autojump_clock: MockClock, world: World) -> None:
    await whole_way(world)
    await world.poll("1.1", starts=Starts(10, 2))
    for number in range(5):
        await world.poll("1.1", starts=Starts(11 + number, 3 + number, 12, "Traceback\nMemoryError: 4096 bytes"))
    assert shown(world)["Healthy"] == (
        "False",
        "Crashed",
        "5 of 6 starts of 1.1 ended in a crash: MemoryError: 4096 bytes",
    )
    assert shown(world)["InSync"] == ("True", "", "")


async def test_a_clock_that_is_set_back_makes_nobody_wait_for_it(autojump_clock: MockClock, world: World) -> None:
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 3))
    world.wall += 300 * 86400
    await world.poll(result=failed("1.1"))
    world.wall -= 300 * 86400
    assert (await world.poll()).poll_s <= world.policy.retry_max_s + 1
    await trio.sleep(world.policy.retry_max_s + 1)
    assert (await world.poll()).type is Type.UPDATE


async def test_what_is_not_of_now_is_not_shown(autojump_clock: MockClock, world: World) -> None:
    await whole_way(world)
    world.want("1.2")
    assert shown(world)["InSync"] == ("False", "pending", "")
    command = await world.poll("1.1")
    await world.poll("1.1", progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll("1.1", result=left("1.2", "a crash"))
    assert shown(world)["InSync"] == ("False", "rolled-back", "a crash")
    world.want("1.3")  # something else is wanted: the verdict is about an image that is wanted no longer
    assert (shown(world)["InSync"], shown(world)["deployment"]) == (("False", "pending", ""), None)
    world.want("1.2")
    assert shown(world)["InSync"] == ("False", "rolled-back", "a crash")
    await world.poll("1.2")  # brought there by a cable
    assert shown(world)["InSync"] == ("True", "", "")
    assert "result" not in shown(world)["deployment"]  # type: ignore[operator]


async def test_a_package_that_cannot_be_made_is_shown_with_its_reason(autojump_clock: MockClock, world: World) -> None:
    world.packages.fault = StoreError("the stored image is damaged: publish it again")
    assert (await world.poll()).type is Type.WAIT
    assert shown(world)["InSync"] == ("False", "NotPackaged", "the stored image is damaged: publish it again")
    world.packages.fault = None
    assert (await world.poll()).type is Type.UPDATE
    assert shown(world)["InSync"] == ("False", "notified", "")


async def test_one_device_writes_history_at_a_bounded_rate(autojump_clock: MockClock, world: World) -> None:
    refused = 0
    for number in range(2000):
        try:
            command = await world.poll("1.0", capacity=10_000 + number)
            if command.type is Type.UPDATE:
                await world.poll("1.1", trial=True, capacity=10_000 + number)
        except StoreError:
            refused += 1
    assert refused > 500
    assert len(world.store.entries) <= world.policy.history_per_hour
    await trio.sleep(3600)
    await world.poll()


async def test_a_result_about_an_older_deployment_is_kept_for_people(autojump_clock: MockClock, world: World) -> None:
    first = await world.poll()
    assert isinstance(first, Command)
    older = world.deployment.id
    world.want("1.2")
    await world.poll()
    assert world.deployment.version == "1.2"
    for _ in range(3):
        assert (await world.poll(result=left("1.1", "late"))).type is Type.UPDATE
    kept = world.store.deployments_[older]
    assert (kept.state, kept.text) == (State.ROLLED_BACK, "late")
    assert [e.text for e in world.store.entries].count("late") == 1


async def test_a_manifest_that_replaced_another_is_not_said_to_be_in_force(
    autojump_clock: MockClock, world: World
) -> None:
    await whole_way(world)
    assert "ManifestCurrent" not in shown(world)
    other = a_firmware("1.1", size=999).manifest
    world.publish(msgspec.structs.replace(a_firmware("1.1"), manifest=other))
    assert (await world.poll("1.1")).type is Type.SYNC
    assert shown(world)["ManifestCurrent"][:2] == ("False", "Replaced")  # type: ignore[index]
