"""A forecast says what comes true, and changes nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from dfud.api import App, Device, Metadata, NotFoundError, PeerError, PutActual, PutDeployment
from dfud.controller.forecast import Forecast, placed
from dfud.model.firmware import Requires
from dfud.model.membership import place
from dfud.model.policy import shares_of
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.wire.manifest import FLAG_DOWNGRADE, Manifest, unsigned
from dfud.wire.messages import Code, Defer, Outcome, Result
from tests.controller.fleet import Fleet
from tests.controller.world import World, a_firmware, a_status, digest

SPEC = {"firmware": "1.2", "waves": [{"percent": 10}, {"percent": 100}]}


async def planned(world: World, spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return await world.controller.planner.plan("app", spec or SPEC, **more)


def a_world() -> World:
    world = World()
    world.store.apps_["app"] = App(Metadata("app", uid="u"), {"signing": {"mode": "optional"}})
    return world


def register(world: World, name: str, spec: dict[str, Any] | None = None, **labels: str) -> None:
    world.store.devices_["app", name] = Device(Metadata(name, "app", resource_version="1", labels=labels), spec or {})


async def test_each_device_is_counted_under_one_code(autojump_clock: trio.testing.MockClock) -> None:
    world = a_world()
    world.want(None)
    say = world.controller.status

    async def known(name: str, version: str = "1.0", **said: Any) -> None:
        register(world, name)
        await say("app", name, a_status(version, **said), "http")

    await known("gone")
    world.wall += 40 * 86400
    for number in range(3):
        await known(f"good{number}")
    await known("sync", "1.2")
    await known("odd", "9.9")
    await known("small", capacity=10)
    await known("other", hardware="esp32")
    await known("ahead", sequence=7)
    await known("shy", defer=Defer("lamp on", 600, True))
    await known("asks", defer=Defer("user asleep", 600))
    await known("trial", trial=True)
    register(world, "own", {"firmware": {"version": "1.0"}})
    register(world, "new")
    await known("left")
    world.put_app({"signing": {"mode": "optional"}, "firmware": {"version": "1.2"}})
    await say("app", "left", a_status("1.0"), "http")
    left = Result(Outcome.ROLLED_BACK, bytes.fromhex(digest("1.2")), int(Code.CRASHED), "boom", 3)
    await say("app", "left", a_status("1.0", result=left), "http")
    world.store.apps_["app"] = App(Metadata("app", uid="u", resource_version="2"), {"signing": {"mode": "optional"}})
    del world.store.devices_["app", "dev"]
    before = dict(world.store.documents_), len(world.store.entries), dict(world.store.actuals), world.store.commits
    found = await planned(world)
    assert before == (dict(world.store.documents_), len(world.store.entries), dict(world.store.actuals), world.store.commits)
    assert {code: (group["count"], group["devices"], group["later"]) for code, group in found["codes"].items()} == {
        "silent": (1, ["gone"], True),
        "too-large": (1, ["small"], False),
        "hardware": (1, ["other"], False),
        "floor": (1, ["ahead"], False),
        "deferred": (1, ["shy"], True),
        "trial": (1, ["trial"], True),
        "own-firmware": (1, ["own"], False),
        "never-seen": (1, ["new"], True),
        "left": (1, ["left"], False),
    }
    assert found["devices"] == {
        "matching": 15, "told": 5, "inSync": 1, "refused": 5, "later": 4, "severalSteps": 0, "unknownBase": 1,
    }  # fmt: skip
    assert {"version": "1.0", "hardware": "esp32c3", "devices": 10} in found["running"]
    assert "has sequence 1, the device accepts 7" in found["codes"]["floor"]["sentence"]
    bases = {one["from"]: (one["devices"], one["estimate"]) for one in found["bytes"]["bases"]}
    assert bases == {"": (5, True)}, "they decode full packages only"
    # Whoever is asked may put it off, till it is forced.
    offered = (await planned(world, {**SPEC, "mode": "offer"}))["codes"]["deferred"]
    assert (offered["count"], sorted(offered["devices"])) == (2, ["asks", "shy"])
    # A manifest that allows a downgrade reaches those that are ahead, too.
    manifest = unsigned(
        Manifest(
            app="app",
            version="1.2",
            hardware="esp32c3",
            sequence=1,
            size=1000,
            sha256=bytes.fromhex(digest("1.2")),
            flags=FLAG_DOWNGRADE,
        )
    )
    world.publish(a_firmware("1.2", manifest=manifest))
    assert "floor" not in (await planned(world))["codes"]


async def test_what_is_forecast_comes_true(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    world = a_world()
    fleet = Fleet(world, 300, 5, bad={}, zones=["UTC"])
    for board in fleet.boards.values():
        await fleet.say(board)
    await nursery.start(world.controller.run)
    spec: dict[str, Any] = {
        "firmware": "1.2",
        "devices": {"selector": "zone=eu"},
        "waves": [{"count": 10}, {"percent": 50}, {"percent": 100}],
        "perMinute": 60,
    }
    found = await planned(world, spec)
    assert found["devices"]["told"] == 150 and found["problems"] == []
    assert [wave["devices"] for wave in found["time"]["waves"]] == [10, 65, 75]
    await world.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=False)
    begun = trio.current_time()
    nursery.start_soon(fleet.live, 300.0)
    with trio.fail_after(86400):
        while world.controller.rollouts.get("app", "r").status.state != "finished":
            await trio.sleep(10)
    took = trio.current_time() - begun
    assert found["time"]["seconds"] / 3 < took < found["time"]["seconds"] * 3, (took, found["time"]["seconds"])
    told = {name for name, board in fleet.boards.items() if board.told_at}
    assert len(told) == found["devices"]["told"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", range(7))
def test_a_small_fleet_is_forecast_as_it_is_divided(number: int) -> None:
    """Waves of 1 and 10 % were forecast for nobody, and have at least one device each; a count is of all, from the first."""
    members = [f"lamp{n}" for n in range(number)]
    for waves in ([{"percent": 1}, {"percent": 10}, {"percent": 100}], [{"count": 2}, {"count": 4}, {"percent": 100}]):
        plan = read_plan_untrusted({"firmware": "1.2", "waves": waves})
        shares = shares_of(plan, "uid", members)
        reached = [sum(place("uid", name) < limit for name in members) for limit in shares]
        forecast = placed(Forecast(unplaced=number), plan)
        assert [sum(forecast[: wave + 1]) for wave in range(3)] == reached


async def test_a_rollout_that_runs_is_forecast_for_what_it_has_before_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = a_world()
    fleet = Fleet(world, 40, 5, bad={}, zones=["UTC"])
    for board in fleet.boards.values():
        await fleet.say(board)
    await nursery.start(world.controller.run)
    spec: dict[str, Any] = {"firmware": "1.2", "waves": [{"count": 10, "approval": True}, {"percent": 100}]}
    await world.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=False)
    await trio.sleep(1)
    for board in fleet.boards.values():
        await fleet.poll(board)
    found = await planned(world, spec, name="r")
    assert (found["devices"]["told"], found["devices"]["inSync"]) == (30, 10)
    assert [wave["devices"] for wave in found["time"]["waves"]] == [0, 30]
    assert found["time"]["waves"][0]["approval"] and found["time"]["updateMeasured"]
    # Another one over the same devices would be refused, and of a lower priority it would reach nobody.
    other = await planned(world, {**spec, "firmware": "1.3"})
    assert "spec.priority: rollout r has 0" in other["problems"][0]
    lower = await planned(world, {**spec, "firmware": "1.3", "priority": -1})
    assert lower["problems"] == [] and lower["codes"]["other-rollout"]["count"] == 10
    nursery.cancel_scope.cancel()


async def test_steps_between_versions_are_counted_with_all_their_packages(autojump_clock: trio.testing.MockClock) -> None:
    world = a_world()
    fleet = Fleet(world, 4, 1, bad={}, zones=["UTC"])

    def put(version: str, sequence: int, **more: Any) -> None:
        made = msgspec.structs.replace(a_firmware(version, size=10_000 * sequence), sequence=sequence, **more)
        manifest = unsigned(Manifest("app", version, "esp32c3", sequence, made.size_bytes, bytes.fromhex(made.sha256)))
        world.publish(msgspec.structs.replace(made, manifest=manifest))

    put("1.0", 1)
    put("1.1", 2, stop=True)
    put("1.2", 3, requires=Requires(low=2))
    for board in fleet.boards.values():
        await fleet.say(board, kinds=6)
    found = await planned(world)
    assert (found["devices"]["told"], found["devices"]["severalSteps"]) == (4, 4)
    ways = {(one["from"], one["to"]): one["devices"] for one in found["bytes"]["bases"]}
    assert ways == {("1.0", "1.1"): 4, ("1.1", "1.2"): 4}
    assert found["bytes"]["total"] == 4 * (2000 + 3000) and found["bytes"]["estimate"]
    put("1.2", 3, requires=Requires(low=3))
    found = await planned(world)
    assert found["codes"]["no-path"]["count"] == 4 and found["devices"]["told"] == 0


async def test_packages_are_made_ahead_and_then_weighed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = a_world()
    fleet = Fleet(world, 8, 1, bad={}, zones=["UTC"])
    for number, board in enumerate(fleet.boards.values()):
        board.version = "1.0" if number < 5 else "1.1"
        board.image = bytes.fromhex(digest(board.version))
        await fleet.say(board, kinds=6)
    made: dict[str, Any] = {}
    get = world.packages.get

    async def kept(order: Any) -> Any:
        return made.get(world.packages.key(order))

    async def getting(order: Any, device: tuple[str, str]) -> Any:
        made[world.packages.key(order)] = package = await get(order, device)
        return package

    world.packages.find, world.packages.get = kept, getting  # type: ignore[method-assign]
    await nursery.start(world.controller.run)
    found = await planned(world, prepare=False)
    bases = [(one["from"], one["devices"], one["estimate"]) for one in found["bytes"]["bases"]]
    assert bases == [("1.0", 5, True), ("1.1", 3, True)]
    assert found["bytes"]["preparing"] == 0 and not made
    found = await planned(world)
    assert found["bytes"]["estimate"] and found["bytes"]["preparing"] == 2
    await trio.sleep(5)
    found = await planned(world)
    assert len(made) == 2 and not found["bytes"]["estimate"] and found["bytes"]["estimated"] == 0
    weighed = next(iter(made.values())).total_bytes
    assert found["bytes"]["total"] == sum(one["bytes"] for one in found["bytes"]["bases"]) == 8 * weighed
    # A rollout that is made has its packages made, before a device asks.
    for board in fleet.boards.values():
        await fleet.say(board, kinds=6, payload=8192)
    made.clear()
    spec: dict[str, object] = {"firmware": "1.3", "start": "2030-01-01T00:00:00Z"}
    await world.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=False)
    await trio.sleep(5)
    assert {package.sha256.hex() for package in made.values()} == {digest("1.3")} and len(made) == 2
    nursery.cancel_scope.cancel()


async def test_bad_input_is_refused_with_its_field(autojump_clock: trio.testing.MockClock) -> None:
    world = a_world()
    world.want(None)
    with pytest.raises(PeerError, match=r"spec.firmware: 7.7"):
        await planned(world, {"firmware": "7.7"})
    with pytest.raises(PeerError, match=r"spec.waves"):
        await planned(world, {"firmware": "1.2", "waves": []})
    with pytest.raises(NotFoundError):
        await world.controller.planner.plan("nobody", SPEC)
    await world.poll("1.0")
    found = await planned(world, {**SPEC, "end": "2027-01-15T08:00:01Z", "perMinute": 1})
    assert "comes before all devices are told" in found["time"]["tooLate"]


def test_a_forecast_has_no_change_in_it() -> None:
    """It could not write if it wanted to: neither module names a change of the store."""
    from dfud.controller import forecast, planner

    for module in (forecast, planner):
        assert not {PutActual.__name__, PutDeployment.__name__, "PutDocument", "AddCounts"} & set(vars(module))
