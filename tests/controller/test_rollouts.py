"""Rollouts over a fleet under virtual time: waves, thresholds, windows, rates, kills; and the counters are always a recount."""

from __future__ import annotations

from collections import Counter
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import trio

from dfud.api import (
    App,
    AppChanged,
    ConflictError,
    DeviceChanged,
    Metadata,
    PeerError,
    RefusedError,
    Rollout,
    StoreError,
    faults,
)
from dfud.controller.rollout_rules import scope_of
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import State
from dfud.model.schedule import is_open
from dfud.wire.messages import Type
from tests.amounts import sampled
from tests.controller.led import BERLIN, NEW_YORK, QUICK, led


async def test_a_good_version_reaches_everybody_wave_by_wave(autojump_clock: trio.testing.MockClock) -> None:
    async with led(300) as at:
        commits = at.world.store.commits
        rollout = await at.create("r", {"firmware": "1.1", "waves": QUICK, "promote": True})
        assert at.world.store.commits == commits + 1, "no write per device before it is told"
        first = await at.until("r", State.SOAKING)
        assert first.status.wave == 0
        told = Counter(at.fleet.running())
        (expected,) = first.status.expected
        assert 15 <= expected <= 50 and 0.9 * expected <= told["1.1"] <= expected
        await at.until("r", State.FINISHED)
        await trio.sleep(3600)  # it is good before the last have answered
        assert at.fleet.running() == {"1.1": 300}
        assert at.promoted == [("app", "1.1", "rollout r")]
        assert [h.event for h in at.rollouts.get("app", "r").status.history] == [
            "start", "good", "next", "good", "finish",
        ]  # fmt: skip
        assert rollout.status.author == "eva"


@pytest.mark.parametrize("rest_s", sampled(4 * 3600.0, 86400.0))
async def test_a_bad_version_stops_in_the_first_wave_and_says_why(
    autojump_clock: trio.testing.MockClock, rest_s: float
) -> None:
    async with led(300, bad={"1.2": 0.5}) as at:
        await at.create("bad", {"firmware": "1.2", "waves": QUICK})
        rollout = await at.until("bad", State.PAUSED)
        assert rollout.status.wave == 0 and rollout.status.code == "error-threshold"
        assert "devices that answered failed or went back, expected at most 5 %" in rollout.status.reason
        told = sum(board.tried["1.2"] for board in at.fleet.boards.values())
        await trio.sleep(rest_s)
        assert sum(board.tried["1.2"] for board in at.fleet.boards.values()) - told <= 1, "nobody else is told"


async def test_a_bad_version_is_taken_back_from_whoever_took_it(autojump_clock: trio.testing.MockClock) -> None:
    async with led(200, bad={"1.2": 0.4}) as at:
        await at.create("bad", {"firmware": "1.2", "waves": QUICK, "onError": "revert"})
        rollout = await at.until("bad", State.ABORTED)
        assert rollout.status.code == "error-threshold"
        await trio.sleep(3600)
        assert at.fleet.running() == {"1.0": 200}


async def test_nobody_is_told_outside_of_their_own_window(autojump_clock: trio.testing.MockClock) -> None:
    spec = {
        "firmware": "1.1",
        "waves": [{"percent": 100}],
        "windows": [{"from": "22:00", "to": "02:00"}],
        "timeZone": {"label": "tz"},
    }
    async with led(60, poll_s=900.0) as at:
        plan = read_plan_untrusted(spec)
        await at.create("night", spec)
        await at.until("night", State.FINISHED)
        for number, board in enumerate(at.fleet.boards.values()):
            zone = ZoneInfo([BERLIN, NEW_YORK][number % 2])
            for at_s, version in board.told_at:
                assert version == "1.1" and is_open(plan.windows, zone, at_s)


