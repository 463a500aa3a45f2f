"""A fleet of simulated devices in several time zones through rollouts that succeed, pause, revert and are recalled, while the
controller is killed again and again.

After every step: counters equal a recount, nobody is told twice, never more than the ceiling at one time; in the end: nobody was told
outside of their window.
"""

from __future__ import annotations

import hashlib
import os
import random
import uuid
from collections import Counter
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dfud.api import Recall, Requires
from dfud.model.firmware import Image
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import State
from dfud.model.schedule import is_open
from dfud.wire.manifest import Manifest, unsigned
from tests.controller.led import Led, led
from tests.controller.world import a_firmware

ZONES = ["Europe/Berlin", "America/New_York", "Asia/Tokyo", "Asia/Kolkata"]
SEQUENCES = {"1.0": 1, "1.1": 2, "1.2": 3, "1.3": 4, "2.0": 5, "2.1": 6}
FAILS = {"1.1": 0.002, "1.3": 0.004, "2.0": 0.3, "2.1": 0.002}
NIGHT = {"windows": [{"from": "20:00", "to": "06:00"}], "timeZone": {"label": "tz"}}
LENIENT = {"silentS": 14400, "soakS": 600}


def image(version: str, name: str, hardware: str, **attributes: str) -> Image:
    sha256 = hashlib.sha256(f"{version} {name}".encode()).hexdigest()
    made = unsigned(Manifest("app", version, hardware, SEQUENCES[version], 900, bytes.fromhex(sha256)))
    return Image(hardware, SEQUENCES[version], 900, sha256, made, attributes=attributes)


def publish(at: Led) -> None:
    """Each version with an image for each of three kinds of board; 1.1 may not be skipped, and 1.3 takes it and what is newer."""
    for version, sequence in SEQUENCES.items():
        plain = msgspec.structs.replace(a_firmware(version), sequence=sequence)
        made = plain.with_images(
            [plain.first, image(version, "rev 2", "esp32c3", rev="2"), image(version, "s3", "esp32s3")]
        )
        ways = {"stop": version == "1.1", "requires": Requires(2) if version == "1.3" else None}
        at.world.publish(msgspec.structs.replace(made, **ways))


def equip(at: Led, rng: random.Random) -> None:
    for number, board in enumerate(at.fleet.boards.values()):
        kind = number % 3
        board.attributes = {"rev": "2"} if kind == 1 else {}
        board.hardware = "esp32s3" if kind == 2 else "esp32c3"
        board.image = bytes.fromhex(at.world.store.firmwares_["app", "1.0"].images[kind].sha256)
        board.declines = rng.random() < 0.1


async def until(at: Led, rng: random.Random, name: str, *states: State, step: Any = None) -> State:
    """Kill the controller at odd moments and check after each, until the rollout has come to one of the states."""
    with trio.fail_after(20 * 86400):
        while at.state(name) not in states:
            await trio.sleep(rng.choice((3, 5, 60, 900, 900)))
            if step is not None:
                step()
            at.check(name)
            await at.kill()
    return at.state(name)


def within_windows(led: Led, since_s: float) -> None:
    """Every device was told first, of each step, while its window was open; a lost answer is told again later."""
    plan = read_plan_untrusted({"firmware": "1", **NIGHT})
    for entry in led.world.store.entries:
        if entry.event == "sent" and entry.at_s >= since_s:
            zone = ZoneInfo(led.world.store.devices_["app", entry.device].metadata.labels["tz"])
            told = f"{entry.device} was told {entry.version} at {datetime.fromtimestamp(entry.at_s, zone)}"
            assert is_open(plan.windows, zone, entry.at_s), told


