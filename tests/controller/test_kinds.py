"""System and app firmware of one device: one update at a time, in an order that the ranges allow, each with its own verdict."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from dfud.api import Recall, Requires
from dfud.controller.outbox import deployment_event
from dfud.model.deployment import State
from dfud.wire.manifest import FLAG_APP, decode_envelope_untrusted
from dfud.wire.messages import NO_DIGEST, Banks, Code, Command, Kind, Outcome, Phase, Progress, Result, Type
from tests.controller.world import World, a_firmware, digest

FULL_AND_DELTA = 1 << Kind.FULL | 1 << Kind.DELTA
SEQUENCES = {"3.0": 30, "3.1": 31, "3.2": 32}


class Board:
    """A device with app banks. system, app: the versions that run; bad: versions that crash; has: whether it has banks at all."""

    def __init__(self, world: World, app: str = "3.0") -> None:
        self.world = world
        self.system, self.app = "1.0", app
        self.bad: set[str] = set()
        self.has = True
        self.sent: list[str] = []
        self.results = 0

    def banks(self, trial: bool = False) -> Banks | None:
        if not self.has:
            return None
        if not self.app:
            return Banks("", NO_DIGEST, 50_000)
        sequence = self.world.store.firmwares_["app", self.app].sequence
        return Banks(self.app, bytes.fromhex(digest(self.app)), 50_000, trial, 0, sequence)

    async def poll(self, *, trial: str = "", **said: Any) -> Command:
        found = self.world.store.firmwares_["app", self.system]
        said = {"kinds": 14, "manifest": found.sequence, "app": self.banks(trial == "app"), "trial": trial == "system"} | said
        return await self.world.poll(self.system, **said)

    async def step(self) -> Command:
        """One poll and what it leads to: written, switched, on trial, confirmed or left."""
        command = await self.poll()
        if command.type is not Type.UPDATE:
            return command
        self.sent.append(command.version)
        written = Progress(command.package, command.chunks, Phase.WRITTEN)
        assert (await self.poll(progress=written)).type is Type.UPDATE, "the same again: switch"
        kind = "app" if decode_envelope_untrusted(command.manifest)[1].flags & FLAG_APP else "system"
        before = getattr(self, kind)
        setattr(self, kind, command.version)
        assert (await self.poll(trial=kind)).type is Type.WAIT
        if command.version in self.bad:
            setattr(self, kind, before)
            self.results += 1
            sha256 = bytes.fromhex(digest(command.version))
            text = "Traceback\nValueError: " + command.version
            return await self.poll(result=Result(Outcome.ROLLED_BACK, sha256, 1, text, 3, number=self.results))
        return await self.poll()

    async def settle(self) -> None:
        for _ in range(8):
            if (await self.step()).type is not Type.UPDATE and (await self.poll()).type is not Type.UPDATE:
                return
        raise AssertionError(f"it goes on for ever: {self.sent}")


@pytest.fixture
def world() -> World:
    found = World()
    for number, version in enumerate(("1.0", "1.1", "1.2", "1.3"), 1):
        found.publish(a_firmware(version, sequence=number))
    for version, sequence in SEQUENCES.items():
        found.publish(a_firmware(version, kind="app", sequence=sequence))
    return found


@pytest.fixture
def board(world: World) -> Board:
    return Board(world)


def both(system: str | None, app: str) -> dict[str, Any]:
    return {"firmware": {"app": app} | ({"version": system} if system else {})}


async def explained(world: World) -> tuple[str, str]:
    found = await world.controller.insight.explain("app", "dev")
    return found.code, " ".join(found.sentences)


async def test_an_app_is_updated_alone_and_from_the_app_that_runs(world: World, board: Board) -> None:
    world.put_device(both(None, "3.1"))
    command = await board.poll()
    assert (command.type, command.version) == (Type.UPDATE, "3.1")
    order = world.packages.ordered[-1]
    assert order.base is not None and order.base.version == "3.0" and order.kinds == FULL_AND_DELTA
    d = world.deployment
    assert (d.kind, d.from_version, d.from_sha256, d.state) == ("app", "3.0", digest("3.0"), State.NOTIFIED)
    await board.settle()
    assert (board.system, board.app, world.deployment.state) == ("1.0", "3.1", State.DONE)
    assert all(deployment_event(told.deployment, told.entry, "k").data["kind"] == "app" for told in world.told)
    actual = world.store.actuals["app", "dev"]
    assert actual.version == "1.0" and actual.program is not None
    assert (actual.program.version, actual.program.sequence, actual.program.manifest) == ("3.1", 0, 31)
    assert (await explained(world))[0] == "in-sync"
    counts = world.store.counts_["fleet/app"]
    assert counts["app/3.1"] == 1 and not counts.get("app/3.0") and counts["version/1.0"] == 1
    assert (await world.controller.fleet.numbers("app"))["apps"] == {"3.1": 1}


async def test_the_first_app_of_a_device_is_whole(world: World) -> None:
    board = Board(world, app="")
    world.put_device(both(None, "3.1"))
    await board.settle()
    assert board.app == "3.1" and world.packages.ordered[-1].base is None
    assert world.deployment.from_version == "" and world.deployment.from_sha256 == ""


@pytest.mark.parametrize(
    ("system", "app", "sent"),
    [
        (None, None, ["1.1", "3.1"]),  # both would do: the system first
        ((31, 40), None, ["3.1", "1.1"]),  # the system wants the new app
        (None, (2, 9), ["1.1", "3.1"]),  # the app wants the new system
        ((31, 40), (1, 2), ["3.1", "1.1"]),
        ((30, 31), (2, 2), ["1.1", "3.1"]),
        ((0, 30), None, []),  # they do not run together
        ((31, 31), (2, 2), []),  # each wants the other one first
    ],
)
async def test_the_order_follows_from_the_ranges(
    world: World, board: Board, system: tuple[int, int] | None, app: tuple[int, int] | None, sent: list[str]
) -> None:
    world.publish(a_firmware("1.1", sequence=2, beside=system))
    world.publish(a_firmware("3.1", kind="app", sequence=31, beside=app))
    world.put_device(both("1.1", "3.1"))
    await board.settle()
    assert board.sent == sent
    code, text = await explained(world)
    assert code == ("in-sync" if sent else "range"), text
    if not sent:
        assert "3.1" in text and "1.1" in text and not world.store.deployments_


async def test_the_app_that_runs_decides_which_goes_first_where_both_could(world: World, board: Board) -> None:
    world.publish(a_firmware("3.0", kind="app", sequence=30, beside=(1, 1)))
    world.put_device(both("1.1", "3.1"))
    await board.settle()
    assert board.sent == ["3.1", "1.1"], "3.0 would not have run with 1.1"


async def test_a_pair_that_only_runs_together_gets_there(world: World, board: Board) -> None:
    """Both ranges are exact, as of two teams that release together: one start lies outside of the older one's."""
    world.publish(a_firmware("3.0", kind="app", sequence=30, beside=(1, 1)))
    world.publish(a_firmware("3.1", kind="app", sequence=31, beside=(2, 2)))
    world.put_device(both("1.1", "3.1"))
    await board.settle()
    assert (board.system, board.app) == ("1.1", "3.1") and board.sent == ["1.1", "3.1"]


