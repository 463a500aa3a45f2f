"""The fleet as a rollout sees it: who is in it, how many a wave has, and for whom it still waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
import trio

from dfud.api import App, Bus, DeviceView, Store
from dfud.controller.outbox import Outbox
from dfud.controller.recount import Tally, tally
from dfud.controller.rollout_book import PAGE, Book, Entry, Promote
from dfud.controller.rollout_rules import facts_of, waiting
from dfud.model.counts import WaveCounts
from dfud.model.policy import Policy
from dfud.model.rollout import Facts, Plan, RolloutStatus, is_member
from dfud.model.rollout_states import State
from dfud.model.rollout_step import recounted, waits_for_somebody

RECOUNT_S = 60.0  # without news before the fleet is looked at for who has gone
RECOUNT_MAX_S = 900.0
RECOUNT_SHARE = 50.0  # times as long as a look took before the next one


class _Look(msgspec.Struct):
    """What was counted of a rollout when it last went on; when its fleet may be looked at again (trio's clock), and the pause then,
    which doubles while looks find nothing new."""

    counts: Mapping[int, WaveCounts]
    due: float
    pause_s: float = RECOUNT_S


class RolloutFleet(Book):
    """A book that looks at devices. Looking is costly, and not done more often than what changes asks for."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        now: Callable[[], float],
        promote: Promote | None = None,
        *,
        per_app: int = 200,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(store, bus, now, promote, per_app=per_app, outbox=outbox)
        self._looks: dict[str, _Look] = {}

    async def _opened(self, entry: Entry, plan: Plan, status: RolloutStatus) -> RolloutStatus:
        """Count the devices of the wave that opens."""
        members = await self._members(entry, plan, status.started_s)
        number = waiting(plan, entry.uid, status, members, status.wave)
        return msgspec.structs.replace(status, expected=(*status.expected[: status.wave], number))

    async def _members(self, entry: Entry, plan: Plan, started_s: float) -> list[Facts]:
        """Return all devices that are meant, but for those with a firmware of their own."""
        found: list[Facts] = []
        async for view in self._views(entry, plan):
            facts = facts_of(view)
            if "firmware" not in view.device.spec and is_member(plan, entry.uid, started_s, facts):
                found.append(facts)
        return found

    async def _views(self, entry: Entry, plan: Plan) -> AsyncIterator[DeviceView]:
        """Yield the devices that the rollout's selector matches."""
        after = ""
        while page := await self._store.devices(entry.rollout.app, plan.whom.selector, limit=PAGE, after=after):
            after = page[-1].device.name
            for view in page:
                yield view

    async def _recount(
        self, app: App, entry: Entry, plan: Plan, status: RolloutStatus, counts: Mapping[int, WaveCounts]
    ) -> RolloutStatus:
        """Return the status with the devices that its wave has now, if it may have lost or gained some and waits for them.

        The fleet is looked at only now and then: looking costs a page of devices after the other.
        """
        now_s, moved = self._now(), app.name in self._moved
        if not waits_for_somebody(plan, status, counts, now_s, moved=moved):
            return status
        began = trio.current_time()
        look = self._looks.setdefault(entry.uid, _Look(counts, began + RECOUNT_S))
        if look.counts != counts:  # it goes on
            look.counts, look.pause_s, look.due = counts, RECOUNT_S, max(look.due, began + RECOUNT_S)
        if began < look.due:
            return status
        self._moved.discard(app.name)
        found = await self._tally(app, entry, plan, status, now_s)
        after = await self._as_found(entry, status, found)
        look.pause_s = RECOUNT_S if after is not status else min(2 * look.pause_s, RECOUNT_MAX_S)
        look.due = trio.current_time() + max(look.pause_s, RECOUNT_SHARE * (trio.current_time() - began))
        return after

    async def _as_found(self, entry: Entry, status: RolloutStatus, found: Tally) -> RolloutStatus:
        if status.state is State.REVERTING:
            settled = found.back <= found.lost
            return msgspec.structs.replace(status, silent=(found.lost,), settled=True) if settled else status
        counts = await self.counts(entry.uid)
        return recounted(status, counts.get(status.wave, WaveCounts()), found.untold, found.silent)

    async def _tally(self, app: App, entry: Entry, plan: Plan, status: RolloutStatus, now_s: float) -> Tally:
        found = Tally()
        rollout = msgspec.structs.replace(entry.rollout, status=status)
        others = [e.rollout for e in self._of(app) if e is not entry]
        policy = Policy(app.spec, [rollout, *others])
        async for view in self._views(entry, plan):
            tally(found, policy, rollout, plan, view.device.spec, facts_of(view), view.deployment, now_s)
        return found