async def test_no_more_are_told_a_minute_and_at_one_time_than_may_be(autojump_clock: trio.testing.MockClock) -> None:
    async with led(120, poll_s=20.0) as at:
        await at.create("slow", {"firmware": "1.1", "waves": [{"percent": 100}], "perMinute": 12, "transfers": 5})
        await at.until("slow", State.FINISHED)
        times = sorted(at_s for board in at.fleet.boards.values() for at_s, _ in board.told_at)
        assert len(times) == 120
        for first, later in zip(times, times[14:], strict=False):
            assert later - first >= 60.0 - 1e-6, "twelve a minute, and a burst of two"


@pytest.mark.parametrize("limit", ["transfers", "perMinute"])
async def test_devices_that_ask_at_the_same_moment_do_not_share_one_place(
    autojump_clock: trio.testing.MockClock, limit: str
) -> None:
    async with led(20, poll_s=1e6, ask=False) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}], limit: 2})
        await trio.sleep(90)
        asked: list[Any] = []

        async def ask(name: str) -> None:
            asked.append(await at.fleet.say(at.fleet.boards[name]))

        async with trio.open_nursery() as nursery:
            for name in at.fleet.boards:
                nursery.start_soon(ask, name)
        told = [command for command in asked if command.type is Type.UPDATE]
        assert len(told) == (2 if limit == "transfers" else 1)
        at.check("r")


async def test_a_place_of_a_deployment_that_could_not_be_stored_is_free_again(
    autojump_clock: trio.testing.MockClock
) -> None:
    async with led(3, poll_s=1e6, ask=False) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}], "transfers": 1})
        await trio.sleep(90)
        first, second, _ = at.fleet.boards.values()
        at.world.store.broken = True
        with pytest.raises(StoreError):
            await at.fleet.say(first)
        at.world.store.broken = False
        assert (await at.fleet.say(second)).type is Type.UPDATE
        assert (await at.fleet.say(first)).type is not Type.UPDATE


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_rollout_that_is_killed_again_and_again_loses_and_doubles_nothing(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    async with led(150, seed, online=0.9, bad={"1.1": 0.01}) as at:
        lenient = {"error": {"percent": 50}, "silentS": 4000, "soakS": 30}
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 20, **lenient}, {"percent": 100, **lenient}]})
        with trio.fail_after(5 * 86400):
            while at.state("r") is not State.FINISHED:
                await trio.sleep(97)
                await at.kill()
                at.check("r")
        states = [r.status.state for r in at.told]
        assert states.count(State.FINISHED) == 1
        assert at.fleet.running()["1.1"] >= 140


async def test_who_made_it_does_not_approve_it(autojump_clock: trio.testing.MockClock) -> None:
    async with led(20, poll_s=900.0) as at:
        app = at.world.store.apps_["app"]
        at.world.store.apps_["app"] = App(app.metadata, {**app.spec, "rollouts": {"approval": True}})
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 50, "approval": True, "silentS": 4000}, {"percent": 100}]})
        await trio.sleep(3600)
        assert at.state("r") is State.APPROVAL and at.fleet.running() == {"1.0": 20}
        with pytest.raises(RefusedError, match="somebody else"):
            await at.rollouts.act("app", "r", "approve", "eva")
        await at.rollouts.act("app", "r", "approve", "udo")
        await at.until("r", State.WAVE_APPROVAL)
        await trio.sleep(86400)  # 90 % of the wave are enough for it; the others come later
        half = at.fleet.running()["1.1"]
        await trio.sleep(86400)
        assert at.fleet.running()["1.1"] == half < 20
        await at.rollouts.act("app", "r", "approve", "eva")
        await at.until("r", State.FINISHED)
        assert at.rollouts.get("app", "r").status.approved == "udo"