async def test_one_kind_alone_does_not_leave_the_other_ones_range(world: World, board: Board) -> None:
    world.publish(a_firmware("3.0", kind="app", sequence=30, beside=(1, 1)))
    world.want("1.1")
    await board.settle()
    assert board.sent == []
    code, text = await explained(world)
    assert code == "range" and "3.0" in text and "takes sequences 1 to 1" in text
    world.publish(a_firmware("3.0", kind="app", sequence=30, beside=(1, 2)))
    await board.settle()
    assert board.sent == ["1.1"]
    world.publish(a_firmware("3.2", kind="app", sequence=32, beside=(3, 4)))
    world.put_device(both(None, "3.2"))
    assert (await board.step()).type is Type.WAIT
    code, text = await explained(world)
    assert code == "range" and "the device runs 1.1 with sequence 2" in text


async def test_nobody_is_told_while_either_kind_is_on_trial(world: World, board: Board) -> None:
    world.put_device(both("1.1", "3.1"))
    for trial in ("system", "app"):
        answer = await board.poll(trial=trial)
        assert (answer.type, answer.reason) == (Type.WAIT, "on trial")
    assert not world.store.deployments_


async def test_what_has_begun_goes_on_whatever_the_order_would_be_now(world: World, board: Board) -> None:
    world.put_device(both(None, "3.1"))
    first = await board.poll()
    world.put_device(both("1.1", "3.1"))
    again = await board.poll(progress=Progress(first.package, 3))
    assert again.package == first.package, "the same transfer"
    await board.settle()
    assert board.sent == ["3.1", "1.1"]
    assert [d.number for d in sorted(world.store.deployments_.values(), key=lambda d: d.number)] == [1, 2]


