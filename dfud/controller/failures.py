"""The first devices of each rollout that failed, with what they said: stored in the commit that counts them.

Compare and set, each on what the one before it in this process stores: of several processes one is faster, and the others' devices
are judged anew by what is stored then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from dfud.api import (
    Aged,
    Bus,
    Cache,
    Change,
    Deployment,
    DocumentChanged,
    Missed,
    PutDocument,
    State,
    Store,
    read_record,
)
from dfud.controller.turn import Failure
from dfud.model.crashes import TITLE_MAX, crash_of
from dfud.wire.messages import code_name

COLLECTION = "rollout.failed"  # uid -> list of Failure
KEPT = 10
TEXT_MAX = 1024
ROLLOUTS_MAX = 1000


class _Kept(msgspec.Struct):
    """raw: what is stored, or will be by the commits that are under way; None: nothing."""

    failures: list[Failure]
    raw: bytes | None


class Failures:
    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._found: Cache[str, _Kept] = Cache(ROLLOUTS_MAX)
        bus.subscribe(DocumentChanged, lambda e: self.forget(e.key) if e.collection == COLLECTION else None)
        bus.subscribe(Missed, lambda e: self._found.forget_all())
        bus.subscribe(Aged, lambda e: self._found.forget_all())

    async def of(self, uid: str) -> list[Failure]:
        """Return the first failures of a rollout, in order. Raises StoreError."""
        return (await self._of(uid)).failures

    async def _of(self, uid: str) -> _Kept:
        async def read() -> _Kept:
            raw = await self._store.document(COLLECTION, uid)
            stored = read_record("rollouts.failed", raw, list[Failure], rollout=uid) if raw is not None else None
            return _Kept(stored or [], raw)

        return await self._found.load(uid, read)

    async def noted(self, steps: Sequence[Deployment]) -> list[Change]:
        """Return what keeps the failures among these steps of a device, to be committed with them."""
        changes: list[Change] = []
        for d in steps:
            if not d.rollout or d.back or d.state not in (State.FAILED, State.ROLLED_BACK):
                continue
            found = await self._of(d.rollout)
            others = [f for f in found.failures if f.device != d.device]
            if len(others) >= KEPT:
                continue
            crash = crash_of(d.text, d.record, d.reset_reason)
            # Of what was refused the words as they are: a crash's title has no numbers, so that all of its kind have the same.
            refused = d.text.strip().rpartition("\n")[2][:TITLE_MAX] if d.state is State.FAILED else ""
            failures = [
                *others,
                Failure(
                    device=d.device,
                    wave=d.wave,
                    state=str(d.state),
                    code=code_name(d.code, d.state),
                    at_s=d.updated_s,
                    text=d.text[-TEXT_MAX:],
                    fingerprint=crash.fingerprint,
                    title=refused or crash.title,
                    deployment=d.id,
                ),
            ]
            before, found.failures, found.raw = found.raw, failures, msgspec.json.encode(failures)
            put = PutDocument(COLLECTION, d.rollout, found.raw, create=before is None, expect=before, tell=True)
            changes.append(put)
        return changes

    def forget(self, uid: str) -> None:
        self._found.forget(uid)

    @contextmanager
    def doubted(self) -> Iterator[None]:
        """Around a commit of what noted() gave: where it is not done, what is remembered is not what is stored."""
        try:
            yield
        except BaseException:
            self._found.forget_all()
            raise
