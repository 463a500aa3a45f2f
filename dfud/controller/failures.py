"""The first devices of each rollout that failed, with what they said: stored in the commit that counts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from dfud.api import Change, Deployment, PutDocument, State, Store, read_record
from dfud.controller.turn import Failure
from dfud.model.crashes import crash_of
from dfud.wire.messages import code_name

COLLECTION = "rollout.failed"  # uid -> list of Failure
KEPT = 10
TEXT_MAX = 1024
ROLLOUTS_MAX = 1000


class Failures:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: OrderedDict[str, list[Failure]] = OrderedDict()

    async def of(self, uid: str) -> list[Failure]:
        """Return the first failures of a rollout, in order. Raises StoreError."""
        found = self._found.get(uid)
        if found is None:
            raw = await self._store.document(COLLECTION, uid)
            stored = read_record("rollouts.failed", raw, list[Failure], rollout=uid) if raw is not None else None
            found = self._found.setdefault(uid, stored or [])
            if len(self._found) > ROLLOUTS_MAX:
                self._found.popitem(last=False)
        return found

    async def noted(self, steps: Sequence[Deployment]) -> list[Change]:
        """Return what keeps the failures among these steps of a device, to be committed with them."""
        changes: list[Change] = []
        for d in steps:
            if not d.rollout or d.back or d.state not in (State.FAILED, State.ROLLED_BACK):
                continue
            found = await self.of(d.rollout)
            others = [f for f in found if f.device != d.device]
            if len(others) >= KEPT:
                continue
            crash = crash_of(d.text, d.record, d.reset_reason)
            found[:] = [
                *others,
                Failure(
                    device=d.device,
                    wave=d.wave,
                    state=str(d.state),
                    code=code_name(d.code, d.state),
                    at_s=d.updated_s,
                    text=d.text[-TEXT_MAX:],
                    fingerprint=crash.fingerprint,
                    title=crash.title,
                    deployment=d.id,
                ),
            ]
            changes.append(PutDocument(COLLECTION, d.rollout, msgspec.json.encode(found)))
        return changes

    def forget(self, uid: str) -> None:
        self._found.pop(uid, None)
