"""Telemetry on its way to the sinks: each for itself, side by side, within a time."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dfud.api import Code, EventSink, Reply, StoreError, Telemetry, note
from dfud.endpoint.replies import AWAY

FAILED = Reply(Code.FAILED, error="InternalError", message="The event could not be taken")


class Sinks:
    """Gives every event to every sink. What one raises, or how long it takes, is none of the others' business."""

    def __init__(self, sinks: Sequence[EventSink], timeout_s: float) -> None:
        self._sinks = sinks
        self._timeout_s = timeout_s

    async def take(self, telemetry: Telemetry) -> Reply | None:
        """Return None when all sinks answer for the event, else what its device is to be told: the worst of what they said.

        A sink that says that it cannot take it (StoreError), or takes too long, has the device told to try again; one that
        breaks its promise by raising something else is a 500. Both are logged and counted under `sink.<name>`.
        """
        if len(self._sinks) == 1:
            return await self._give(self._sinks[0], telemetry)
        worst: list[Reply] = []

        async def give(sink: EventSink) -> None:
            reply = await self._give(sink, telemetry)
            if reply is not None:
                worst.append(reply)

        async with trio.open_nursery() as nursery:
            for sink in self._sinks:
                nursery.start_soon(give, sink)
        return min(worst, key=lambda reply: reply.code, default=None)

    async def _give(self, sink: EventSink, telemetry: Telemetry) -> Reply | None:
        where, about = f"sink.{sink.name}", {"app": telemetry.app, "device": telemetry.device}
        try:
            with trio.fail_after(self._timeout_s):
                await sink.take(telemetry)
        except (StoreError, trio.TooSlowError) as error:
            note(where, error, **about)
            return AWAY
        except Exception as error:
            note(where, error, **about)
            return FAILED
        return None