async def test_what_a_user_says_is_done_or_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with led(40) as at:
        await at.create("r", {"firmware": "1.1", "waves": QUICK})
        await at.rollouts.act("app", "r", "pause", "eva", "lunch")
        assert (at.state("r"), at.rollouts.get("app", "r").status.reason) == (State.PAUSED, "lunch")
        await at.kill()
        assert at.state("r") is State.PAUSED
        with pytest.raises(RefusedError, match="is paused: pause does nothing there; possible is resume, retry, revert, abort"):
            await at.rollouts.act("app", "r", "pause", "eva")
        with pytest.raises(PeerError, match="expected one of start, approve"):
            await at.rollouts.act("app", "r", "explode", "eva")
        with pytest.raises(RefusedError, match="abort it first"):
            await at.rollouts.delete("app", "r")
        await at.rollouts.act("app", "r", "resume", "eva")
        await trio.sleep(10)
        await at.rollouts.act("app", "r", "next", "eva")
        await at.until("r", State.FINISHED)
        await at.rollouts.delete("app", "r")
        assert at.world.store.counts_.get(scope_of(at.told[0].metadata.uid)) is None


async def test_what_cannot_come_to_anything_is_refused_by_its_field(autojump_clock: trio.testing.MockClock) -> None:
    async with led(4) as at:
        for spec, said in (
            ({"firmware": "9.9"}, "spec.firmware: 9.9 is not published"),
            ({"firmware": "1.1", "devices": {"selector": "zone=mars"}}, "spec.devices.selector: matches no device"),
            ({"firmware": "1.1", "devices": {"names": ["d00000", "nobody"]}}, "spec.devices.names: no device nobody"),
            (
                {"firmware": "1.1", "waves": [{"selector": "canary"}, {"percent": 100}]},
                r"spec.waves\[0\].selector: matches no device, so the wave would be good at once",
            ),
            ({"firmware": "1.1", "end": "2026-12-31T00:00:00Z"}, "spec.end: it is over, expected a time to come"),
            (
                {"firmware": "1.1", "mode": "offer", "offerUntil": "2026-12-31T00:00:00Z"},
                "spec.offerUntil: it is over, expected a time to come",
            ),
            (
                {
                    "firmware": "1.1",
                    "end": "2027-01-16T00:00:00Z",
                    "windows": [{"days": ["sun"], "from": "01:00", "to": "02:00"}],
                },
                "spec.windows: none opens before spec.end, so it could never run",
            ),
        ):
            with pytest.raises(PeerError, match=said):
                await at.create("r", spec)
        await at.create("eu", {"firmware": "1.1", "devices": {"selector": "zone=eu"}})
        await at.create("us", {"firmware": "1.2", "devices": {"selector": "zone=us"}})
        with pytest.raises(ConflictError, match=r"spec.priority: rollout (eu|us) has 0, too"):
            await at.create("both", {"firmware": "1.2", "devices": {"selector": "zone"}})
        await at.create("both", {"firmware": "1.2", "devices": {"selector": "zone"}, "priority": 1})
        with pytest.raises(ConflictError, match="exists already"):
            await at.create("both", {"firmware": "1.2", "priority": 2})


async def test_a_version_below_what_every_device_accepts_is_refused_or_pauses_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with led(250, poll_s=1e6, ask=False) as at:
        boards = list(at.fleet.boards.values())
        for board in boards[:-1]:
            await at.fleet.say(board, sequence=7)
        spec = {"firmware": "1.1", "waves": [{"percent": 100}]}
        await at.create("r", {**spec, "devices": {"selector": "zone=eu"}})
        await trio.sleep(1)
        assert at.state("r") is State.TELLING, "one has not said what it accepts"
        await at.rollouts.act("app", "r", "abort", "eva")
        await at.fleet.say(boards[-1], sequence=9)
        said = "1.1 has sequence 1, every device accepts 7 or more: publish it again with a higher sequence"
        with pytest.raises(PeerError, match=f"spec.firmware: {said}"):
            await at.create("s", {**spec, "devices": {"selector": "zone=eu"}})
        await at.create("s", spec)
        rollout = await at.until("s", State.PAUSED)
        assert rollout.status.code == "below-floor" and rollout.status.reason.startswith(said), "too many to look at them all before"