async def test_a_bad_app_is_blocked_and_the_system_goes_on(world: World, board: Board) -> None:
    world.publish(a_firmware("1.1", sequence=2, beside=(31, 99)))
    board.bad = {"3.1"}
    world.put_device(both("1.2", "3.1"))
    await board.settle()
    assert board.sent == ["1.2", "3.1"] and (board.system, board.app) == ("1.2", "3.0")
    d = world.deployment
    assert (d.kind, d.state, d.blocks, d.crashes, d.other and d.other.state) == ("app", State.ROLLED_BACK, True, 3, State.DONE)
    code, text = await explained(world)
    assert code == "left" and "ValueError: 3.1" in text
    # A system after it hides nothing of that.
    world.put_device(both("1.3", "3.1"))
    await board.settle()
    assert board.sent == ["1.2", "3.1", "1.3"] and board.system == "1.3"
    assert world.deployment.kind == "system" and world.deployment.of("app") is not None
    crashes = (await world.controller.fleet.numbers("app"))["crashes"]
    assert [(c["devices"], c["versions"]) for c in crashes] == [(1, ["3.1"])], "its crash is shown till it runs something else"
    world.restarted()
    await board.settle()
    assert board.sent == ["1.2", "3.1", "1.3"], "it is stored, not remembered"
    board.bad = set()
    await world.controller.retry("app", "dev", "eva")
    await board.settle()
    assert board.sent[-1] == "3.1" and (board.system, board.app) == ("1.3", "3.1")


async def test_a_bad_system_is_blocked_and_the_app_goes_on_with_the_very_answer(world: World, board: Board) -> None:
    board.bad = {"1.1"}
    world.put_device(both("1.1", "3.1"))
    answer = await board.step()
    assert board.sent == ["1.1"] and (answer.type, answer.version) == (Type.UPDATE, "3.1"), "it does not wait for a poll"
    await board.settle()
    assert (board.system, board.app) == ("1.0", "3.1") and board.sent == ["1.1", "3.1"]


async def test_a_system_that_crashes_after_the_app_came_is_blocked(world: World, board: Board) -> None:
    world.want("1.1")
    await board.settle()
    world.put_device(both("1.1", "3.1"))
    await board.settle()
    assert world.deployment.kind == "app"
    board.system = "1.0"
    left = Result(Outcome.ROLLED_BACK, bytes.fromhex(digest("1.1")), 1, "boom", 3, number=9)
    assert (await board.poll(result=left)).type is not Type.UPDATE
    system = world.deployment.of("system")
    assert system is not None and (system.state, system.blocks, system.text) == (State.ROLLED_BACK, True, "boom")
    assert world.store.deployments_[system.id].state is State.ROLLED_BACK, "under its own number, too"
    assert [e.event for e in world.store.entries if e.version == "1.1"][-1] == "left"
    await board.settle()
    assert board.sent == ["1.1", "3.1"] and (await explained(world))[0] == "left"


