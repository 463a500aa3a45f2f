"""A small fleet lives through random wishes, rollouts, recalls, retries and cancels of both kinds of firmware, with bad versions,
boards without banks and a controller that is killed. What must hold is held after every step."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dfud.api import AppChanged, DeviceChanged, DfudError, Recall, faults
from dfud.controller.rollout_rules import scope_of
from dfud.model.counts import counter_of
from dfud.model.kinds import KINDS
from dfud.model.rollout_states import State
from tests.controller.led import Led
from tests.controller.test_kinds_rollouts import two_kinds
from tests.controller.world import a_firmware

SYSTEMS, APPS = ("1.0", "1.1", "1.2"), ("3.0", "3.1", "3.2")
RANGES = [None, None, None, (0, 99), (1, 2), (2, 3), (30, 31), (31, 32)]
STEPS = 40
WHAT = ("device", "device", "default", "rollout", "rollout", "steer", "steer", "retry", "cancel", "range", "recall")
QUIET = {"left", "back-off", "range", "no-banks", "hardware", "recalled", "in-sync", "nothing-wanted"}


class Life:
    def __init__(self, at: Led, rng: random.Random) -> None:
        self.at, self.rng = at, rng
        self.made = 0
        self.before = faults()  # what tests before this one have had contained
        self.said: list[str] = []

    def wish(self) -> dict[str, Any] | None:
        system, app = self.rng.choice((None, *SYSTEMS)), self.rng.choice((None, *APPS))
        wanted = {key: version for key, version in (("version", system), ("app", app)) if version}
        return wanted or None

    async def step(self) -> None:
        world, rng = self.at.world, self.rng
        name = rng.choice(sorted(self.at.fleet.boards))
        what = rng.choice(WHAT)
        self.said.append(f"{what} {name}")
        try:
            if what == "device":
                wanted = self.wish()
                held = world.store.devices_["app", name]
                spec = {k: v for k, v in held.spec.items() if k != "firmware"} | ({"firmware": wanted} if wanted else {})
                world.store.devices_["app", name] = msgspec.structs.replace(held, spec=spec)
                world.bus.publish(DeviceChanged("app", name))
            elif what == "default":
                held_app = world.store.apps_["app"]
                self.made += 1
                metadata = msgspec.structs.replace(held_app.metadata, resource_version=f"w{self.made}")
                wanted = self.wish() or {"version": "1.0"}
                spec = {**held_app.spec, "firmware": wanted}
                world.store.apps_["app"] = msgspec.structs.replace(held_app, metadata=metadata, spec=spec)
                world.bus.publish(AppChanged("app"))
            elif what == "rollout":
                wanted = self.wish() or {"app": "3.1"}
                self.made += 1
                spec = {"firmware": wanted.get("version"), "app": wanted.get("app"), "priority": self.made}
                spec["waves"] = [{"percent": rng.choice((40, 100)), "soakS": 30, "silentS": 3600}]
                spec["onError"] = rng.choice(("pause", "revert"))
                await self.at.create(f"r{self.made}", {key: value for key, value in spec.items() if value is not None})
            elif what == "steer":
                rollouts = self.at.rollouts.all_of("app")
                if rollouts:
                    action = rng.choice(("pause", "resume", "revert", "retry", "abort"))
                    await self.at.rollouts.act("app", rng.choice(rollouts).name, action, "eva")
            elif what in ("retry", "cancel"):
                await getattr(world.controller, what)("app", name, "eva")
            elif what == "range":
                number, beside = rng.randrange(3), rng.choice(RANGES)
                if rng.random() < 0.5:
                    world.publish(a_firmware(SYSTEMS[number], sequence=1 + number, beside=beside))
                else:
                    world.publish(a_firmware(APPS[number], kind="app", sequence=30 + number, beside=beside))
            elif what == "recall":
                held_firmware = world.store.firmwares_["app", rng.choice((*SYSTEMS[1:], *APPS[1:]))]
                recalled = None if held_firmware.recalled is not None else Recall("it burns")
                world.publish(msgspec.structs.replace(held_firmware, recalled=recalled))
        except DfudError as error:
            self.said[-1] += f": {error}"  # refused, which is an answer

    async def hold(self) -> None:
        store = self.at.world.store
        recounts: dict[str, Counter[str]] = {}
        for (_, name), deployments in store.of_device.items():
            every = sorted(deployments.values(), key=lambda d: d.number)
            assert sum(not d.final for d in every) <= 1, f"{name}: two updates at one time"
            newest = every[-1]
            for kind in KINDS:
                last, known = next((d for d in every[::-1] if d.kind == kind), None), newest.of(kind)
                assert (known is None) == (last is None), f"{name}: {kind}"
                if known is not None and last is not None:
                    assert (known.id, known.state) == (last.id, last.state), f"{name}: what is known of its {kind} is old"
            for uid in {d.rollout for d in every if d.rollout}:
                mine = [d for d in every if d.rollout == uid][-1]
                recounts.setdefault(uid, Counter())[counter_of(mine)] += 1
        for rollout in self.at.rollouts.all_of("app"):
            uid = rollout.metadata.uid
            counted = {n: c for n, c in store.counts_.get(scope_of(uid), {}).items() if c}
            assert counted == dict(recounts.get(uid, {})), rollout.name
        for board in self.at.fleet.boards.values():
            assert not board.out_of_range, f"{board.name} was sent {board.out_of_range}"
            assert board.banks or not board.app_told, f"{board.name} has no banks"
        assert faults() == self.before, "nothing was contained"


@pytest.mark.parametrize("seed", range(4))
async def test_both_kinds_live_through_whatever_people_do(autojump_clock: MockClock, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    bad = {"1.2": rng.choice((0.0, 0.5, 1.0)), "3.2": rng.choice((0.0, 0.5, 1.0)), "3.1": rng.choice((0.0, 0.3))}
    async with two_kinds(8, seed=seed, bad=bad, online=0.9, poll_s=60.0) as at:
        for board in list(at.fleet.boards.values())[:2]:
            board.banks = False
        life = Life(at, rng)
        for _ in range(STEPS):
            await life.step()
            await trio.sleep(rng.choice((1, 10, 60, 400)))
            await life.hold()
            if rng.random() < 0.2:
                await at.kill()
        # People leave it alone: it comes to rest, and everybody's state has a reason.
        for rollout in at.rollouts.all_of("app"):
            if rollout.status.state not in (State.FINISHED, State.ABORTED):
                await at.rollouts.act("app", rollout.name, "abort", "eva")
        await trio.sleep(4 * 3600)
        await life.hold()
        sent = {name: len(board.told_at) for name, board in at.fleet.boards.items()}
        await trio.sleep(4 * 3600)
        assert {name: len(board.told_at) for name, board in at.fleet.boards.items()} == sent, "it goes round for ever"
        for name in at.fleet.boards:
            found = await at.world.controller.insight.explain("app", name)
            assert found.code in QUIET, (name, found, life.said)
