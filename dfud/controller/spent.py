"""Limits of one device or one rollout that hold over all processes: what one has spent is taken off at the others, too."""

from __future__ import annotations

from dfud.api import Bus, SharedCounts, Store
from dfud.controller.budget import Budget
from dfud.controller.rollout_book import Book


class Spent:
    """history, packages: what a device may have written and made; rollouts: how many devices each may tell in a minute."""

    def __init__(self, store: Store, bus: Bus, history: Budget, packages: Budget, rollouts: Book) -> None:
        self._budgets = {"history": history, "packages": packages}
        self._rollouts = rollouts
        self._counts = SharedCounts(store, bus, "controller", self._elsewhere)
        history.tell = lambda app, device, number: self._counts.add(("history", app, device), number)
        packages.tell = lambda app, device, number: self._counts.add(("packages", app, device), number)
        rollouts.tell = lambda uid: self._counts.add(("told", uid))

    async def run(self) -> None:
        """Tell the other processes, until cancelled."""
        await self._counts.run()

    def _elsewhere(self, key: tuple[str, ...], number: int) -> None:
        match key:
            case ("told", uid):
                self._rollouts.told_elsewhere(uid, number)
            case (("history" | "packages") as what, app, device):
                self._budgets[what].elsewhere(app, device, number)
