"""Offers, downloads, retries, reverts after the end, small fleets, members that are gone: rollouts over simulated devices."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dfud.api import ConflictError, DeviceChanged, PeerError, Recall, RefusedError, Requires
from dfud.model.rollout_states import State
from dfud.wire.messages import Defer, Type
from tests.controller.led import Led, led
from tests.controller.test_ways import another

ONE_WAVE: dict[str, Any] = {"waves": [{"percent": 100, "silentS": 7200}]}


def time_of(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def publish(at: Led, version: str, **changes: Any) -> None:
    held = at.world.store.firmwares_["app", version]
    at.world.publish(msgspec.structs.replace(held, **changes))


async def counts(at: Led, name: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for wave in (await at.rollouts.counts(at.rollouts.get("app", name).metadata.uid)).values():
        found.update({field: getattr(wave, field) for field in wave.__struct_fields__})
    return {field: number for field, number in found.items() if number}


# Modes


async def test_an_offer_is_the_devices_to_take_until_its_time_has_come(autojump_clock: MockClock) -> None:
    async with led(20) as at:
        for board in list(at.fleet.boards.values())[:5]:
            board.declines = True
        now_s = at.world.wall + trio.current_time()
        await at.create("r", {"firmware": "1.1", "mode": "offer", "offerUntil": time_of(now_s + 86400), **ONE_WAVE})
        await trio.sleep(43200)
        assert at.fleet.running() == {"1.1": 15, "1.0": 5} and at.state("r") is State.TELLING
        found = await at.world.controller.insight.explain("app", "d00001")
        assert found.code == "deferred" and "somebody is using it" in found.sentences[0]
        await trio.sleep(43200 + 600)
        assert at.fleet.running() == {"1.1": 20}
        await at.until("r", State.FINISHED)


async def test_a_forced_one_does_not_ask_and_an_agents_own_pause_counts(autojump_clock: MockClock) -> None:
    async with led(4, poll_s=1e6, ask=False) as at:
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await trio.sleep(90)
        board, other, *_ = at.fleet.boards.values()
        board.declines = True
        assert (await at.fleet.say(board)).type is Type.UPDATE
        assert (await at.fleet.say(other, defer=Defer("an update did not end well", 90, own=True))).type is Type.WAIT


async def test_a_download_waits_for_its_activation_and_switches_wave_by_wave(autojump_clock: MockClock) -> None:
    waves = [{"count": 5, "silentS": 7200, "soakS": 3600}, {"percent": 100, "silentS": 7200}]
    async with led(30) as at:
        await at.create("r", {"firmware": "1.1", "mode": "download-only", "waves": waves, "transfers": 3})
        rollout = await at.until("r", State.STORED)
        await trio.sleep(900)  # the last ones are still at it
        assert at.fleet.running() == {"1.0": 30} and await counts(at, "r") == {"written": 30}, "and none takes a place any longer"
        found = await at.world.controller.insight.explain("app", "d00000")
        assert found.code == "download-only"
        with pytest.raises(RefusedError, match="waiting-for-activation: next does nothing"):
            await at.rollouts.act("app", "r", "next", "eva")
        await at.kill()
        await at.rollouts.act("app", "r", "activate", "eva")
        assert (at.state("r"), at.rollouts.get("app", "r").status.wave) == (State.TELLING, 0)
        await trio.sleep(1800)
        assert at.fleet.running() == {"1.0": 25, "1.1": 5} and at.state("r") is State.SOAKING
        with pytest.raises(RefusedError, match="it was activated already"):
            await at.rollouts.act("app", "r", "activate", "eva")
        await at.rollouts.act("app", "r", "pause", "eva")
        await trio.sleep(7200)
        assert at.fleet.running()["1.1"] == 5
        await at.rollouts.act("app", "r", "resume", "eva")
        await at.until("r", State.FINISHED)
        await trio.sleep(900)
        assert at.fleet.running() == {"1.1": 30}, "the last ones, too"
        assert all(board.tried["1.1"] == 1 for board in at.fleet.boards.values()), "nothing was fetched twice"
        assert rollout.status.activated_s == 0.0


async def test_only_a_download_is_activated(autojump_clock: MockClock) -> None:
    async with led(2) as at:
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await trio.sleep(5)
        with pytest.raises(RefusedError, match='nothing is to be activated, only "mode": "download-only" waits for that'):
            await at.rollouts.act("app", "r", "activate", "eva")


# Failures


async def test_a_rollout_has_attempts_and_a_back_off_of_its_own(autojump_clock: MockClock) -> None:
    async with led(1, poll_s=60.0) as at:
        (board,) = at.fleet.boards.values()
        board.unready = 4
        lenient = {"waves": [{"percent": 100, "success": {"count": 1}, "error": {"count": 9}}]}
        await at.create("r", {"firmware": "1.1", "attempts": 5, "backoffS": 600, **lenient})
        await at.until("r", State.FINISHED)
        times = [at_s for at_s, _ in board.told_at]
        assert len(times) == 5 and times[1] - times[0] >= 600 and times[2] - times[1] >= 600


async def test_what_failed_is_tried_again_when_a_user_says_so_also_after_the_end(autojump_clock: MockClock) -> None:
    async with led(40, bad={"1.1": 0.3}) as at:
        lenient = {"waves": [{"percent": 100, "success": {"percent": 50}, "error": {"percent": 90}, "silentS": 7200}]}
        await at.create("r", {"firmware": "1.1", **lenient})
        await at.until("r", State.FINISHED)
        await trio.sleep(1800)
        left = {board.name for board in at.fleet.boards.values() if board.version == "1.0"}
        assert left and await counts(at, "r") == {"done": 40 - len(left), "left": len(left)}
        at.fleet.bad.clear()
        at.fleet.boards[min(left)].online = 0.0
        await at.rollouts.act("app", "r", "retry", "eva")
        assert at.state("r") is State.TELLING
        at.retries = 1
        await at.kill()
        await trio.sleep(3600)
        assert at.state("r") is State.TELLING and at.fleet.running() == {"1.0": 1, "1.1": 39}, "one is away"
        await at.until("r", State.FINISHED)
        assert at.rollouts.get("app", "r").status.retries == 1
        assert {name for name, board in at.fleet.boards.items() if board.tried["1.1"] == 2} == left - {min(left)}
        await at.create("other", {"firmware": "1.2", **ONE_WAVE})
        with pytest.raises(ConflictError, match="rollout other has 0, too"):
            await at.rollouts.act("app", "r", "retry", "eva")


async def test_a_retry_where_nothing_failed_is_refused_and_changes_nothing(autojump_clock: MockClock) -> None:
    async with led(4) as at:
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await at.rollouts.act("app", "r", "pause", "eva")
        with pytest.raises(RefusedError, match="has not begun"):
            await at.rollouts.act("app", "r", "retry", "eva")
        await at.rollouts.act("app", "r", "resume", "eva")
        await at.until("r", State.TELLING)
        await at.rollouts.act("app", "r", "pause", "eva")
        with pytest.raises(RefusedError, match="no device has failed in it, so there is nothing to retry; resume goes on"):
            await at.rollouts.act("app", "r", "retry", "eva")
        assert at.state("r") is State.PAUSED
        await at.rollouts.act("app", "r", "resume", "eva")
        await at.until("r", State.FINISHED)
        with pytest.raises(RefusedError, match="so there is nothing to retry$"):
            await at.rollouts.act("app", "r", "retry", "eva")
        assert (at.state("r"), at.rollouts.get("app", "r").status.retries) == (State.FINISHED, 0)


async def test_a_retry_does_not_outlive_a_pause_or_a_second_failure(autojump_clock: MockClock) -> None:
    async with led(12, bad={"1.1": 1.0}) as at:
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await at.until("r", State.PAUSED)
        await trio.sleep(1800)
        tried = sum(board.tried["1.1"] for board in at.fleet.boards.values())
        at.retries = 1
        await at.rollouts.act("app", "r", "retry", "eva")
        await at.rollouts.act("app", "r", "pause", "eva")
        await trio.sleep(3600)
        assert sum(board.tried["1.1"] for board in at.fleet.boards.values()) == tried, "it is paused"
        await at.rollouts.act("app", "r", "resume", "eva")
        rollout = await at.until("r", State.PAUSED)
        assert rollout.status.code in ("error-threshold", "success-missed")
        await trio.sleep(7200)
        assert all(board.tried["1.1"] <= 2 for board in at.fleet.boards.values())


async def test_a_finished_and_promoted_rollout_is_taken_back_whole(autojump_clock: MockClock) -> None:
    async with led(20) as at:
        await at.create("r", {"firmware": "1.1", "promote": True, **ONE_WAVE})
        await at.until("r", State.FINISHED)
        await trio.sleep(1800)
        await at.create("more", {"firmware": "1.2", "devices": {"names": ["d00000", "d00001"]}, "priority": 1, **ONE_WAVE})
        await at.until("more", State.FINISHED)
        at.fleet.boards["d00002"].online = 0.0
        await at.kill()
        await at.rollouts.act("app", "r", "revert", "eva", "it hums")
        assert at.promoted[-1] == ("app", "1.0", "eva"), "the app's default is what it was"
        rollout = await at.until("r", State.ABORTED)
        assert rollout.status.reason == "it hums; 1 have not been heard of"
        assert at.fleet.running() == {"1.0": 17, "1.1": 1, "1.2": 2}, "whom another rollout has stays with it"
        at.fleet.boards["d00002"].online = 1.0
        await trio.sleep(1800)
        assert at.fleet.running() == {"1.0": 18, "1.2": 2}, "the app says so"


async def test_an_abort_may_call_back_what_is_under_way(autojump_clock: MockClock) -> None:
    async with led(10, poll_s=1e6, ask=False) as at:
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await trio.sleep(90)
        first, second, third, *_ = at.fleet.boards.values()
        await at.fleet.poll(first)
        command = await at.fleet.say(second)
        assert command.type is Type.UPDATE
        with pytest.raises(PeerError, match="callBack: pause stops no updates"):
            await at.rollouts.act("app", "r", "pause", "eva", call_back=True)
        await at.rollouts.act("app", "r", "abort", "eva", call_back=True)
        assert (await at.fleet.say(second)).type is not Type.UPDATE and (await at.fleet.say(third)).type is not Type.UPDATE
        assert (await at.fleet.say(first)).type is Type.SYNC
        assert await counts(at, "r") == {"done": 1, "cancelled": 1}


# Who is waited for


async def test_who_was_not_told_yet_is_taken_over_by_the_rollout_that_asks_now(autojump_clock: MockClock) -> None:
    async with led(1, poll_s=1e6, ask=False) as at:
        (board,) = at.fleet.boards.values()
        board.declines = True
        offer = {"firmware": "1.1", "mode": "offer", **ONE_WAVE}
        await at.create("first", offer)
        await trio.sleep(90)
        assert (await at.fleet.say(board)).type is Type.WAIT and await counts(at, "first") == {"under_way": 1}
        await at.rollouts.act("app", "first", "abort", "eva")
        await at.create("second", offer)
        await trio.sleep(90)
        board.declines = False
        await at.fleet.poll(board)
        assert await counts(at, "first") == {"cancelled": 1} and await counts(at, "second") == {"done": 1}
        at.check("first")


async def test_members_that_are_gone_hold_no_wave_up(autojump_clock: MockClock) -> None:
    async with led(12, poll_s=1e6, ask=False) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100}]})
        await trio.sleep(90)
        deleted, flashed, own, *others = at.fleet.boards.values()
        for board in others:
            await at.fleet.poll(board)
        assert at.rollouts.get("app", "r").status.expected == (12,) and at.state("r") is State.TELLING
        del at.world.store.devices_["app", deleted.name]
        at.world.bus.publish(DeviceChanged("app", deleted.name, deleted=True))
        flashed.version, flashed.image = "1.1", others[0].image
        await at.fleet.say(flashed)
        held = at.world.store.devices_["app", own.name]
        at.world.store.devices_["app", own.name] = msgspec.structs.replace(held, spec={"firmware": {"version": "1.0"}})
        at.world.bus.publish(DeviceChanged("app", own.name))
        await at.until("r", State.FINISHED, within_s=600.0)
        assert at.rollouts.get("app", "r").status.expected == (9,)


async def test_a_wave_that_is_told_slowly_is_not_taken_for_silent(autojump_clock: MockClock) -> None:
    waves = [{"percent": 100, "silentS": 1800, "success": {"percent": 100}}]
    async with led(60, poll_s=120.0) as at:
        await at.create("r", {"firmware": "1.1", "waves": waves, "perMinute": 1})
        await trio.sleep(2400)
        assert at.state("r") is State.TELLING, "they wait for their turn, and are heard of"
        await at.until("r", State.FINISHED)
        assert at.fleet.running() == {"1.1": 60}


async def test_a_device_that_falls_silent_in_its_update_holds_the_wave_for_its_time(autojump_clock: MockClock) -> None:
    async with led(10) as at:
        await at.create("r", {"firmware": "1.1", "waves": [{"percent": 100, "silentS": 7200, "success": {"percent": 100}}]})
        await trio.sleep(2)
        board = at.fleet.boards["d00003"]
        while not board.tried["1.1"]:
            await trio.sleep(1)
        board.online, board.unready = 0.0, 1
        await trio.sleep(3600)
        assert at.state("r") is State.TELLING
        rollout = await at.until("r", State.FINISHED, within_s=14400)
        assert rollout.status.silent == (1,)


async def test_a_small_fleet_is_not_told_all_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rollout's uid decides who is in which wave, and of five devices a wave of half may have two or three.
    ids = random.Random(1)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=ids.getrandbits(128)))
    async with led(5) as at:
        await at.create("r", {"firmware": "1.1"})
        await trio.sleep(1800)
        assert at.fleet.running()["1.1"] == 1 and at.state("r") is State.SOAKING
        await trio.sleep(3600)
        assert at.fleet.running()["1.1"] == 2
        await at.until("r", State.FINISHED)
        assert at.fleet.running() == {"1.1": 5}


# Images, steps, recalls


async def test_each_board_gets_its_image_and_they_are_counted_together(autojump_clock: MockClock) -> None:
    async with led(30) as at:
        held = at.world.store.firmwares_["app", "1.1"]
        at.world.publish(held.with_images([held.first, another("1.1", "rev 2", rev="2"), another("1.1", "s3", "esp32s3")]))
        for number, board in enumerate(at.fleet.boards.values()):
            board.attributes = {"rev": "2"} if number % 3 == 1 else {}
            board.hardware = "esp32s3" if number % 3 == 2 else "esp32c3"
        at.fleet.boards["d00000"].hardware = "esp32"
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await at.until("r", State.FINISHED)
        await trio.sleep(1800)
        assert await counts(at, "r") == {"done": 29, "failed": 1}
        images = Counter(board.image.hex() for board in at.fleet.boards.values() if board.version == "1.1")
        assert images == {held.sha256: 9, another("1.1", "rev 2").sha256: 10, another("1.1", "s3").sha256: 10}


async def test_devices_are_led_over_the_steps_and_the_target_is_what_counts(autojump_clock: MockClock) -> None:
    async with led(20) as at:
        for number, version in enumerate(("1.0", "1.1", "1.2", "1.3"), 1):
            publish(at, version, sequence=number)
        publish(at, "1.1", stop=True)
        publish(at, "1.3", requires=Requires(3, 3))
        await at.create("r", {"firmware": "1.3", "transfers": 4, **ONE_WAVE})
        seen: set[int] = set()
        with trio.fail_after(86400):
            while at.state("r") is not State.FINISHED:
                await trio.sleep(20)
                at.check("r")
                seen.add((await counts(at, "r")).get("done", 0))
                await at.kill()
        await trio.sleep(3600)
        assert at.fleet.running() == {"1.3": 20} and await counts(at, "r") == {"done": 20}
        assert all([v for _, v in board.told_at] == ["1.1", "1.2", "1.3"] for board in at.fleet.boards.values())
        await at.rollouts.act("app", "r", "revert", "eva")
        await at.until("r", State.ABORTED)
        assert at.fleet.running() == {"1.0": 20}, "what ran before the first step"
        assert all([v for _, v in board.told_at][3:] == ["1.0"] for board in at.fleet.boards.values())


async def test_a_recall_pauses_what_sends_the_version_and_refuses_what_would(autojump_clock: MockClock) -> None:
    async with led(40) as at:
        await at.create("r", {"firmware": "1.1", "perMinute": 2, **ONE_WAVE})
        await trio.sleep(300)
        publish(at, "1.1", recalled=Recall("it burns", "eva"))
        rollout = await at.until("r", State.PAUSED)
        assert (rollout.status.code, rollout.status.reason) == ("recalled", "firmware 1.1 is recalled: it burns")
        running = at.fleet.running()["1.1"]
        assert 0 < running < 40
        with pytest.raises(PeerError, match="spec.firmware: 1.1 is recalled: it burns"):
            await at.create("s", {"firmware": "1.1", "priority": 1})
        await at.rollouts.act("app", "r", "resume", "eva")
        await trio.sleep(3600)
        assert at.state("r") is State.PAUSED and at.fleet.running()["1.1"] <= running + 2
        with pytest.raises(RefusedError, match="is recalled"):
            await at.rollouts.act("app", "r", "retry", "eva")
        await at.rollouts.act("app", "r", "revert", "eva")
        await at.until("r", State.ABORTED)
        assert at.fleet.running() == {"1.0": 40}


async def test_who_cannot_go_back_to_what_is_recalled_is_counted_and_not_waited_for(autojump_clock: MockClock) -> None:
    async with led(10) as at:
        await at.create("r", {"firmware": "1.1", **ONE_WAVE})
        await at.until("r", State.FINISHED)
        await trio.sleep(1800)
        publish(at, "1.0", recalled=Recall("it is worse"))
        await at.rollouts.act("app", "r", "revert", "eva")
        rollout = await at.until("r", State.ABORTED, within_s=86400)
        assert "10 devices could not go back" in rollout.status.reason and at.fleet.running() == {"1.1": 10}