@pytest.mark.parametrize("rest_s", sampled(4 * 3600.0, 86400.0))
async def test_what_is_under_way_goes_on_when_it_is_aborted_and_nobody_is_taken_back(
    autojump_clock: trio.testing.MockClock, rest_s: float
) -> None:
    async with led(60, poll_s=30.0) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}], "perMinute": 30})
        with trio.fail_after(3600):
            while not 10 <= at.fleet.running()["1.1"] < 30:
                await trio.sleep(1)
        await at.rollouts.act("app", "r", "abort", "eva", "enough")
        told = {board.name for board in at.fleet.boards.values() if board.tried["1.1"]}
        assert len(told) > at.fleet.running()["1.1"], "some are under way"
        await trio.sleep(rest_s)
        assert {board.name for board in at.fleet.boards.values() if board.version == "1.1"} == told
        at.check("r")


@pytest.mark.parametrize("how", ["deleted", "made again", "aborted"])
async def test_a_user_who_is_faster_than_the_engines_look_at_the_fleet_counts(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    async with led(6) as at:
        store, devices = at.world.store, at.world.store.devices
        looked = trio.Event()
        before = dict(faults())

        async def slow(*given: Any, **options: Any) -> Any:
            if options.get("limit") != 1:
                looked.set()
                await trio.sleep(5)
            return await devices(*given, **options)

        store.devices = slow  # type: ignore[method-assign]
        old = await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}]})
        await looked.wait()
        if how == "aborted":
            await at.rollouts.act("app", "r", "abort", "eva")
        else:
            await at.rollouts.delete("app", "r")
        if how == "made again":
            new: Rollout = await at.rollouts.create("app", Metadata("r"), {"firmware": "1.2"}, "eva", draft=True)
            assert new.metadata.uid != old.metadata.uid
        await trio.sleep(3600)
        assert faults() == before and at.fleet.running() == {"1.0": 6}
        if how == "deleted":
            assert at.rollouts.all_of("app") == []
        else:
            assert at.state("r") is (State.ABORTED if how == "aborted" else State.DRAFT)


async def test_a_dynamic_rollout_waits_for_its_first_device(autojump_clock: trio.testing.MockClock) -> None:
    async with led(6) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}], "devices": {"selector": "late", "dynamic": True}})
        await trio.sleep(3600)
        assert at.state("r") is State.SCHEDULED and at.fleet.running() == {"1.0": 6}
        late = at.world.store.devices_["app", "d00003"]
        labels = {**late.metadata.labels, "late": "1"}
        metadata = msgspec.structs.replace(late.metadata, labels=labels, resource_version="2")
        at.world.store.devices_["app", "d00003"] = msgspec.structs.replace(late, metadata=metadata)
        at.world.bus.publish(DeviceChanged("app", "d00003"))
        await at.until("r", State.FINISHED)
        assert at.fleet.running() == {"1.0": 5, "1.1": 1}


async def test_a_version_that_is_withdrawn_pauses_what_sends_it(autojump_clock: trio.testing.MockClock) -> None:
    async with led(40) as at:
        await at.create("r", {"firmware": "1.1", "waves": QUICK})
        await trio.sleep(200)
        at.world.withdraw("1.1")
        rollout = await at.until("r", State.PAUSED)
        assert rollout.status.code == "not-published"


async def test_a_firmware_that_is_deleted_pauses_what_sends_it_at_once_and_holds_up_no_way_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with led(40) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}]})
        await trio.sleep(200)
        assert at.fleet.running()["1.1"] > 1
        await at.rollouts.act("app", "r", "revert", "eva")
        at.world.withdraw("1.1")
        await at.until("r", State.ABORTED, within_s=86400)
        assert at.fleet.running() == {"1.0": 40}
        await at.create("s", {"firmware": "1.2", "waves": [{"percent": 100}]})
        await trio.sleep(1)
        at.world.withdraw("1.2")
        await trio.sleep(1)
        assert at.state("s") is State.PAUSED


