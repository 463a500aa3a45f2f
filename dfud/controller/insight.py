"""What people ask about devices: why one runs what it runs, and which are not where they should be. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from dfud.api import DeviceView, NotFoundError, Store
from dfud.controller.config import ControllerConfig
from dfud.controller.drift import Drift, drift
from dfud.controller.explain import Explanation, explain
from dfud.controller.memory import Memory
from dfud.controller.rollouts import Rollouts
from dfud.model.rollout_states import FINAL


class Insight:
    """now: seconds since the epoch."""

    def __init__(
        self, store: Store, memory: Memory, rollouts: Rollouts, config: ControllerConfig, now: Callable[[], float]
    ) -> None:
        self._store = store
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

    async def _explained(self, view: DeviceView) -> tuple[Explanation, bool]:
        """Explain a device, and say whether what it runs is a firmware of its app."""
        app, now_s = view.device.app, self._now()
        desired, target = await self._memory.judge(view, now_s)
        running = await self._memory.image(app, view.actual.sha256) if view.actual is not None else None
        active = [r for r in self._rollouts.all_of(app) if r.status.state not in FINAL]
        published = running is not None
        found = explain(view, desired, target, self._config, now_s, rollouts=active, published=published)
        return found, published
