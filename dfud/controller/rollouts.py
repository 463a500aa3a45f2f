"""The rollouts: one owner of every rollout's status. Decides nothing by itself: `rollout_step.step()` does.

A rollout is a document of the store, changed by compare-and-set; what its devices came to is counted in the commits of their
deployments. What is kept in memory is a copy, so that nothing is lost when the process ends at any moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import msgspec
import trio

from dfud.api import (
    App,
    Capability,
    Change,
    ChangeEvent,
    ConflictError,
    DeleteCounts,
    DeleteDocument,
    Metadata,
    NotFoundError,
    PeerError,
    PolicyChanged,
    PutDocument,
    RefusedError,
    Rollout,
    RolloutChanged,
    contained,
    forever,
)
from dfud.controller.failures import COLLECTION as FAILED
from dfud.controller.rollout_book import COLLECTION, Entry, Promote
from dfud.controller.rollout_fleet import RolloutFleet
from dfud.controller.rollout_rules import (
    all_refuse,
    changed,
    four_eyes,
    judge,
    log_steps,
    new_metadata,
    refuse_conflict,
    scope_of,
    waiting,
    waiting_names,
)
from dfud.model.counts import WaveCounts
from dfud.model.names import check_name
from dfud.model.policy import shares_of
from dfud.model.rollout import Mode, Plan, RolloutStatus
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import ACTIONS, EXPLAINED, FINAL, TABLE, Event, State, possible
from dfud.model.rollout_step import (
    Step,
    apply,
    forgive,
    is_writing,
    next_time,
    of_now,
    recounted,
    step,
)

__all__ = ["Promote", "Rollouts"]
GATHER_S = 0.05  # answers that come so close together are looked at once
COUNT_S = 1.0
LOOK_S = 60.0  # however quiet it is
TRIES = 8


class Rollouts(RolloutFleet):
    """The book, and the engine that leads what is in it."""

    # The engine

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what is stored, report started; follow what others do to it, and lead the rollouts where this process does.

        Everybody decides by the rollouts; one process starts them, opens their waves and ends them.
        """
        await self._load()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forever, "rollouts.follow", self.follow)
            if Capability.SHARED in self._store.capabilities:
                nursery.start_soon(forever, "rollouts.count", self._count)
            while True:
                async with self._store.lead("rollouts"):
                    await self._lead()

    async def _count(self) -> None:
        """How many devices a rollout may tell at a time holds over all processes, but for what they told within COUNT_S."""
        while True:
            await trio.sleep(COUNT_S)
            await self.count_again()

    async def _lead(self) -> None:
        while True:
            self._news = trio.Event()
            await self._look()
            with trio.move_on_after(self._pause_s()):
                await self._news.wait()
            await trio.sleep(GATHER_S)

    def _pause_s(self) -> float:
        now_s = self._now()
        times = [
            found
            for entry in self._all()
            if entry.plan is not None and (found := next_time(entry.plan, entry.rollout.status, now_s)) is not None
        ]
        return max(0.0, min([LOOK_S, *(t - now_s for t in times)]))

    async def _look(self) -> None:
        with contained("rollouts.step"):
            async with self._lock:
                await self._forget_orphans()
        for entry in self._all():
            with contained("rollouts.step", rollout=entry.key):
                if self._entries.get(entry.rollout.app, {}).get(entry.rollout.name) is entry:
                    await self._advance(entry)

    async def _advance(self, entry: Entry) -> None:
        status, plan, raw = entry.rollout.status, entry.plan, entry.raw
        app = await self._store.app(entry.rollout.app)
        if app is None or app.metadata.uid != entry.rollout.metadata.annotations.get("app"):
            async with self._lock:
                if self._is_as(entry, raw):
                    await self._forget(entry, [])
            return
        if status.state in FINAL or status.state in (State.DRAFT, State.APPROVAL, State.PAUSED):
            return
        now_s = self._now()
        if plan is None:
            await self._pause(entry, raw, "bad-spec", entry.problem)
        elif why := await self._unsendable(app.name, plan, status):
            await self._pause(entry, raw, *why)
        elif status.state is State.SCHEDULED:
            if now_s >= plan.start_s:
                await self._start(entry, raw, plan, now_s)
        else:
            counts = await self.counts(entry.uid)
            found = await self._recount(app, entry, plan, of_now(status, now_s), counts)
            after, steps = step(plan, found, await self.counts(entry.uid), now_s)
            if any(s.event is Event.NEXT for s in steps):
                after = await self._opened(entry, plan, after)
            if not self._is_as(entry, raw):
                return
            if any(s.event is Event.FINISH for s in steps) and after.state is State.FINISHED:
                promoted = await self._promoted(app, entry, raw, plan, after)
                if promoted is None:
                    return
                after = promoted
            if steps or after is not status:
                await self._led(entry, raw, after, steps)

    async def _promoted(
        self, app: App, entry: Entry, raw: bytes, plan: Plan, after: RolloutStatus
    ) -> RolloutStatus | None:
        """Make what it brings the app's default at the rollout's end; None: not yet, or not at all.

        What the default was before is stored first, so that a revert finds it whatever happens in between.
        """
        if not plan.promote or after.promoted:
            return after
        assert self._promote is not None
        before, default = entry.rollout.status, app.spec.get("firmware")
        if not _is_ours(plan, default) and before.default != default and isinstance(default, dict):
            await self._led(entry, raw, msgspec.structs.replace(before, default=default), [])
            return None
        try:
            await self._promote(app.name, _promoted_to(plan, default), f"rollout {entry.rollout.name}")
        except (PeerError, RefusedError) as error:
            await self._pause(entry, raw, "not-promoted", str(error))
            return None
        return msgspec.structs.replace(after, promoted=True)

    async def _unsendable(self, app: str, plan: Plan, status: RolloutStatus) -> tuple[str, str] | None:
        """Say why nobody can be sent the version any longer: code and reason."""
        if status.state is State.REVERTING:
            return None
        for version in plan.versions:
            firmware = await self._store.firmware(app, version)
            if firmware is None:
                return "not-published", f"firmware {version} is no longer published"
            if firmware.recalled is not None:
                return "recalled", f"firmware {version} is recalled: {firmware.recalled.reason}"
        return None

    async def _pause(self, entry: Entry, raw: bytes, code: str, reason: str) -> None:
        before = entry.rollout.status
        if before.state is State.REVERTING or not self._is_as(entry, raw):
            return
        after = apply(before, Event.PAUSE, self._now(), code=code, reason=reason)
        await self._led(entry, raw, after, [Step(Event.PAUSE, before.state, after.state, code, reason)])

    async def _start(self, entry: Entry, raw: bytes, plan: Plan, now_s: float) -> None:
        """Fix who is in which wave, and open the first."""
        if not self._is_as(entry, raw):
            return
        before = entry.rollout.status
        members = await self._members(entry, plan, now_s)
        if not members and plan.whom.dynamic:
            return  # it begins with the first device that matches
        if not members:
            await self._pause(entry, raw, "nobody", "no device matches it now")
            return
        for version in plan.versions:
            firmware = await self._store.firmware(entry.rollout.app, version)
            if firmware is not None and (why := all_refuse(firmware, [facts.actual for facts in members])):
                await self._pause(entry, raw, "below-floor", why)
                return
        status = msgspec.structs.replace(
            apply(before, Event.START, now_s),
            started_s=now_s,
            wave=0,
            wave_since_s=now_s,
            shares=tuple(
                str(s) for s in shares_of(plan, entry.uid, [f.device for f in members], waiting_names(plan, members))
            ),
        )
        status = msgspec.structs.replace(status, expected=(waiting(plan, entry.uid, status, members, 0),))
        await self._led(entry, raw, status, [Step(Event.START, before.state, status.state)])

    async def _led(self, entry: Entry, raw: bytes, status: RolloutStatus, steps: Sequence[Step]) -> None:
        """Store what the engine has decided about the rollout as it was at `raw`, unless a user was faster."""
        async with self._lock:
            if self._is_as(entry, raw):
                await self._save(entry, status, steps)

    def _is_as(self, entry: Entry, raw: bytes) -> bool:
        """Say whether a rollout is still there, as it was at `raw`: a user may have steered or deleted it during an await."""
        return entry.raw is raw and self._entries.get(entry.rollout.app, {}).get(entry.rollout.name) is entry

    async def _save(
        self, entry: Entry, status: RolloutStatus, steps: Sequence[Step], also: Sequence[Change] = ()
    ) -> None:
        """Store a status by compare-and-set, then say so. After a conflict the stored one is what counts."""
        now_s = self._now()
        rollout = changed(entry.rollout, status, steps, now_s)
        raw = msgspec.json.encode(rollout)
        try:
            told = self._outbox.of_rollout(rollout, steps, now_s)
            put = PutDocument(COLLECTION, entry.key, raw, expect=entry.raw, tell=True)
            await self._store.commit([put, *self._outbox.put(told), *also])
        except ConflictError:
            await self._reread(entry)
            raise
        entry.rollout, entry.raw = rollout, raw
        self._say(rollout, told)
        log_steps(rollout, steps)

    def _say(self, rollout: Rollout, told: Iterable[ChangeEvent], *, deleted: bool = False) -> None:
        self._policies.pop(rollout.app, None)
        self._bus.publish(RolloutChanged(rollout, deleted, tuple(told)))
        self._bus.publish(PolicyChanged(rollout.app))
        self._news.set()

    async def _reread(self, entry: Entry) -> None:
        raw = await self._store.document(COLLECTION, entry.key)
        if raw is None:
            self._entries.get(entry.rollout.app, {}).pop(entry.rollout.name, None)
            self._policies.pop(entry.rollout.app, None)
        else:
            self._remember(entry.key, raw)

    async def _forget_orphans(self) -> None:
        """Forget the rollouts of apps that are deleted. Until then their names stay taken in the store."""
        while self._orphans:
            with contextlib.suppress(NotFoundError):
                await self._forget(self._orphans[0], [])
            self._orphans.pop(0)

    async def _forget(self, entry: Entry, also: Sequence[Change]) -> None:
        told = self._outbox.of_record(entry.rollout, "deleted", self._now())
        failed = [DeleteDocument(FAILED, entry.uid)] if await self._store.document(FAILED, entry.uid) else []
        await self._store.commit(
            [
                DeleteDocument(COLLECTION, entry.key, tell=True),
                DeleteCounts(scope_of(entry.uid)),
                *failed,
                *self._outbox.put(told),
                *also,
            ]
        )
        self.failures.forget(entry.uid)
        if self._entries.get(entry.rollout.app, {}).get(entry.rollout.name) is entry:
            del self._entries[entry.rollout.app][entry.rollout.name]
        self._plans.pop(entry.uid, None)
        self._looks.pop(entry.uid, None)
        self._pace.forget(entry.uid)
        self._say(entry.rollout, told, deleted=True)

    # What users ask

    async def create(
        self,
        app_name: str,
        metadata: Metadata,
        spec: dict[str, object],
        by: str,
        *,
        draft: bool,
        also: Sequence[Change] = (),
    ) -> Rollout:
        """Make a rollout, and have it start at its time unless it is a draft or needs approval first.

        Raises PeerError that names the field, RefusedError, ConflictError, NotFoundError.
        """
        check_name("rollout", metadata.name)
        plan = read_plan_untrusted(spec)
        async with self._lock:
            app = await self._store.app(app_name)
            if app is None:
                raise NotFoundError(f"no app {app_name}")
            await self._forget_orphans()
            now_s = self._now()
            await judge(self._store, app, metadata.name, plan, self.others(app_name), self._per_app, now_s)
            made = new_metadata(metadata, app, now_s)
            status = RolloutStatus(since_s=now_s, author=by)
            if not draft:
                status = apply(status, Event.SUBMIT if four_eyes(app) else Event.SCHEDULE, now_s, by=by)
            rollout = Rollout(made, dict(spec), status)
            raw = msgspec.json.encode(rollout)
            told = self._outbox.of_record(rollout, "created", now_s)
            put = PutDocument(COLLECTION, f"{app_name}/{metadata.name}", raw, create=True, tell=True)
            await self._store.commit([put, *self._outbox.put(told), *also])
            self._remember(f"{app_name}/{metadata.name}", raw)
            self._say(rollout, told)
        return rollout

    async def delete(self, app: str, name: str, also: Sequence[Change] = ()) -> None:
        """Forget a rollout that has ended or never began. Devices that it updated then run what the rest says.

        One whose record cannot be read does nothing any more, and is deleted by its name.
        """
        async with self._lock:
            key = f"{app}/{name}"
            if name not in self._entries.get(app, {}) and await self._store.document(COLLECTION, key) is not None:
                await self._store.commit([DeleteDocument(COLLECTION, key, tell=True), *also])
                return
            entry = self._entry(app, name)
            state = entry.rollout.status.state
            if state not in FINAL and state not in (State.DRAFT, State.APPROVAL, State.SCHEDULED):
                raise RefusedError(f"rollout {name} is {state}: abort it first")
            await self._forget(entry, also)

    async def act(
        self,
        app_name: str,
        name: str,
        action: str,
        by: str,
        reason: str = "",
        also: Sequence[Change] = (),
        *,
        call_back: bool = False,
    ) -> Rollout:
        """Do what a user asks; it is stored when this returns. Raises PeerError, RefusedError, NotFoundError.

        call_back: of an abort, also stop the updates that are under way.
        """
        event = ACTIONS.get(action)
        if event is None:
            raise PeerError(f"action {action[:40]!r}: expected one of {', '.join(ACTIONS)}")
        if call_back and event is not Event.ABORT:
            raise PeerError(f"callBack: {action} stops no updates, only abort does")
        async with self._lock:
            entry = self._entry(app_name, name)
            status, now_s = entry.rollout.status, self._now()
            if action == "start":
                app = await self._store.app(app_name)
                event = Event.SUBMIT if app is not None and four_eyes(app) else Event.SCHEDULE
            elif action == "approve" and status.state is State.WAVE_APPROVAL:
                event = Event.NEXT
            if action == "approve" and status.state is State.APPROVAL and by == status.author:
                raise RefusedError(f"rollout {name}: {by} made it, so somebody else has to approve it")
            await self._do(entry, event, action, by, reason, also, now_s, call_back)
            return entry.rollout

    async def _do(
        self,
        entry: Entry,
        event: Event,
        action: str,
        by: str,
        reason: str,
        also: Sequence[Change],
        now_s: float,
        call_back: bool,
    ) -> None:
        status, plan = entry.rollout.status, entry.plan
        if (status.state, event) not in TABLE:
            rest = ", ".join(possible(status.state)) or "nothing, but to delete it"
            raise RefusedError(
                f"rollout {entry.rollout.name} is {status.state}: {action} does nothing there; possible is {rest}"
            )
        if event is Event.RESUME and plan is None:
            raise RefusedError(f"rollout {entry.rollout.name} cannot be led, abort it: {entry.problem}")
        if event is Event.NEXT and plan is not None and status.wave + 1 >= len(plan.waves):
            raise RefusedError(f"rollout {entry.rollout.name} is in its last wave")
        if event is Event.ACTIVATE and (plan is None or not is_writing(plan, status)):
            done = (
                "it was activated already" if status.activated_s else f'only "mode": "{Mode.DOWNLOAD}" waits for that'
            )
            raise RefusedError(f"rollout {entry.rollout.name}: nothing is to be activated, {done}")
        after = apply(status, event, now_s, by=by, reason=reason, code="user" if event in EXPLAINED else "")
        if event is Event.APPROVE:
            after = msgspec.structs.replace(after, approved=by)
        elif event is Event.RESUME:
            after = forgive(after, await self.counts(entry.uid))
            if not status.started_s:
                after = msgspec.structs.replace(after, state=State.SCHEDULED)
        elif event is Event.NEXT and plan is not None:
            after = msgspec.structs.replace(after, wave=status.wave + 1, wave_since_s=now_s)
            after = await self._opened(entry, plan, after)
        elif event is Event.ACTIVATE and plan is not None:
            after = msgspec.structs.replace(after, wave=0, wave_since_s=now_s, activated_s=now_s, silent=())
            after = await self._opened(entry, plan, after)
        elif event is Event.RETRY:
            after = await self._retried(entry, status, after, now_s)
        elif event is Event.REVERT:
            after = msgspec.structs.replace(after, silent=())
            await self._demote(entry, by)
        elif event is Event.ABORT:
            after = msgspec.structs.replace(after, called_back=call_back)
        await self._save(entry, after, [Step(event, status.state, after.state, after.code, reason)], also)

    async def _retried(self, entry: Entry, status: RolloutStatus, after: RolloutStatus, now_s: float) -> RolloutStatus:
        """Return the status in which whatever failed may be tried again, and is waited for; what failed so far is forgiven."""
        plan, app = entry.plan, await self._store.app(entry.rollout.app)
        if plan is None or app is None:
            raise RefusedError(f"rollout {entry.rollout.name}: {entry.problem or 'its app is gone'}")
        if not status.started_s:
            raise RefusedError(f"rollout {entry.rollout.name} has not begun, so nothing has failed: resume it")
        if why := await self._unsendable(app.name, plan, status):
            raise RefusedError(why[1])
        if not any(wave.bad for wave in (await self.counts(entry.uid)).values()):
            goes_on = "; resume goes on with it" if status.state is State.PAUSED else ""
            raise RefusedError(
                f"rollout {entry.rollout.name}: no device has failed in it, so there is nothing to retry{goes_on}"
            )
        if status.state in FINAL:
            others = {name: other for name, other in self.others(app.name).items() if name != entry.rollout.name}
            refuse_conflict(plan, others)
        after = msgspec.structs.replace(after, retries=status.retries + 1, wave_since_s=now_s)
        after = forgive(after, await self.counts(entry.uid))
        found = await self._tally(app, entry, plan, after, now_s)
        counts = await self.counts(entry.uid)
        return recounted(after, counts.get(after.wave, WaveCounts()), found.untold, found.silent)

    async def _demote(self, entry: Entry, by: str) -> None:
        """Give the app the default back that it had before the rollout's version: a revert would be undone by it."""
        status, plan, app = entry.rollout.status, entry.plan, await self._store.app(entry.rollout.app)
        default = app.spec.get("firmware") if app is not None else None
        if not status.promoted or plan is None or not _is_ours(plan, default):
            return
        assert self._promote is not None
        await self._promote(entry.rollout.app, status.default, by)


def _is_ours(plan: Plan, default: object) -> bool:
    """Say whether an app's spec.firmware asks for what a rollout brings."""
    if not isinstance(default, dict):
        return False
    return all(default.get(key) == version for key, version in _named(plan).items())


def _named(plan: Plan) -> dict[str, str]:
    return {key: version for key, version in (("version", plan.version), ("app", plan.app)) if version}


def _promoted_to(plan: Plan, default: object) -> dict[str, str]:
    """Return the app's spec.firmware with what a rollout brings; the kind that it does not bring stays as it is."""
    held = default if isinstance(default, dict) else {}
    kept = {key: held[key] for key in ("version", "app") if isinstance(held.get(key), str)}
    return kept | _named(plan)
