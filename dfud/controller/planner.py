"""Forecasts for users, and the packages that are made ahead: for a rollout that is made, scheduled or planned, and for a version
that is published, or wanted of an app's devices.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import trio

from dfud.api import (
    App,
    AppChanged,
    BugError,
    Bus,
    ConflictError,
    DeviceView,
    DfudError,
    FirmwareChanged,
    NotFoundError,
    PeerError,
    RefusedError,
    Rollout,
    RolloutChanged,
    Store,
    contained,
)
from dfud.controller.ahead import Ahead
from dfud.controller.config import ControllerConfig
from dfud.controller.forecast import Forecast, Load, Reader, estimate, time_json
from dfud.controller.memory import Memory
from dfud.controller.packages import Packages
from dfud.controller.rollout_rules import judge
from dfud.controller.rollouts import Rollouts
from dfud.model.desired import Desired, desired_of
from dfud.model.rollout import Plan, status_problem
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import FINAL

DAY_S = 86400.0
SILENT_DAYS = 30
PREPARED_MAX = 32  # packages of one rollout that are made ahead, those for the most devices first
BASES_MAX = 100  # that are shown one by one
PLANS_AT_ONCE = 2
SAMPLE_WANTED = 1000
LATER_S = 5.0  # devices that are told of it at once go first
WANTED_MAX = 1000  # versions that packages are still to be made of; those beyond are made when a device asks
SAMPLE = 5000  # devices that are looked at to know which packages a rollout needs


Progress = Callable[[int], None]


class PlanJob:
    """A forecast that is being made, for somebody who looks at it now and then. Cancel `scope` when nobody does any longer."""

    def __init__(self) -> None:
        self.read = 0
        self.done = trio.Event()
        self.result: dict[str, Any] = {}
        self.error = ""
        self.scope = trio.CancelScope()

    def progress(self, number: int) -> None:
        self.read = number


class Planner:
    """now: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        memory: Memory,
        rollouts: Rollouts,
        packages: Packages,
        config: ControllerConfig,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._memory = memory
        self._rollouts = rollouts
        self._packages = packages
        self._config = config
        self._now = now
        self._ahead = Ahead(packages)
        self._reader = Reader(
            store,
            config,
            now,
            aim=memory.aim,
            speaks=self._speaks,
            priority=lambda uid: plan.priority if (plan := rollouts.plan(uid)) is not None else None,
            image=memory.image,
        )
        self._turns = trio.CapacityLimiter(PLANS_AT_ONCE)
        self._todo: dict[str, Rollout] = {}
        self._seen: set[str] = set()
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._defaults: dict[str, str] = {}  # what an app's devices should run, as far as it was looked at
        # (app, version) of what was published, or became an app's default.
        self._wanted: dict[tuple[str, str], None] = {}
        self._wished = trio.Event()
        bus.subscribe(RolloutChanged, self._changed)
        bus.subscribe(FirmwareChanged, self._published)
        bus.subscribe(AppChanged, self._app_changed)

    def _speaks(self, app: App, view: DeviceView) -> Desired:
        return self._rollouts.desired(app, view.device, view.actual, view.deployment, self._now())

    def _changed(self, event: RolloutChanged) -> None:
        uid = event.rollout.metadata.uid
        if event.deleted or event.rollout.status.state in FINAL:
            self._seen.discard(uid)
            self._todo.pop(uid, None)
        elif uid not in self._seen:
            self._seen = {uid, *filter(self._rollouts.leads, self._seen)}  # those that others deleted are not told of
            self._todo[uid] = event.rollout
            self._news.set()

    def _published(self, event: FirmwareChanged) -> None:
        if not event.deleted and event.firmware.recalled is None:
            self._want(event.firmware.app, event.firmware.version)

    def _app_changed(self, event: AppChanged) -> None:
        if not event.deleted:
            self._want(event.app, "")

    def _want(self, app: str, version: str) -> None:
        if len(self._wanted) < WANTED_MAX:
            self._wanted[app, version] = None
            self._wished.set()

    async def run(self) -> None:
        """Make packages for rollouts that were made, and for versions that were published or are wanted, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._ahead.run)
            nursery.start_soon(self._prepare_wanted)
            while True:
                self._news = trio.Event()
                while self._todo:
                    _, rollout = self._todo.popitem()
                    with contained("rollouts.ahead", rollout=f"{rollout.app}/{rollout.name}"):
                        await self._prepare(rollout)
                await self._news.wait()

    async def _prepare(self, rollout: Rollout) -> None:
        plan, app = self._rollouts.plan(rollout.metadata.uid), await self._store.app(rollout.app)
        if plan is None or app is None:
            return
        async with self._turns:
            found = await self._read(app, plan, rollout, SILENT_DAYS, most=SAMPLE)
        self._make(found)

    async def _prepare_wanted(self) -> None:
        while True:
            self._wished = trio.Event()
            while self._wanted:
                await trio.sleep(LATER_S)
                (app, version), _ = self._wanted.popitem()
                with contained("packages.wanted", app=app):
                    await self._prepare_version(app, version)
            await self._wished.wait()

    async def _prepare_version(self, app_name: str, version: str) -> None:
        """Have packages made of a version, "": the app's default, for what its devices run now."""
        try:
            app = await self._memory.app(app_name)
        except NotFoundError:
            return
        if not version:
            version = desired_of(app.spec, {}).version
            if not version or self._defaults.get(app_name) == version:
                return  # an app changes for many reasons
            if len(self._defaults) < WANTED_MAX:
                self._defaults[app_name] = version
        with suppress(PeerError):  # a version that no rollout could name
            plan = read_plan_untrusted({"firmware": version})
            async with self._turns:
                self._make(await self._read(app, plan, None, SILENT_DAYS, most=SAMPLE_WANTED))

    def _make(self, found: Forecast) -> None:
        loads = sorted(found.loads.values(), key=lambda load: -load.devices)[:PREPARED_MAX]
        self._ahead.add(load.order for load in loads)

    async def _read(
        self,
        app: App,
        plan: Plan,
        rollout: Rollout | None,
        silent_days: float,
        progress: Callable[[int], None] = lambda number: None,
        most: int = 0,
    ) -> Forecast:
        status = rollout.status if rollout is not None else None
        return await self._reader.read(
            app,
            plan,
            uid=rollout.metadata.uid if rollout is not None else "",
            shares=tuple(int(s) for s in status.shares) if status is not None else (),
            started_s=status.started_s if status is not None else 0.0,
            retries=status.retries if status is not None else 0,
            silent_s=silent_days * DAY_S,
            progress=progress,
            most=most,
        )

    # What users ask

    def begin(self, work: Callable[[Progress], Awaitable[dict[str, Any]]]) -> PlanJob:
        """Start a forecast; look at the job for how far it is. Raises BugError before run()."""
        if self._nursery is None:
            raise BugError("a forecast is asked for before the planner runs")
        job = PlanJob()
        self._nursery.start_soon(self._work, job, work)
        return job

    async def _work(self, job: PlanJob, work: Callable[[Progress], Awaitable[dict[str, Any]]]) -> None:
        job.error = "the forecast was not finished, see the log"
        try:
            with job.scope, contained("rollouts.plan"):
                try:
                    job.result = await work(job.progress)
                    job.error = ""
                except DfudError as error:
                    job.error = str(error)
        finally:
            job.done.set()

    async def size(self, app: str, spec: dict[str, Any]) -> int:
        """Return about how many devices a forecast reads. Raises PeerError."""
        plan = read_plan_untrusted(spec)
        return len(plan.whom.devices) or await self._store.count(app, plan.whom.selector)

    async def plan(
        self,
        app_name: str,
        spec: dict[str, Any],
        *,
        name: str = "",
        silent_days: float = SILENT_DAYS,
        prepare: bool = True,
        progress: Callable[[int], None] = lambda number: None,
    ) -> dict[str, Any]:
        """Forecast a rollout with this spec. name: of one that is made already, "" for one that is not.

        prepare: also make its packages, so that what they weigh is known the next time. Raises PeerError that names the field,
        NotFoundError, StoreError.
        """
        plan = read_plan_untrusted(spec)
        app = await self._store.app(app_name)
        if app is None:
            raise NotFoundError(f"no app {app_name}")
        rollout = self._rollouts.get(app_name, name) if name else None
        if rollout is not None and (problem := status_problem(plan, rollout.status)):
            raise RefusedError(f"rollout {name} cannot be led: {problem}")
        problems = [] if rollout is not None else await self._problems(app, plan)
        async with self._turns:
            found = await self._read(app, plan, rollout, silent_days, progress)
        if prepare:
            self._make(found)
        named = {"firmware": plan.version} | ({"app": plan.app} if plan.app else {})
        return {**named, "problems": problems, **await self._shown(plan, found)}

    async def _problems(self, app: App, plan: Plan) -> list[str]:
        """Return why the rollout would not be taken as it is. Raises PeerError for what names a field."""
        try:
            await judge(self._store, app, "", plan, self._rollouts.others(app.name), 1 << 30, self._now())
        except (ConflictError, RefusedError) as error:
            return [str(error)]
        return []

    async def _shown(self, plan: Plan, found: Forecast) -> dict[str, Any]:
        codes = dict(sorted(found.codes.items(), key=lambda pair: -pair[1].count))
        later = sum(group.count for group in codes.values() if group.later)
        return {
            "devices": {
                "matching": found.matching,
                "told": found.told,
                "inSync": found.in_sync,
                "refused": sum(group.count for group in codes.values()) - later,
                "later": later,
                "severalSteps": found.steps,
                "unknownBase": found.unknown_base,
            },
            "running": [
                {"version": version, "hardware": hardware, "devices": number}
                for (version, hardware), number in found.running.most_common()
            ],
            "codes": {code: msgspec.to_builtins(group) for code, group in codes.items()},
            "bytes": await self._bytes(found),
            "time": time_json(plan, found, self._now(), float(self._config.poll_s)),
        }

    async def _bytes(self, found: Forecast) -> dict[str, Any]:
        """Return what goes over the air, by what the devices run: from packages that are made, else an estimate."""
        shown: list[dict[str, Any]] = []
        total, guessed, making = 0, 0, 0
        for load in sorted(found.loads.values(), key=lambda load: -load.devices):
            one = await self._one(load)
            total += one["bytes"]
            guessed += one["bytes"] if one["estimate"] else 0
            making += one["estimate"] and self._ahead.is_waiting(load.order)
            if len(shown) < BASES_MAX:
                shown.append(one)
        return {
            "total": total,
            "estimated": guessed,
            "estimate": bool(guessed or found.more_loads),
            "preparing": making,
            "packages": len(found.loads),
            "uncounted": found.more_loads,
            "bases": shown,
        }

    async def _one(self, load: Load) -> dict[str, Any]:
        order = load.order
        made = await self._packages.find(order)
        each = made.total_bytes if made is not None else estimate(order)
        out: dict[str, Any] = {
            "from": order.base.version if order.base is not None else "",
            "to": order.target.version,
            "hardware": order.target.hardware,
            "devices": load.devices,
            "package": each,
            "bytes": each * load.devices,
            "estimate": made is None,
        }
        if made is None and (problem := self._ahead.problem(order)):
            out["problem"] = problem
        elif made is None:
            out["preparing"] = self._ahead.is_waiting(order)
        return out
