"""Devices that come at once are told to come back apart; those beyond what can be judged at a time, before it is late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from dfud.api import Code, Credentials, Reply
from dfud.controller.keeping import Asked
from dfud.controller.together import Taken
from dfud.endpoint.spreading import spread_s
from dfud.wire.messages import Command, Type, decode_command_untrusted
from tests.endpoint.world import a_status, basic, start_world


def test_devices_that_start_together_drift_apart_within_the_share() -> None:
    told = [spread_s(Command(Type.SYNC, 300), "a", f"d{n}", 0.1) for n in range(1000)]
    assert min(told) >= 270 and max(told) <= 330 and len(set(told)) > 50
    assert abs(sum(told) / len(told) - 300) < 3
    assert told == [spread_s(Command(Type.SYNC, 300), "a", f"d{n}", 0.1) for n in range(1000)]


def test_a_wait_for_something_that_is_being_made_is_not_changed() -> None:
    for command in (Command(Type.WAIT, 2), Command(Type.UPDATE, 300), Command(Type.SYNC, 59)):
        assert spread_s(command, "a", "d", 0.5) == command.poll_s
    assert spread_s(Command(Type.SYNC, 300), "a", "d", 0.0) == 300


async def test_beyond_what_can_be_judged_at_a_time_devices_are_told_at_once_to_come_back(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    world = await start_world(nursery, tmp_path, judged_at_once=16, late_s=0.01, failures_per_address=1000, failures_per_device=1000)
    for number in range(40):
        await world.put(f"d{number}", {"authentication": {"credentials": [{"pass": "pw"}]}})
    found: list[Reply] = []
    gate = trio.Event()
    controller = world.endpoint._controller
    status, take = controller.status, controller.take

    async def slow(*arguments: object, **options: object) -> Command:
        await gate.wait()
        return await status(*arguments, **options)  # type: ignore[arg-type]  # what it was called with

    async def slow_take(asked: Sequence[Asked]) -> Taken:
        await gate.wait()
        return await take(asked)

    controller.status, controller.take = slow, slow_take  # type: ignore[method-assign]

    async def poll(number: int) -> None:
        reply = await world.post(Credentials(basic(f"d{number}@app1:pw")), channel="dfu", body=a_status())
        assert isinstance(reply, Reply)
        found.append(reply)

    async with trio.open_nursery() as polling:
        for number in range(40):
            polling.start_soon(poll, number)
        with trio.fail_after(120):
            while len(found) < 24:
                await trio.sleep(0.005)
        assert [reply.code for reply in found] == [Code.AWAY] * 24 and world.endpoint.pressure.turned_away == 24
        gate.set()
    assert sum(reply.code is Code.COMMAND for reply in found) == 16
    for number in range(40):
        await poll(number)
    assert all(reply.code is Code.COMMAND for reply in found[-40:])
    assert len({decode_command_untrusted(reply.body).poll_s for reply in found[-40:]}) > 10
    nursery.cancel_scope.cancel()
