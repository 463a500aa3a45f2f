"""Devices that run what they should, or of which nothing is wanted, and go on saying so: nothing is decided anew for their reports.

What a look came to is kept with the device. As long as nothing that it was decided by has changed, a status that differs from the
last one in its attributes at most comes to the same, and only what it says is stored. No I/O.
"""

from __future__ import annotations

from msgspec.structs import replace

from dfud.api import Actual, Change, Deployment, Desired, PutActual
from dfud.controller.decide import Verdict, Why
from dfud.controller.keeping import Kept, Look, Settled
from dfud.controller.memory import Hold, Memory
from dfud.model.tally import HOUR_S, crash_in, hour_of
from dfud.wire.messages import NO_VERSION, Command, Status

STAYS = frozenset({Why.IN_SYNC, Why.NOTHING_WANTED})  # what neither time nor another device ends
OWN = ("firmware", "link")  # of a device's spec: with these in it, what it comes to is its own


class Settling:
    """seen_s: how often what a device says is stored where it says nothing new."""

    def __init__(self, memory: Memory, seen_s: float) -> None:
        self._memory = memory
        self._seen_s = seen_s

    def of(
        self, hold: Hold, status: Status, verdict: Verdict, command: Command, kept: Kept, *, common: Desired | None
    ) -> Settled | None:
        """Return what is to be kept of a look with what it came to, if that stays so.

        common: what is desired of every device of the app that asks for nothing itself, None: that depends on the device.
        """
        known, actual, deployment = hold.known, kept.actual, verdict.deployment
        if verdict.why not in STAYS or verdict.steps or kept.steps or deployment is not known.deployment:
            return None
        if status.progress is not None or status.result is not None or status.defer is not None:
            return None
        if common is None or any(name in known.device.spec for name in OWN) or status.version == NO_VERSION:
            return None
        if common.version and self._memory.asks_for_attributes(hold.key[0]):
            return None
        if deployment is not None and (not deployment.final or deployment.other is not None):
            return None
        return Settled(status, command, hold.epoch) if _is_counted(actual, deployment) else None

    def look(self, hold: Hold, status: Status, transport: str, now_s: float, now: float) -> Look | None:
        """Return what a status comes to; None: it has to be looked at, and nothing was done yet."""
        known = hold.known
        before, deployment, settled = known.actual, known.deployment, known.settled
        if type(settled) is not Settled or before is None:
            return None
        if settled.actual is not before or settled.deployment is not deployment:
            return None
        last = settled.status
        if status is not last and replace(status, attributes=last.attributes) != last:
            return None
        hold.looks()
        if hold.epoch != settled.epoch or now_s // HOUR_S != before.seen_s // HOUR_S:
            return None
        news = status.attributes != last.attributes or transport != before.transport
        actual = replace(before, attributes=status.attributes, transport=transport, seen_s=now_s)
        changes: list[Change] = []
        if news or now - known.seen_at >= self._seen_s:
            if hour_of(now_s) not in before.tally:
                return None  # the first one of this hour was not stored, nor was it counted in it
            changes.append(PutActual(actual, tell=news))
        known.status = status
        kept = Kept(
            changes=changes,
            steps=(),
            counted={},
            actual=actual,
            deployment=deployment,
            news=news,
            now=now,
            now_s=now_s,
            settled=settled,
        )
        # Where this is not stored after all, nothing is remembered of the device at all.
        settled.status = status
        return Look(kept, settled.command, None, None)


def _is_counted(actual: Actual, deployment: Deployment | None) -> bool:
    """Say whether a device is in the counters that it would be in after saying the same again within the hour."""
    if actual.twins is not None or crash_in(actual, deployment) is not None:
        return False
    program = actual.program.version if actual.program is not None else ""
    return f"version/{actual.version}" in actual.tally and (not program or f"app/{program}" in actual.tally)