async def test_attempts_and_back_off_are_the_same_for_apps(
    world: World, board: Board, autojump_clock: trio.testing.MockClock
) -> None:
    world.put_device(both(None, "3.1"))
    sha256 = bytes.fromhex(digest("3.1"))
    for number in range(world.policy.attempts):
        command = await board.poll()
        assert command.type is Type.UPDATE, number
        failed = Result(Outcome.FAILED, sha256, int(Code.CHUNK), "torn", number=number + 1)
        answer = await board.poll(result=failed)
        if number + 1 < world.policy.attempts:
            assert answer.reason == "waits for another attempt"
            assert (await explained(world))[0] == "back-off"
            await trio.sleep(answer.poll_s)
    assert (world.deployment.state, world.deployment.attempts) == (State.FAILED, world.policy.attempts)
    refused = Result(Outcome.FAILED, bytes.fromhex(digest("3.2")), int(Code.WITH), "system 1", number=9)
    world.put_device(both(None, "3.2"))
    await board.poll()
    await board.poll(result=refused)
    assert (world.deployment.state, world.deployment.blocks) == (State.FAILED, True), "the same again would be refused again"


async def test_who_has_no_banks_is_sent_neither_an_app_nor_what_old_readers_refuse(world: World, board: Board) -> None:
    board.has = False
    world.publish(a_firmware("1.1", sequence=2, beside=(0, 99)))
    for spec in (both(None, "3.1"), both("1.1", "3.1")):
        world.put_device(spec)
        assert (await board.step()).type is Type.WAIT
        assert (await explained(world))[0] == "no-banks"
    assert not world.store.deployments_ and world.store.actuals["app", "dev"].program is None
    world.put_device(both("1.2", "3.1"))
    await board.settle()
    assert board.sent == ["1.2"] and (await explained(world))[0] == "no-banks"
    board.has = True
    await board.settle()
    assert board.sent == ["1.2", "3.1"], "a new layout, and it is sent"


async def test_a_version_stands_in_the_field_of_its_kind(world: World, board: Board) -> None:
    for spec, words in (
        ({"firmware": {"version": "3.1"}}, "3.1 is app firmware, so it stands in spec.firmware.app"),
        ({"firmware": {"app": "1.1"}}, "1.1 is system firmware, so it stands in spec.firmware.version"),
        ({"firmware": {"version": "1.1", "app": "9"}}, "firmware 9 is not published"),
    ):
        world.put_device(spec)
        await board.settle()
        code, text = await explained(world)
        assert code == "bad-spec" and words in text, text
    assert board.sent == ["1.1"], "the system is not kept back by an app that nobody published"


async def test_apps_have_ways_and_recalls_of_their_own(world: World, board: Board) -> None:
    world.publish(msgspec.structs.replace(a_firmware("3.1", kind="app", sequence=31), stop=True))
    requires = msgspec.structs.replace(a_firmware("3.2", kind="app", sequence=32), requires=Requires(31))
    world.publish(requires)
    world.put_device(both("1.1", "3.2"))
    await board.settle()
    assert board.sent == ["1.1", "3.1", "3.2"], "a stop among apps is none among systems"
    world.publish(msgspec.structs.replace(requires, recalled=Recall("it burns")))
    world.put_device(both("1.2", "3.2"))
    board.app = "3.1"
    await board.settle()
    assert board.sent[3:] == ["1.2"] and (await explained(world))[0] == "recalled"


async def test_cancelling_an_app_leaves_the_system(world: World, board: Board) -> None:
    world.put_device(both("1.1", "3.1"))
    await board.step()
    assert (board.system, board.app) == ("1.1", "3.0")
    await world.controller.cancel("app", "dev", "eva")
    assert (world.deployment.kind, world.deployment.state, world.deployment.blocks) == ("app", State.CANCELLED, True)
    await board.settle()
    assert board.sent == ["1.1"]
    await world.controller.retry("app", "dev", "eva")
    await board.settle()
    assert board.sent == ["1.1", "3.1"]


async def test_hold_holds_both_and_download_only_writes_the_first(world: World, board: Board) -> None:
    world.put_device({"firmware": {"version": "1.1", "app": "3.1", "hold": True, "reason": "not today"}})
    assert (await board.step()).reason == "not today"
    world.put_device({"firmware": {"version": "1.1", "app": "3.1", "downloadOnly": True}})
    command = await board.poll()
    assert command.version == "1.1"
    answer = await board.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
    assert (answer.type, answer.reason) == (Type.WAIT, "download only")