async def life(at: Led, rng: random.Random) -> None:
    boards = list(at.fleet.boards.values())
    whole = len(boards)
    publish(at)
    equip(at, rng)
    now_s = at.world.wall + trio.current_time()

    # Two steps, at night, as an offer that becomes forced; several kinds of board.
    offer = {"mode": "offer", "offerUntil": "2027-01-16T10:00:00+00:00", "transfers": max(20, whole // 10), **NIGHT}
    few = {"error": {"percent": 25, "atLeast": 8}, **LENIENT}
    waves = [{"percent": 2, **few}, {"percent": 100, **few}]
    assert now_s < read_plan_untrusted({"firmware": "1", **offer}).offer_until_s < now_s + 3 * 86400
    await at.create("steps", {"firmware": "1.3", "waves": waves, "attempts": 3, **offer})
    assert await until(at, rng, "steps", State.FINISHED, State.PAUSED) is State.FINISHED
    within_windows(at, now_s)
    await trio.sleep(4 * 3600)
    at.check("steps")
    assert at.fleet.running()["1.3"] >= 0.9 * whole
    took = [b for b in boards if b.version == "1.3"]
    assert all([v for _, v in b.told_at] == ["1.1", "1.3"] for b in took), "nobody skipped the step"
    kinds = Counter(b.image.hex() for b in took)
    assert kinds.keys() == {i.sha256 for i in at.world.store.firmwares_["app", "1.3"].images}, "each kind its own image"

    # A bad one pauses itself, is tried again in vain, and is aborted.
    before = at.fleet.running()
    forced = [{"percent": 5, **LENIENT}, {"percent": 100, **LENIENT}]
    await at.create("bad", {"firmware": "2.0", "waves": forced, "priority": 1})
    assert await until(at, rng, "bad", State.PAUSED) is State.PAUSED
    assert at.rollouts.get("app", "bad").status.code == "error-threshold"
    at.retries = 1
    await at.rollouts.act("app", "bad", "retry", "eva")
    await until(at, rng, "bad", State.PAUSED)
    await at.rollouts.act("app", "bad", "abort", "eva", call_back=True)
    await trio.sleep(7200)
    at.check("bad")
    told = sum(b.tried["2.0"] > 0 for b in boards)
    assert 0 < told < 0.3 * whole, "the second wave never opened"

    # The same takes itself back.
    at.retries = 2
    await at.create("undone", {"firmware": "2.0", "waves": forced, "priority": 2, "onError": "revert"})
    await until(at, rng, "undone", State.ABORTED)
    await trio.sleep(7200)

    # A good one is recalled on the way, and goes back where it came from.
    at.retries = 0
    waves = [{"percent": 100, **few}]
    await at.create("burns", {"firmware": "2.1", "waves": waves, "priority": 3, "perMinute": max(2, whole // 60)})
    half = at.world.store.firmwares_["app", "2.1"]

    def recall() -> None:
        if at.fleet.running()["2.1"] > 0.3 * whole and at.world.store.firmwares_["app", "2.1"].recalled is None:
            at.world.publish(msgspec.structs.replace(half, recalled=Recall("it burns", "eva")))

    assert await until(at, rng, "burns", State.PAUSED, State.FINISHED, step=recall) is State.PAUSED
    assert at.rollouts.get("app", "burns").status.code == "recalled"
    told = sum(b.tried["2.1"] for b in boards)
    await at.rollouts.act("app", "burns", "revert", "eva")
    await until(at, rng, "burns", State.ABORTED)
    assert sum(b.tried["2.1"] for b in boards) == told < 0.9 * whole, "nobody got it after the recall"
    assert at.fleet.running()["2.1"] <= 0.02 * whole, "but for those that were not heard of"
    assert at.fleet.running()["1.3"] + at.fleet.running()["2.0"] >= before["1.3"] - 0.05 * whole


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(100, id="sample"),
        pytest.param(200, id="some", marks=pytest.mark.slow),
        pytest.param(400, id="more", marks=pytest.mark.slow),
        pytest.param(10_000, id="ten thousand", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
)
async def test_a_fleet_lives_through_good_and_bad_rollouts(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    seed = int(os.environ.get("DFUD_SEED", "3"))
    rng, ids = random.Random(seed), random.Random(-seed)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=ids.getrandbits(128)))  # they decide who is in which wave
    print("seed", seed)
    async with led(count, seed, online=0.93, poll_s=1200.0, bad=dict(FAILS), zones=ZONES) as at:
        await life(at, rng)