async def test_a_device_that_is_deleted_takes_no_place_and_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with led(3, poll_s=1e6, ask=False) as at:
        world, spec = at.world, {"firmware": "1.1", "waves": [{"percent": 100}], "transfers": 1, "onError": "revert"}
        rollout = await at.create("r", spec)
        await trio.sleep(90)
        first, second, third = at.fleet.boards.values()

        async def delete(name: str) -> None:
            async with world.controller.leaving("app", name) as also:
                await world.store.commit(also)
                del world.store.devices_["app", name]
            world.bus.publish(DeviceChanged("app", name, deleted=True))

        assert (await at.fleet.say(first)).type is Type.UPDATE
        assert (await at.fleet.say(second)).type is Type.WAIT
        await delete(first.name)
        await at.fleet.poll(second)
        assert second.version == "1.1"
        (counts,) = (await at.rollouts.counts(rollout.metadata.uid)).values()
        assert (counts.under_way, counts.done, counts.cancelled) == (0, 1, 1)
        assert (await at.fleet.say(third)).type is Type.UPDATE
        await at.rollouts.act("app", "r", "revert", "eva")
        await delete(second.name)
        await delete(third.name)
        await trio.sleep(90)
        assert at.state("r") is State.ABORTED, "nobody is left who could go back"


async def test_a_cancelled_device_does_not_hold_its_wave_up(autojump_clock: trio.testing.MockClock) -> None:
    async with led(2, poll_s=1e6, ask=False) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}]})
        await trio.sleep(90)
        first, second = at.fleet.boards.values()
        await at.fleet.say(first)
        await at.world.controller.cancel("app", first.name, "eva")
        await at.fleet.poll(second)
        await trio.sleep(90)
        assert at.state("r") is State.FINISHED


async def test_nothing_is_counted_for_a_rollout_that_is_deleted(autojump_clock: trio.testing.MockClock) -> None:
    async with led(1, poll_s=1e6, ask=False) as at:
        rollout = await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}]})
        await trio.sleep(90)
        (board,) = at.fleet.boards.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at.fleet.poll, board)
            await trio.sleep(0.5)
            await at.rollouts.act("app", "r", "abort", "eva")
            await at.rollouts.delete("app", "r")
        ended = [d for d in at.world.store.of_device["app", board.name].values() if d.rollout == rollout.metadata.uid]
        assert len(ended) == 1 and ended[0].final
        assert scope_of(rollout.metadata.uid) not in at.world.store.counts_


async def test_an_app_that_is_made_again_has_none_of_the_rollouts_of_the_one_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with led(3, poll_s=1e6, ask=False) as at:
        spec = {"firmware": "1.1", "waves": [{"percent": 100}]}
        old = await at.create("r", spec)
        app = at.world.store.apps_["app"]
        at.world.bus.publish(AppChanged("app", deleted=True))
        at.world.store.apps_["app"] = App(Metadata("app", uid="v", resource_version="2"), app.spec)
        assert at.rollouts.all_of("app") == []
        new = await at.create("r", spec)
        await trio.sleep(90)
        assert [r.metadata.uid for r in at.rollouts.all_of("app")] == [new.metadata.uid] != [old.metadata.uid]
        await at.kill()
        assert at.rollouts.get("app", "r").status.state is State.TELLING


async def test_a_version_that_the_app_does_not_take_pauses_at_the_end_and_says_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def refuse(app: str, firmware: dict[str, Any] | None, by: str) -> None:
        raise PeerError("spec: 70000 bytes as JSON, expected at most 65536")

    async with led(4) as at:
        promote, at.rollouts._promote = at.rollouts._promote, refuse
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}], "promote": True})
        rollout = await at.until("r", State.PAUSED)
        assert (rollout.status.code, rollout.status.reason[:12]) == ("not-promoted", "spec: 70000 ")
        at.rollouts._promote = promote
        await at.rollouts.act("app", "r", "resume", "eva")
        await at.until("r", State.FINISHED)
        assert at.promoted == [("app", "1.1", "rollout r")]


