"""What users ask for is stored before it is answered, outlives a restart, and waits for nobody's package."""

from __future__ import annotations

import base64

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock, wait_all_tasks_blocked

from dfud.api import (
    CancelRequested,
    DeviceChanged,
    PutDocument,
    RefusedError,
    RetryRequested,
    State,
    StoreError,
    faults,
)
from dfud.wire.manifest import Manifest, sign
from dfud.wire.messages import Code, Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_firmware, digest

AUDIT = PutDocument("audit", "1", b"")


@pytest.fixture
def world() -> World:
    made = World()
    made.want("1.1")
    return made


@pytest.mark.parametrize("seen", [False, True])
async def test_a_cancel_while_the_device_is_away_holds_when_it_returns(
    autojump_clock: MockClock, world: World, seen: bool
) -> None:
    if seen:
        world.want("1.0")
        await world.poll()
        world.want("1.1")
    await world.controller.cancel("app", "dev", "eve", [AUDIT])
    assert world.store.documents_ == {("audit", "1"): b""}
    world.restarted()
    assert (await world.poll()).type is Type.WAIT
    assert (world.deployment.state, world.deployment.text) == (State.CANCELLED, "cancelled by eve")
    await world.controller.retry("app", "dev", "eve")
    assert (await world.poll()).type is Type.UPDATE


async def test_a_cancel_that_cannot_be_done_is_refused_and_not_on_record(
    autojump_clock: MockClock, world: World
) -> None:
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll("1.1", trial=True)
    with pytest.raises(RefusedError, match="on trial"):
        await world.controller.cancel("app", "dev", "eve", [AUDIT])
    world.want("9")
    await world.poll("1.1")
    with pytest.raises(RefusedError, match="not published"):
        await world.controller.cancel("app", "dev", "eve", [AUDIT])
    assert world.store.documents_ == {}


async def test_a_retry_before_the_verdict_is_known_holds(autojump_clock: MockClock, world: World) -> None:
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    # The board is on somebody's desk, went back there, and is plugged in again after "retry".
    await world.controller.retry("app", "dev", "eve", [AUDIT])
    world.restarted()
    left = Result(Outcome.ROLLED_BACK, bytes.fromhex(digest("1.1")), int(Code.CRASHED), "x")
    assert (await world.poll(result=left)).type is Type.UPDATE
    await world.poll(progress=Progress(command.package, 10, Phase.WRITTEN))
    await world.poll("1.1", trial=True)
    assert (await world.poll(result=left)).type is Type.WAIT, "once"


async def test_what_cannot_be_stored_is_not_accepted(autojump_clock: MockClock, world: World) -> None:
    world.store.broken = True
    with pytest.raises(StoreError):
        await world.controller.cancel("app", "dev", "eve", [AUDIT])
    world.store.broken = False
    assert (await world.poll()).type is Type.UPDATE


