"""Devices that come together in the same situation: all that one of them came to is given to the others, with their own names.

Alike spares them the decision; this spares them the way to it and what follows from it as well, where nothing of either is a
device's own: it runs what it ran, asks for nothing itself, and is in the same counters. Whoever differs in anything is looked at
by itself. A model lives as long as its Alike. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from dfud.api import Actual, AddCounts, App, Desired
from dfud.controller.alike import Alike, Model, Said, Situation, nameless
from dfud.controller.keeping import Keeper, Look, Settled, Step
from dfud.controller.memory import Hold, Memory
from dfud.controller.observe import health_of, twins_of
from dfud.wire.messages import NO_VERSION, Status


class Likewise:
    """common: what should run on every device of an app that asks for nothing itself, None: that depends on the device."""

    def __init__(self, memory: Memory, keeper: Keeper, common: Callable[[App], Desired | None]) -> None:
        self._memory = memory
        self._keeper = keeper
        self._common = common

    def situation(self, hold: Hold, status: Status, transport: str, alike: Alike) -> Situation | None:
        """Return a device's situation, which is that of all it is like; None: it is its own."""
        known = hold.known
        before, deployment, spec = known.actual, known.deployment, known.device.spec
        if before is None or status.version == NO_VERSION:
            return None
        if status.result is not None or status.progress is not None or "firmware" in spec or "link" in spec:
            return None
        if deployment is not None and (not deployment.final or deployment.other is not None):
            return None
        app = self._memory.known_app(hold.key[0])
        desired = self._common(app) if app is not None else None
        if desired is None:
            return None
        hold.looks()
        said = alike.said(*hold.key, status, transport)
        past = nameless(deployment) if deployment is not None else None
        key = (
            hold.key[0],
            hold.epoch,
            id(said.part),
            id(desired),
            before.sha256,
            before.tally,
            before.measured,
            past,
        )
        return Situation(key, desired, said)

    def look(self, hold: Hold, situation: Situation, alike: Alike) -> Look | None:
        """Return what a device comes to; None: it is not known from another one, and nothing was done.

        Raises StoreError where the device has changed too often.
        """
        model = alike.models.get(situation.key)
        actual = self._observed(hold, situation.said, alike.now_s) if model is not None else None
        if model is None or actual is None:
            return None
        known = hold.known
        steps: Sequence[Step] = ()
        deployment = known.deployment
        if model.steps:
            number = deployment.number + 1 if deployment is not None else 1
            steps = model.steps_of(alike.new_id(), hold.key[1], number)
            deployment = steps[-1][0]
        kept = self._keeper.likewise(
            hold, actual, deployment, steps, model.tally, model.counts, now=alike.now, now_s=alike.now_s
        )
        if kept is None:
            return None
        known.status = status = situation.said.status
        settled = model.look.kept.settled
        if settled is not None and actual.twins is None:
            kept.settled = Settled(status, settled.command, settled.epoch)
        return Look(kept, model.look.command, model.look.order, model.look.package)

    def learn(self, hold: Hold, situation: Situation, alike: Alike, look: Look) -> None:
        """Keep what a device came to, nothing of which is stored yet, if that can be given to others of its situation."""
        kept, before = look.kept, hold.known.deployment
        if kept.counted or (look.order is not None and look.package is None):
            return
        if self._observed(hold, situation.said, alike.now_s) is None:
            return
        newest = kept.deployment
        if kept.steps:
            if newest is None or newest is not kept.steps[-1][0] or newest.rollout or newest.other is not None:
                return
            if any(step.id != newest.id for step, _ in kept.steps) or (before is not None and before.id == newest.id):
                return
        elif newest is not before:
            return
        tally, counts = None, []
        if kept.changes:
            counts = [change for change in kept.changes if type(change) is AddCounts]
            tally = kept.actual.tally
            if any(name.startswith("crash/") for name in tally):
                return  # it is named in the record of its crash
        alike.models[situation.key] = Model(situation, tuple(kept.steps), tally, counts, look)

    def _observed(self, hold: Hold, said: Said, now_s: float) -> Actual | None:
        """Return what a device says with what is known of it; None: there are signs of a crash, or of a second board."""
        before, status = hold.known.actual, said.status
        assert before is not None
        health, twins = before.health, before.twins
        if status.starts is not None or health is not None or before.sha256 != said.actual.sha256:
            health = health_of(before, status, now_s)
            if health is not None and health.crashes > health.crashes_before:
                return None
            twins = twins_of(before, status, hold.known.deployment, now_s)
        if twins is not None and twins.contradictions:
            return None
        return replace(
            said.actual,
            device=hold.key[1],
            measured=before.measured,
            tally=before.tally,
            health=health,
            twins=twins,
        )