async def test_one_record_that_cannot_be_read_costs_that_rollout_only(autojump_clock: trio.testing.MockClock) -> None:
    async with led(20) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 50}, {"percent": 100, "soakS": 3600}]})
        await at.until("r", State.SOAKING)
        documents, whole = at.world.store.documents_, at.rollouts.get("app", "r")
        documents["rollout", "app/broken"] = b"\x00"
        documents["rollout", "app/twin"] = documents["rollout", "app/r"]  # says that it is another
        odd: dict[str, list[Any]] = {"wave": [-1, 2, 10**12], "shares": [("x",), ("-1",), ("9" * 5000,), ("1", "2", "3")]}
        for number, (field, value) in enumerate((f, v) for f, values in odd.items() for v in values):
            metadata = msgspec.structs.replace(whole.metadata, name=f"odd{number}", uid=f"odd{number}")
            status = msgspec.structs.replace(whole.status, **{field: value})
            documents["rollout", f"app/odd{number}"] = msgspec.json.encode(Rollout(metadata, whole.spec, status))
        uid = whole.metadata.uid
        at.world.store.counts_[scope_of(uid)] |= {f"{uid}/\u00b2/done": 3, f"{uid}/x/done": 3, f"{uid}//done": 3}
        await at.kill()
        names = {rollout.name for rollout in at.rollouts.all_of("app")}
        assert names == {"r", *(f"odd{n}" for n in range(7))}, "the others are named in the log"
        with trio.fail_after(30 * 86400):
            while at.state("r") is not State.FINISHED:
                await trio.sleep(5)
        for name in sorted(names - {"r"}):
            found = at.rollouts.get("app", name)
            assert (found.status.state, found.status.code) == (State.PAUSED, "bad-spec")
            assert found.status.reason.startswith("status."), "it says what is wrong"
            with pytest.raises(RefusedError, match="abort it"):
                await at.rollouts.act("app", name, "resume", "eva")
            with pytest.raises(RefusedError, match="cannot be led"):
                await at.world.controller.planner.plan("app", found.spec, name=name)
            await at.rollouts.act("app", name, "abort", "eva")
            await at.rollouts.delete("app", name)
        for name in ("broken", "twin"):
            await at.rollouts.delete("app", name)
        assert [key for _, key in at.world.store.documents_ if _ == "rollout"] == ["app/r"]
        assert at.fleet.running()["1.1"] == 20


async def test_a_clock_that_is_set_back_makes_no_rollout_wait_for_it(autojump_clock: trio.testing.MockClock) -> None:
    async with led(20) as found:
        found.world.wall += 300 * 86400
        waves = [{"percent": 50, "soakS": 7200, "silentS": 3600}, {"percent": 100, "soakS": 60, "silentS": 3600}]
        await found.create("r", {"firmware": "1.1", "waves": waves})
        await found.until("r", State.SOAKING)
        found.world.wall -= 300 * 86400
        await found.until("r", State.FINISHED, within_s=86400.0)


@pytest.mark.slow
async def test_ten_thousand_devices_that_are_killed_with_their_daemon(autojump_clock: trio.testing.MockClock) -> None:
    async with led(10_000, online=0.95, poll_s=900.0, bad={"1.1": 0.002}) as at:
        night = {"windows": [{"from": "20:00", "to": "06:00"}], "timeZone": {"label": "tz"}}
        await at.create("r", {"firmware": "1.1", "perMinute": 600, "transfers": 500, **night})
        with trio.fail_after(60 * 86400):
            while at.state("r") not in (State.FINISHED, State.PAUSED):
                await trio.sleep(3600)
                await at.kill()
                at.check("r")
        assert at.state("r") is State.FINISHED and at.fleet.running()["1.1"] > 9_800