async def test_a_package_in_the_making_holds_nobody(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    gate = trio.Event()
    world.packages.gate = gate.wait
    nursery.start_soon(lambda: world.poll(patience_s=60.0))
    await wait_all_tasks_blocked()
    before = trio.current_time()
    await world.controller.cancel("app", "dev", "eve")
    assert trio.current_time() == before
    assert world.deployment.state is State.CANCELLED
    gate.set()


async def test_a_package_that_is_ready_after_the_wish_has_gone_is_not_sent(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    async def gate() -> None:
        await trio.lowlevel.checkpoint()
        world.want("1.2")
        world.packages.gate = trio.lowlevel.checkpoint

    world.packages.gate = gate
    command = await world.poll(patience_s=60.0)
    assert (command.type, command.version) == (Type.UPDATE, "1.2")


async def test_a_change_during_the_commit_is_in_the_answer(autojump_clock: MockClock, world: World) -> None:
    """The one who parks the device hears of later changes only."""
    world.want("1.0")
    once = [True]

    async def pause() -> None:
        await trio.lowlevel.checkpoint()
        if world.store.commits and once:
            once.clear()
            world.want("1.1")

    world.store.pause = pause
    command = await world.poll()
    assert not once
    assert (command.type, command.version) == (Type.UPDATE, "1.1")


async def test_plugins_requests_are_done_however_many_there_are(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    for number in range(20_000):
        world.bus.publish(CancelRequested("app", f"gone-{number}", "hawkBit"))
    world.bus.publish(CancelRequested("app", "dev", "hawkBit"))
    world.store.broken = True
    await nursery.start(world.controller.run)
    await trio.sleep(1)
    world.store.broken = False
    await trio.sleep(10)
    assert world.deployment.state is State.CANCELLED
    nursery.cancel_scope.cancel()


async def test_a_firmware_whose_key_the_app_has_no_longer_is_not_sent(autojump_clock: MockClock, world: World) -> None:
    key = Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    manifest = Manifest("app", "1.1", "esp32c3", 1, 1000, bytes.fromhex(digest("1.1")))
    world.put_app({"signing": {"mode": "required", "keys": [public]}})
    assert (await world.poll()).type is Type.WAIT, "not signed"
    world.publish(a_firmware("1.1", manifest=sign(manifest, key)))
    command = await world.poll()
    assert command.type is Type.UPDATE
    world.put_app({"signing": {"mode": "optional", "keys": []}})
    stopped = await world.poll(progress=Progress(command.package, 3))
    assert stopped.type is Type.STOP
    assert "none of its app's" in stopped.reason
    assert (await world.poll("1.1")).type is Type.SYNC, "one that runs it is not told otherwise"
    world.put_app({"signing": {"mode": "required", "keys": [public]}})
    assert (await world.poll()).type is Type.UPDATE


async def test_a_change_of_another_device_disturbs_nobody(autojump_clock: MockClock, world: World) -> None:
    async def pause() -> None:
        await trio.lowlevel.checkpoint()
        world.bus.publish(DeviceChanged("app", "other"))

    world.store.pause = pause
    before = world.store.commits
    assert (await world.poll()).type is Type.UPDATE
    assert world.store.commits - before <= 2


async def test_a_status_is_heard_once_though_it_is_looked_at_again(autojump_clock: MockClock, world: World) -> None:
    command = await world.poll()
    await world.poll(progress=Progress(command.package, 4))
    await world.poll()
    await world.poll(progress=Progress(command.package, 4))

    async def gate() -> None:
        await trio.lowlevel.checkpoint()
        world.bus.publish(DeviceChanged("app", "dev"))

    world.packages.gate = gate
    assert (await world.poll()).type is Type.UPDATE
    assert (world.deployment.stalls, world.deployment.attempts) == (1, 0)


async def test_what_goes_on_changing_is_not_answered_with_what_it_was(
    autojump_clock: MockClock, world: World
) -> None:
    flips = 0

    async def pause() -> None:
        nonlocal flips
        await trio.lowlevel.checkpoint()
        flips += 1
        world.want(("1.1", "1.2")[flips % 2])

    world.store.pause = pause
    command = await world.poll()
    assert (command.type, command.poll_s) == (Type.WAIT, world.policy.busy_poll_s)
    world.store.pause = trio.lowlevel.checkpoint
    assert (await world.poll()).type is Type.UPDATE


async def test_what_there_is_nothing_of_is_not_accepted(autojump_clock: MockClock, world: World) -> None:
    """It said "Accepted", and it was on record."""
    world.want("1.0")
    await world.poll()
    for ask, what in ((world.controller.cancel, "nothing to cancel"), (world.controller.retry, "nothing to try again")):
        with pytest.raises(RefusedError, match=f"device dev runs 1.0 already: there is {what}"):
            await ask("app", "dev", "eve", [AUDIT])
    world.want(None)
    for ask in (world.controller.cancel, world.controller.retry):
        with pytest.raises(RefusedError, match="no firmware is wanted of device dev"):
            await ask("app", "dev", "eve", [AUDIT])
    world.want("9")
    with pytest.raises(RefusedError, match="not published"):
        await world.controller.retry("app", "dev", "eve", [AUDIT])
    assert world.store.documents_ == {}
    world.controller._retry_requested(RetryRequested("app", "dev", "a plugin"))
    world.controller._cancel_requested(CancelRequested("app", "dev", "a plugin"))
    await wait_all_tasks_blocked()
    assert not any(where.startswith("controller") for where in faults()), "it is nobody's error"


async def test_the_same_again_is_accepted_since_an_answer_may_be_lost(autojump_clock: MockClock, world: World) -> None:
    for _ in range(2):
        await world.controller.cancel("app", "dev", "eve", [AUDIT])
    assert (await world.poll()).type is Type.WAIT
    for _ in range(2):
        await world.controller.retry("app", "dev", "eve", [AUDIT])
    assert (await world.poll()).type is Type.UPDATE
