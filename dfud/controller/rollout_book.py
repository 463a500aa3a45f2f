"""The rollouts as they are kept in memory: a copy of what is stored, and what follows from it for each device. Decides nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from dfud.api import (
    Actual,
    ActualChanged,
    Aged,
    App,
    AppChanged,
    Bus,
    Deployment,
    Desired,
    Device,
    DeviceChanged,
    DeviceStateChanged,
    DeviceView,
    DocumentChanged,
    FirmwareChanged,
    Missed,
    NotFoundError,
    PeerError,
    PolicyChanged,
    Rollout,
    Store,
    note,
    read_record,
)
from dfud.controller.failures import Failures
from dfud.controller.outbox import Outbox
from dfud.controller.pace import Pace
from dfud.controller.rollout_rules import facts_of, scope_of
from dfud.model.counts import WaveCounts, read_counts
from dfud.model.desired import Held
from dfud.model.policy import Policy
from dfud.model.rollout import ROLLOUTS, Plan, status_problem
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import FINAL
from dfud.model.times import time_of

COLLECTION = ROLLOUTS
PAGE = 1000
# Sets an app's spec.firmware, None removes it: (app, firmware, by).
Promote = Callable[[str, dict[str, Any] | None, str], Awaitable[None]]


class Entry(msgspec.Struct):
    """One rollout as it is stored. plan None: its spec cannot be read, as `problem` says."""

    rollout: Rollout
    raw: bytes
    plan: Plan | None
    problem: str = ""

    @property
    def key(self) -> str:
        return f"{self.rollout.app}/{self.rollout.name}"

    @property
    def uid(self) -> str:
        return self.rollout.metadata.uid


class Book:
    """now: seconds since the epoch. promote: sets an app's default."""

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
        self._store = store
        self._bus = bus
        self._now = now
        self._promote = promote
        self._per_app = per_app
        self._outbox = outbox or Outbox(store)
        self._entries: dict[str, dict[str, Entry]] = {}
        self._policies: dict[str, tuple[str, Policy]] = {}
        self._plans: dict[str, Plan] = {}
        self._pace = Pace()
        self.failures = Failures(store, bus)
        self._lock = trio.Lock()
        self._news = trio.Event()
        self._orphans: list[Entry] = []
        self._moved: set[str] = set()
        """Apps of which a device, or what speaks for it, has changed since their rollouts' waves were counted."""
        bus.subscribe(DeviceChanged, lambda e: self._moved.add(e.app))
        bus.subscribe(ActualChanged, lambda e: self._moved.add(e.actual.app))
        bus.subscribe(PolicyChanged, lambda e: self._moved.add(e.app))
        bus.subscribe(AppChanged, self._app_changed)
        bus.subscribe(FirmwareChanged, self._firmware_changed)
        bus.subscribe(DocumentChanged, self._document_changed)
        bus.subscribe(DeviceStateChanged, self._stepped_elsewhere)
        bus.subscribe(Missed, lambda e: self._missed())
        bus.subscribe(Aged, lambda e: self._missed())
        self.tell: Callable[[str], None] = lambda uid: None
        """Have other processes count for its rate that a rollout tells one more device."""
        self._heard: set[str] = set()
        self._all_heard = False
        self._elsewhere = trio.Event()

    def _app_changed(self, event: AppChanged) -> None:
        self._policies.pop(event.app, None)
        if event.deleted and (left := self._entries.pop(event.app, None)):
            self._orphans += left.values()
            self._news.set()

    def _document_changed(self, event: DocumentChanged) -> None:
        """Another process has changed or deleted a rollout."""
        if event.collection == COLLECTION:
            self._heard.add(event.key)
            self._elsewhere.set()

    def _missed(self) -> None:
        self._moved.update(self._entries)
        self._all_heard = True
        self._elsewhere.set()

    def _stepped_elsewhere(self, event: DeviceStateChanged) -> None:
        """A device has gone on at another process: what is counted of its rollouts is read again."""
        self._moved.add(event.app)
        if self._entries.get(event.app):
            self._news.set()

    async def follow(self) -> None:
        """Take up what other processes do to rollouts, until cancelled."""
        while True:
            await self._elsewhere.wait()
            self._elsewhere = trio.Event()
            async with self._lock:
                all_heard, self._all_heard = self._all_heard, False
                heard, self._heard = self._heard, set()
                try:
                    if all_heard:
                        for app in await self._load():
                            self._bus.publish(PolicyChanged(app))
                        all_heard = False
                    while heard:
                        await self._read_again(min(heard))
                        heard.discard(min(heard))
                except BaseException:
                    self._all_heard |= all_heard
                    self._heard |= heard
                    self._elsewhere.set()
                    raise
            self._news.set()

    async def _read_again(self, key: str) -> None:
        raw = await self._store.document(COLLECTION, key)
        app, _, name = key.partition("/")
        known = self._entries.get(app, {}).get(name)
        if raw is None:
            if known is not None:
                self._drop(known)
        elif known is None or known.raw != raw:
            self._remember(key, raw)
        self._policies.pop(app, None)
        self._bus.publish(PolicyChanged(app))

    async def count_again(self) -> None:
        """Take up how many devices of each rollout are under way, at whichever process they were told."""
        for entry in self._all():
            if entry.plan is not None and entry.plan.transfers and entry.rollout.status.state not in FINAL:
                counts = await self.counts(entry.uid)
                self._pace.under_way(entry.uid, sum(c.under_way for c in counts.values()))

    def _firmware_changed(self, event: FirmwareChanged) -> None:
        if (event.deleted or event.firmware.recalled is not None) and self._entries.get(event.firmware.app):
            self._news.set()

    async def _load(self) -> set[str]:
        """Read what is stored, and return the apps of which that is something else than what was known.

        What was known speaks for the devices until all of it is read.
        """
        stored: dict[str, bytes] = {}
        after = ""
        while page := await self._store.documents(COLLECTION, after=after, limit=PAGE):
            after = page[-1][0]
            stored.update(page)
        changed: set[str] = set()
        for entry in self._all():
            if entry.key not in stored:
                changed.add(entry.rollout.app)
                self._drop(entry)
            elif entry.raw == stored[entry.key]:
                del stored[entry.key]
        for key, raw in stored.items():
            changed.add(key.partition("/")[0])
            self._remember(key, raw)
        for entry in self._all():
            if entry.rollout.status.state not in FINAL:
                counts = await self.counts(entry.uid)
                self._pace.under_way(entry.uid, sum(c.under_way for c in counts.values()))
        return changed

    def _drop(self, entry: Entry) -> None:
        """It is deleted: it speaks for nobody any more, and nothing is counted for it."""
        self._entries.get(entry.rollout.app, {}).pop(entry.rollout.name, None)
        self._policies.pop(entry.rollout.app, None)
        self._plans.pop(entry.uid, None)
        self._pace.forget(entry.uid)
        self.failures.forget(entry.uid)

    def _remember(self, key: str, raw: bytes) -> Entry | None:
        """Take a stored rollout into memory. One that cannot be read is named in the log, and speaks for nobody."""
        rollout = read_record("rollouts.record", raw, Rollout, rollout=key)
        if rollout is None:
            return None
        entry = Entry(rollout, raw, None)
        if entry.key != key:
            note("rollouts.record", PeerError(f"the rollout stored as {key} says that it is {entry.key}"), rollout=key)
            return None
        try:
            plan = read_plan_untrusted(rollout.spec)
            if problem := status_problem(plan, rollout.status):
                raise PeerError(problem)
            entry.plan = self._plans[entry.uid] = plan
        except PeerError as error:
            entry.problem = str(error)
        self._entries.setdefault(rollout.app, {})[rollout.name] = entry
        self._policies.pop(rollout.app, None)
        return entry

    def _all(self) -> list[Entry]:
        return [entry for entries in self._entries.values() for entry in entries.values()]

    def _entry(self, app: str, name: str) -> Entry:
        entry = self._entries.get(app, {}).get(name)
        if entry is None:
            raise NotFoundError(f"no rollout {name} in app {app}")
        return entry

    def others(self, app: str) -> dict[str, tuple[Rollout, Plan | None]]:
        return {name: (entry.rollout, entry.plan) for name, entry in self._entries.get(app, {}).items()}

    def all_of(self, app: str) -> list[Rollout]:
        """Return the rollouts of an app, newest first."""
        found = [entry.rollout for entry in self._entries.get(app, {}).values()]
        return sorted(found, key=lambda r: (r.metadata.creation_timestamp, r.name), reverse=True)

    def plan(self, uid: str) -> Plan | None:
        return self._plans.get(uid)

    def get(self, app: str, name: str) -> Rollout:
        """Raises NotFoundError."""
        return self._entry(app, name).rollout

    async def counts(self, uid: str) -> dict[int, WaveCounts]:
        """Return what became of the devices of a rollout, by wave."""
        return read_counts(await self._store.counts(scope_of(uid)), uid)

    async def failed(self, uid: str) -> list[dict[str, Any]]:
        """Return the first devices of a rollout that failed, with what they said, as users see it."""
        return [
            {
                "device": f.device,
                "wave": f.wave + 1,
                "state": f.state,
                "code": f.code,
                "at": time_of(f.at_s),
                "title": f.title,
                "fingerprint": f.fingerprint,
                "text": f.text,
                "deployment": f.deployment,
            }
            for f in await self.failures.of(uid)
        ]

    # Deciding

    def desired(
        self, app: App, device: Device, actual: Actual | None, deployment: Deployment | None, now_s: float
    ) -> Desired:
        """Return what should run on a device. actual: what it says now; deployment: its newest one. Never raises."""
        policy = self._policy(app)
        if policy.common is not None and "firmware" not in device.spec:
            return policy.common
        facts = facts_of(DeviceView(device, actual, deployment))
        found = policy.wanted(device.spec, facts, deployment, now_s)
        if found.other is not None:
            other = self._paced(found.other, actual, deployment, now_s)
            return self._paced(found.alone, actual, deployment, now_s).beside(other)
        return self._paced(found, actual, deployment, now_s)

    def common(self, app: App) -> Desired | None:
        """Return what should run on every device that asks for nothing itself; None: that depends on the device."""
        return self._policy(app).common

    def _paced(self, found: Desired, actual: Actual | None, deployment: Deployment | None, now_s: float) -> Desired:
        """Return what is desired of one kind with what keeps its rollout from telling one more device now."""
        if not found.rollout or found.back or found.held is not None:
            return found
        mine = deployment.in_rollout(found.rollout) if deployment is not None else None
        if mine is not None and (not mine.final or mine.is_between):
            return found
        plan = self._plans.get(found.rollout)
        if plan is None or (actual is not None and actual.runs(found.kind) == found.version):
            return found
        return msgspec.structs.replace(found, held=self._pace.held(found.rollout, plan, now_s))

    def take(self, uid: str, now_s: float) -> Held | None:
        """Take a place in a rollout for a device that it is about to tell, or say why there is none now."""
        plan = self._plans.get(uid)
        held = self._pace.take(uid, plan, now_s) if plan is not None else None
        if plan is not None and plan.rate and held is None:
            self.tell(uid)
        return held

    def told_elsewhere(self, uid: str, number: int) -> None:
        """Another process has taken so many places: they count for the rate of the rollout here, too."""
        if (plan := self._plans.get(uid)) is not None:
            self._pace.elsewhere(uid, plan, number, self._now())

    def give_back(self, uid: str) -> None:
        """End what take() began: the device is counted by now, or was not told."""
        self._pace.give_back(uid)

    def leads(self, uid: str) -> bool:
        """Say whether there is such a rollout: for one that is deleted nothing is counted any more."""
        return uid in self._plans

    def counted(self, difference: dict[str, int]) -> None:
        """Note what was counted in a commit that is done: counter to what was added (dfud.model.counts)."""
        for name, number in difference.items():
            uid, _, rest = name.partition("/")
            if rest.endswith("/under_way"):
                self._pace.moved(uid, number)
        if difference:
            self._news.set()

    def _of(self, app: App) -> list[Entry]:
        """Return the rollouts of this very app, not of one of its name before it."""
        every = self._entries.get(app.name, {}).values()
        return [entry for entry in every if entry.rollout.metadata.annotations.get("app") == app.metadata.uid]

    def _policy(self, app: App) -> Policy:
        version, policy = self._policies.get(app.name, ("", None))
        if policy is None or version != app.metadata.resource_version:
            policy = Policy(app.spec, [entry.rollout for entry in self._of(app)])
            self._policies[app.name] = (app.metadata.resource_version, policy)
        return policy
