"""What people ask about devices: why one runs what it runs, and which are not where they should be. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import trio

from dfud.api import Bus, DeviceView, NotFoundError, Store, contained, forever
from dfud.controller.attention import Attention, Need, attention
from dfud.controller.config import ControllerConfig
from dfud.controller.drift import Drift, drift
from dfud.controller.explain import SILENT_POLLS, Explanation, explain
from dfud.controller.fleet import Fleet
from dfud.controller.memory import Memory
from dfud.controller.refusals import Refusals
from dfud.controller.rollout_rules import facts_of
from dfud.controller.rollouts import Rollouts
from dfud.controller.turn import Turn, turns_of
from dfud.model.policy import Running
from dfud.model.rollout_states import FINAL, State

OPEN = ("pending", "notified", "fetching", "written", "trial")
LOOK_S = 300.0


class Insight:
    """now: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        memory: Memory,
        rollouts: Rollouts,
        fleet: Fleet,
        config: ControllerConfig,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._refusals = Refusals(store, bus, now)
        self._needs: dict[str, dict[str, int]] = {}
        self._memory = memory
        self._rollouts = rollouts
        self._config = config
        self._now = now

    async def explain(self, app: str, device: str) -> Explanation:
        """Return why a device runs what it runs, from what is stored. Raises NotFoundError, StoreError."""
        view = await self._store.device(app, device)
        if view is None:
            raise NotFoundError(f"no device {device} in app {app}")
        return (await self._explained(view))[0]

    async def drift(self, app: str) -> Drift:
        """Return which devices of an app are not where they should be, and why. Raises NotFoundError, StoreError."""
        await self._memory.app(app)
        return await drift(self._store, app, self._explained)

    async def attention(self, app: str) -> Attention:
        """Return which deployments of an app have not moved for attention_s, and why. Raises NotFoundError, StoreError."""
        await self._memory.app(app)
        config = self._config

        async def code_of(view: DeviceView) -> tuple[str, str]:
            found = (await self._explained(view))[0]
            return found.code, found.sentences[0]

        silent_s = config.seen_s + SILENT_POLLS * config.poll_s
        found = await attention(self._store, app, code_of, self._now, after_s=config.attention_s, silent_s=silent_s)
        self._needs[app] = {need.value: found.causes[need].count if need in found.causes else 0 for need in Need}
        return found

    def needs(self) -> dict[str, dict[str, int]]:
        """Return how many deployments of each app needed attention at the last look, by cause; for /metrics."""
        return self._needs

    async def run(self) -> None:
        """Look now and then at the apps that have something under way, and tell other processes who was turned away here, until
        cancelled.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forever, "insight.refusals", self._refusals.run)
            nursery.start_soon(forever, "insight.look", self._look)

    async def _look(self) -> None:
        while True:
            await trio.sleep(min(LOOK_S, self._config.attention_s))
            for app in set(self._needs) - set(self._fleet.counted()):
                del self._needs[app]
            for app, counts in list(self._fleet.counted().items()):
                with contained("attention.look", app=app):
                    if any(counts.get(f"state/{state}", 0) > 0 for state in OPEN):
                        await self.attention(app)
                    else:
                        self._needs.pop(app, None)

    def _running(self, app: str) -> list[Running]:
        """Return the rollouts of an app that have not ended, as far as they can be read, the one that counts most first."""
        found = []
        for rollout in self._rollouts.all_of(app):
            plan = self._rollouts.plan(rollout.metadata.uid)
            if plan is not None and rollout.status.state not in FINAL:
                found.append(Running(rollout, plan, tuple(int(s) for s in rollout.status.shares)))
        return sorted(found, key=lambda running: -running.plan.priority)

    async def _explained(self, view: DeviceView) -> tuple[Explanation, bool]:
        """Explain a device, and say whether what it runs is a firmware of its app."""
        app, now_s = view.device.app, self._now()
        desired, target = await self._memory.judge(view, now_s)
        running = await self._memory.image(app, view.actual.sha256) if view.actual is not None else None
        turns: list[Turn] = []
        if "firmware" not in view.device.spec and (active := self._running(app)):
            failed = {
                one.uid: await self._rollouts.failures.of(one.uid)
                for one in active
                if one.rollout.status.state is State.PAUSED
            }
            turns = turns_of(active, facts_of(view), failed)
        published = running is not None
        refused = self._refusals.of(app, view.device.name)
        found = explain(view, desired, target, self._config, now_s, turns=turns, published=published, refused=refused)
        return found, published
