"""decide() for a device that is held: a rollout's update begins only with a place in its rollout."""

from __future__ import annotations

from functools import partial

import msgspec

from dfud.api import Desired, Firmware
from dfud.controller.alike import takes_place
from dfud.controller.config import ControllerConfig
from dfud.controller.decide import Verdict, decide
from dfud.controller.memory import Hold
from dfud.controller.rollouts import Rollouts
from dfud.model.desired import Held
from dfud.wire.messages import Status


class Deciding:
    def __init__(self, rollouts: Rollouts, config: ControllerConfig) -> None:
        self._rollouts = rollouts
        self._config = config

    def place(self, hold: Hold, rollout: str, now_s: float) -> Held | None:
        """Take a place in a rollout until the hold ends, or say why there is none."""
        held = self._rollouts.take(rollout, now_s)
        if held is None:
            hold.at_end.append(partial(self._rollouts.give_back, rollout))
        return held

    def of(
        self,
        hold: Hold,
        status: Status,
        desired: Desired,
        target: Firmware | None,
        now_s: float,
        *,
        heard: bool = False,
        twins: bool = False,
        after: Verdict | None = None,
    ) -> tuple[Verdict, Desired]:
        """Decide; a rollout's deployment begins only with a place in it, which is kept until the hold ends.

        after: what the status came to while all that follows from it was not known yet: it is heard, and its steps come first.
        """
        device, known = hold.known.device, hold.known.deployment
        if after is not None:
            known, heard = after.deployment, True
        while True:
            verdict = decide(
                app=device.app,
                device=device.name,
                status=status,
                deployment=known,
                desired=desired,
                target=target,
                policy=self._config,
                now_s=now_s,
                heard=heard,
                twins=twins,
            )
            if after is not None:
                verdict.steps = [*after.steps, *verdict.steps]
            began = verdict.deployment
            if began is None or not takes_place(known, began):
                return verdict, desired
            held = self.place(hold, began.rollout, now_s)
            if held is None:
                return verdict, desired
            desired = msgspec.structs.replace(desired, held=held)
