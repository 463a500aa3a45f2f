"""A fleet under virtual time and the controller that leads it through rollouts; what must hold after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from dfud.api import (
    App,
    AppChanged,
    Metadata,
    Rollout,
    RolloutChanged,
)
from dfud.controller.rollout_rules import scope_of
from dfud.model.counts import counter_of
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import State
from tests.controller.fleet import Fleet
from tests.controller.world import World

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
QUICK = [{"percent": 10, "soakS": 60, "silentS": 7200}, {"percent": 100, "soakS": 60, "silentS": 7200}]


class Led:
    """A world, its fleet, and the controller that leads it; `check()` holds what must always hold."""

    def __init__(self, world: World, fleet: Fleet, nursery: trio.Nursery) -> None:
        self.world = world
        self.fleet = fleet
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self.promoted: list[tuple[str, str, str]] = []
        self.told: list[Rollout] = []
        self.retries = 0  # how often a user had a rollout try again what failed
        world.bus.subscribe(RolloutChanged, lambda e: self.told.append(e.rollout))

    @property
    def rollouts(self) -> Any:
        return self.world.controller.rollouts

    async def start(self) -> None:
        async def promote(app: str, firmware: dict[str, Any] | None, by: str) -> None:
            version = firmware["version"] if firmware is not None else ""
            self.promoted.append((app, version, by))
            held = self.world.store.apps_[app]
            spec = {k: v for k, v in held.spec.items() if k != "firmware"} | ({"firmware": firmware} if firmware else {})
            self.world.store.apps_[app] = App(msgspec.structs.replace(held.metadata, resource_version=version), spec)
            self.world.bus.publish(AppChanged(app))

        self.rollouts._promote = promote
        self._scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with self._scope:
                await self.world.controller.run(task_status=task_status)

        await self._nursery.start(run)

    async def kill(self) -> None:
        """End the process as kill -9 does: what is not stored is gone."""
        self._scope.cancel()
        await trio.lowlevel.checkpoint()
        self.world.restarted()
        await self.start()

    async def create(self, name: str, spec: dict[str, Any], by: str = "eva") -> Rollout:
        made: Rollout = await self.rollouts.create("app", Metadata(name), spec, by, draft=False)
        return made

    def state(self, name: str) -> State:
        state: State = self.rollouts.get("app", name).status.state
        return state

    async def until(self, name: str, *states: State, within_s: float = 30 * 86400.0) -> Rollout:
        with trio.fail_after(within_s):
            while self.state(name) not in states:
                await trio.sleep(5)
                self.check(name)
        self.check(name)
        rollout: Rollout = self.rollouts.get("app", name)
        return rollout

    def check(self, name: str) -> None:
        """Counters equal a recount of the stored deployments; never more under way than the ceiling; nobody twice."""
        rollout = self.rollouts.get("app", name)
        uid, plan = rollout.metadata.uid, read_plan_untrusted(rollout.spec)
        recount: Counter[str] = Counter()
        for deployments in self.world.store.of_device.values():
            mine = [d for d in deployments.values() if d.rollout == uid]
            if mine:
                recount[counter_of(max(mine, key=lambda d: d.number))] += 1
        counted = {n: c for n, c in self.world.store.counts_.get(scope_of(uid), {}).items() if c}
        assert counted == dict(recount)
        if plan.transfers:
            assert sum(n for c, n in recount.items() if c.endswith("/under_way")) <= plan.transfers
        for board in self.fleet.boards.values():
            for version in plan.versions:
                assert board.tried[version] <= max(1, plan.attempts) + self.retries, f"{board.name} was told twice"


@asynccontextmanager
async def led(
    count: int,
    seed: int = 1,
    *,
    online: float = 1.0,
    poll_s: float = 300.0,
    bad: dict[str, float] | None = None,
    ask: bool = True,
    zones: list[str] | None = None,
) -> AsyncIterator[Led]:
    world = World()
    world.store.apps_["app"] = App(
        Metadata("app", uid="u", resource_version="1"), {"signing": {"mode": "optional"}, "firmware": {"version": "1.0"}}
    )
    fleet = Fleet(world, count, seed, bad=bad or {}, zones=zones or [BERLIN, NEW_YORK], online=online)
    async with trio.open_nursery() as nursery:
        found = Led(world, fleet, nursery)
        await found.start()
        if ask:
            nursery.start_soon(fleet.live, poll_s)
            await trio.sleep(poll_s * 2)  # everybody has reported once
        yield found
        nursery.cancel_scope.cancel()
