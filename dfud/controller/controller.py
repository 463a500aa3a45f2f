"""The controller: hears statuses, decides with `decide()`, stores what changed, tells the bus, asks for packages.

One device's statuses are taken one after the other, and nobody waits within that for anything but the store. What is
remembered of a device is a cache of the store plus the progress within one transfer; losing it loses nothing but that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import trio

from dfud.api import (
    Actual,
    Bus,
    CancelRequested,
    Change,
    Deployment,
    DeploymentChanged,
    Desired,
    DeviceChanged,
    DeviceView,
    Firmware,
    ProgressChanged,
    PutActual,
    PutDeployment,
    RefusedError,
    RetryRequested,
    State,
    Store,
    StoreError,
    UnreadableError,
    forever,
)
from dfud.controller.aiming import barred
from dfud.controller.alike import Alike
from dfud.controller.config import ControllerConfig
from dfud.controller.counting import counted_of, counting
from dfud.controller.decide import Action, Verdict, Why, entry_of
from dfud.controller.deciding import Deciding
from dfud.controller.fetches import Fetches
from dfud.controller.fleet import Fleet
from dfud.controller.images import Images
from dfud.controller.insight import Insight
from dfud.controller.jobs import Jobs
from dfud.controller.keeping import Keeper, Kept, Look, taken
from dfud.controller.likewise import Likewise
from dfud.controller.memory import Hold, Memory, undisputed
from dfud.controller.observe import actual_of, are_twins
from dfud.controller.outbox import Outbox
from dfud.controller.paces import Paces
from dfud.controller.packages import Packages
from dfud.controller.planner import Planner
from dfud.controller.rollouts import Promote, Rollouts
from dfud.controller.sending import Order, command_of, offered, order_of
from dfud.controller.settled import Settling
from dfud.controller.spent import Spent
from dfud.controller.together import Together
from dfud.controller.wishes import cancelled, nothing_to_do, retried
from dfud.model.counts import departed
from dfud.model.deployment import Event
from dfud.model.kinds import APP
from dfud.package.file import PackageFile
from dfud.wire.messages import NO_VERSION, Command, Status, Type

DEPLOYMENTS_MAX = 100  # of a device, among which its rollouts are looked for when it is deleted
LOOKS_MAX = 4  # at one status, while what is wanted goes on changing


Made = tuple[Order, PackageFile | StoreError] | None


class Controller:
    """Owns every deployment, and the rollouts. now: seconds since the epoch; promote: makes a version an app's default."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        packages: Packages,
        config: ControllerConfig,
        now: Callable[[], float],
        promote: Promote | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self._store = store
        self._bus = bus
        self._packages = packages
        self._config = config
        self._now = now
        self._outbox = outbox or Outbox(store)
        self.rollouts = Rollouts(store, bus, now, promote, per_app=config.rollouts_per_app, outbox=self._outbox)
        self._memory = Memory(store, bus, config, self.rollouts.desired, now)
        self.fleet = Fleet(store, bus, self._memory.image, now)
        self.insight = Insight(store, bus, self._memory, self.rollouts, self.fleet, config, now)
        self.planner = Planner(store, bus, self._memory, self.rollouts, packages, config, now)
        self.fetches = Fetches(self._memory, packages, config.progress_s)
        self._jobs = Jobs()
        self._deciding = Deciding(self.rollouts, config)
        self._images = Images(store, config.cache_firmwares)
        self.paces = Paces(config.link_bytes_per_second)
        self._keeper = Keeper(store, bus, config, self._outbox, self.rollouts, self.fleet)
        self.spent = Spent(store, bus, self._keeper.budget, packages.budget, self.rollouts)
        self._settling = Settling(self._memory, config.seen_s)
        likewise = Likewise(self._memory, self._keeper, self.rollouts.common)
        self.together = Together(store, self._memory, self._keeper, self._look, self._settling.look, likewise, now)
        self.take = self.together.take
        bus.subscribe(RetryRequested, self._retry_requested)
        bus.subscribe(CancelRequested, self._cancel_requested)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lead the rollouts, store progress and do what plugins ask for, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.rollouts.run)
            for part in ("fleet", "insight", "planner", "spent"):
                nursery.start_soon(forever, f"controller.{part}", getattr(self, part).run)
            await self._jobs.run(task_status=task_status)

    @property
    def poll_s(self) -> int:
        """How often a device that has nothing to do asks."""
        return self._config.poll_s

    async def desired(self, app: str, device: str) -> tuple[Desired, Firmware | None]:
        """Return what should run on a device, and that firmware if it is published."""
        now_s = self._now()
        async with self._memory.hold(app, device) as hold:
            return await self._memory.wanted(hold, hold.known.actual, now_s)

    async def view(self, app: str, device: str) -> DeviceView | None:
        """Return what is stored of a device, as the store does, and remember it: its status comes next. Raises StoreError."""
        return await self._memory.view(app, device)

    # Statuses

    async def status(
        self, app: str, device: str, status: Status, transport: str, *, patience_s: float = 0.0
    ) -> Command:
        """Take one status and return what the device is to do; when this returns, what it said is stored.

        The answer is true when this returns: whatever changes later is told on the bus after that, so that who parks the
        device without awaiting anything is told. patience_s: how long the device would wait for a package that is being made.
        Raises NotFoundError if app or device is gone, StoreError if nothing could be stored.
        """
        return await undisputed(app, device, partial(self._status, app, device, status, transport, patience_s))

    async def _status(self, app: str, device: str, status: Status, transport: str, patience_s: float) -> Command:
        deadline = trio.current_time() + max(patience_s, 0.5)
        made: Made = None
        for number in range(LOOKS_MAX):
            async with self._memory.hold(app, device) as hold:
                look = await self._look(hold, status, transport, made, again=number > 0)
                if look is None:
                    return Command(Type.WAIT, self._config.busy_poll_s, reason="it has said something newer")
                await self._keep(hold, look.kept)
                changed = hold.changed
            order = look.order
            waits = order is not None and look.package is None and (made is None or made[0] != order)
            if waits and order is not None and trio.current_time() < deadline:
                made = await self._make(order, (app, device), deadline)
                if made is not None:
                    continue
            if not changed:
                return look.command
        return Command(Type.WAIT, self._config.busy_poll_s, reason="what is wanted goes on changing")

    def key_of(self, order: Order) -> str:
        """Return what two orders of the same package have in common."""
        return self._packages.key(order)

    async def make(self, order: Order, device: tuple[str, str]) -> None:
        """Have a package made that what take() gave asks for. Raises StoreError."""
        await self._packages.get(order, device)

    async def _look(
        self,
        hold: Hold,
        status: Status,
        transport: str,
        made: Made = None,
        *,
        again: bool = False,
        alike: Alike | None = None,
    ) -> Look | None:
        """Work out what a status comes to, with nothing stored yet. None: it has said something newer.

        again: what the status says is in its deployment already. alike: what others came to that are looked at with it.
        """
        app, device = hold.key
        now_s = alike.now_s if alike is not None else self._now()
        if status.version == NO_VERSION:
            status = await self._named(app, status)
        said = (
            msgspec.structs.replace(alike.said(app, device, status, transport).actual, device=device)
            if alike is not None
            else actual_of(app, device, status, transport, now_s)
        )
        desired, target = await self._memory.wanted(hold, said, now_s)
        if again and hold.known.status not in (None, status):
            return None
        actual = hold.known.actual if again and hold.known.actual is not None else said
        if not again:
            actual = self._keeper.observed(hold, said, status, now_s)
            actual = self.paces.shown(actual, hold.known.actual, status, hold.known.deployment)
        twins = are_twins(actual.twins, now_s)
        key = alike.key(hold, status, transport, desired, target, twins) if alike is not None else None
        found = alike.find(key) if alike is not None and key is not None else None
        if found is not None and found.place and self._deciding.place(hold, found.place, now_s) is not None:
            found = key = None  # its turn comes later: that is another decision
        if found is not None:
            verdict, order, package, command = found.of(hold, now_s), found.order, found.package, found.command
        else:
            asked = desired, target
            verdict, order, package, command = await self._decided(
                hold, status, desired, target, now_s, made, said, actual, again=again, twins=twins
            )
            if alike is not None and key is not None:
                alike.keep(key, hold, verdict, command, asked=asked, order=order, package=package)
        hold.known.status = status
        older = await self._keeper.older(hold, status, now_s) if not again and status.result is not None else []
        now = alike.now if alike is not None else trio.current_time()
        kept = await self._keeper.of(hold, actual, verdict, now_s, older, now=now)
        resource = self._memory.known_app(app)
        common = self.rollouts.common(resource) if resource is not None else None
        kept.settled = self._settling.of(hold, status, verdict, command, kept, common=common)
        return Look(kept, command, order, package)

    async def _decided(
        self,
        hold: Hold,
        status: Status,
        desired: Desired,
        target: Firmware | None,
        now_s: float,
        made: Made,
        said: Actual,
        actual: Actual,
        *,
        again: bool,
        twins: bool,
    ) -> tuple[Verdict, Order | None, PackageFile | None, Command]:
        """Decide about one device by itself: what it comes to, the package that it is sent, that if it is there, its command."""
        app = hold.key[0]
        verdict, desired = self._deciding.of(hold, status, desired, target, now_s, heard=again, twins=twins)
        if verdict.why is Why.LEFT and verdict.steps and verdict.deployment is not None:
            # What it has just said may decide what becomes of the other kind.
            desired, target = await self._memory.wanted(hold, said, now_s, verdict.deployment)
            verdict, desired = self._deciding.of(hold, status, desired, target, now_s, twins=twins, after=verdict)
        package, order = None, None
        if verdict.action is Action.SEND:
            assert verdict.deployment is not None and target is not None
            seen = status.of_app if target.of_kind == APP else status
            pace = self.paces.of(actual, hold.known.device.spec, (await self._memory.app(app)).spec)
            order = order_of(seen, verdict.deployment, target, await self._base(seen, app), pace)
            found = made[1] if made is not None and made[0] == order else self._packages.ready(order)
            choice = self._packages.choice(order, found) if isinstance(found, PackageFile) else None
            package = taken(verdict, order, found, self._config, now_s, choice)
        return verdict, order, package, command_of(verdict, target, desired, package)

    async def _named(self, app: str, status: Status) -> Status:
        """Return the status of a device that knows no version with the one that its running image was published as."""
        found = await self._base(status, app)
        return msgspec.structs.replace(status, version=found.version) if found is not None else status

    async def _base(self, status: Status, app: str) -> Firmware | None:
        return await self._memory.image(app, status.digest.hex())

    async def _make(
        self, order: Order, device: tuple[str, str], deadline: float
    ) -> tuple[Order, PackageFile | StoreError] | None:
        with trio.move_on_at(deadline):
            try:
                return order, await self._packages.soon(order, device)
            except StoreError as error:
                return order, error
        return None

    async def _keep(self, hold: Hold, kept: Kept) -> None:
        """Store what changed in one commit, then say so. Raises StoreError."""
        if kept.changes:
            with self._keeper.committing():
                await self._store.commit(hold.guarded(kept.changes))
        self._keeper.done(hold, kept)

    # Other dialects

    async def report(
        self, actual: Actual, translate: Callable[[Deployment | None, Firmware | None], Status], *, pinned: str = ""
    ) -> bool:
        """Take what a device of another dialect said, and return whether the wanted image may be sent to it now.

        translate: makes a status of it, given the device's deployment and the firmware it is brought to. pinned: the version
        that it is writing: that stays the target until it is written if another version is wanted meanwhile, but not if none
        is, or the one that runs. Progress is in bytes of the image; nothing is packed. Raises StoreError where the image cannot be
        read just now: such a device drops what it holds when it is told to wait, and keeps it when it gets no answer.
        """
        return await undisputed(actual.app, actual.device, partial(self._report, actual, translate, pinned))

    async def _report(
        self, actual: Actual, translate: Callable[[Deployment | None, Firmware | None], Status], pinned: str
    ) -> bool:
        async with self._memory.hold(actual.app, actual.device) as hold:
            now_s = self._now()
            desired, target = await self._memory.wanted(hold, actual, now_s)
            if target is not None and pinned and target.version not in (pinned, actual.version):
                found = await self._memory.firmware(actual.app, pinned)
                if found is not None:
                    spec = (await self._memory.app(actual.app)).spec
                    desired, target = barred(Desired(pinned, origin=desired.origin), spec, found), found
            status = translate(hold.known.deployment, target)
            said = msgspec.structs.replace(actual, sha256=status.digest.hex(), seen_s=now_s)
            said = self._keeper.observed(hold, said, status, now_s)
            verdict, _ = self._deciding.of(hold, status, desired, target, now_s, twins=are_twins(said.twins, now_s))
            send = verdict.action is Action.SEND and verdict.deployment is not None and target is not None
            fault: StoreError | None = None
            if send and target is not None and verdict.deployment is not None:
                try:
                    problem = await self._images.problem(target)
                except StoreError as error:
                    problem, fault = str(error)[:500] or "its image cannot be read", error
                if problem:
                    send = False
                    verdict.deployment = msgspec.structs.replace(verdict.deployment, problem=problem)
                else:
                    offset = status.progress.next if status.progress is not None and target.version == pinned else None
                    offered(verdict, target, offset, now_s)
            hold.known.status = status
            await self._keep(hold, await self._keeper.of(hold, said, verdict, now_s, now=trio.current_time()))
        if fault is not None:
            raise fault
        return send

    async def image(self, firmware: Firmware, offset: int, size: int) -> bytes:
        """Return a piece of an image. Raises StoreError if it is missing, damaged or unreadable."""
        return await self._images.read(firmware, offset, size)

    async def published(self, app: str, version: str) -> Firmware | None:
        """Return a firmware by its version."""
        return await self._memory.firmware(app, version)

    # Chunks

    async def load_package_of(self, app: str, device: str, asked: str = "") -> str:
        """As Parts.package_of, asking the store if need be; "" if there is none. Raises NotFoundError, StoreError."""
        self._memory.doubt(app, device, asked)
        async with self._memory.hold(app, device) as hold:
            deployment = hold.known.deployment
            if deployment is None:
                return ""
            firmware = await self._memory.firmware(app, deployment.version)
            return "" if firmware is not None and firmware.recalled is not None else deployment.package

    async def load_chunks(self, package: str) -> PackageFile | None:
        return await self._packages.load(package)

    def fetched(self, app: str, device: str, package: str, number: int) -> None:
        """Note that a device asked for a chunk, so that everything before it is there. Never blocks."""
        known = self._memory.peek(app, device)
        deployment = known.deployment if known is not None else None
        if known is None or deployment is None or deployment.package != package:
            return
        if deployment.state in (State.PENDING, State.NOTIFIED):
            self._jobs.soon(("progress", app, device), lambda: self._store_progress(app, device))
        elif deployment.state is State.FETCHING:
            now = trio.current_time()
            if number == known.fetched and now - known.progress_at < self._config.progress_s:
                return  # the next block of a chunk that is counted
            known.deployment = msgspec.structs.replace(
                deployment,
                chunks_done=max(number, deployment.chunks_done),
                # A chunk that comes in blocks, or comes again because it was lost, is one chunk.
                served=deployment.served + (number != known.fetched),
                updated_s=self._now(),
            ).marked(self._now())
            known.fetched = number
            if now - known.progress_at >= self._config.progress_s:
                known.progress_at = now
                self._jobs.soon(("progress", app, device), lambda: self._store_progress(app, device))
                self._bus.publish(ProgressChanged(known.deployment))

    async def _store_progress(self, app: str, device: str) -> None:
        async with self._memory.hold(app, device) as hold:
            deployment = hold.known.deployment
            if deployment is None or deployment.final:
                return
            entry = None
            if deployment.state in (State.PENDING, State.NOTIFIED):
                deployment = deployment.step(Event.CHUNK, self._now(), repeats=0, not_before_s=0.0)
                entry = entry_of(deployment, Event.CHUNK)
            tallied = await self._tallied(hold, deployment) if entry is not None else []
            told, waiting = self._outbox.put_steps([(deployment, entry)] if entry is not None else [])
            changes = [PutDeployment(deployment, entry), *waiting, *tallied]
            await self._store.commit(hold.guarded(changes))  # a conflict is another process' newer truth
            hold.stored(changes)
            hold.known.deployment = deployment
            if entry is not None:
                self._bus.publish(DeploymentChanged(deployment, entry, *told))

    # What users ask for

    def _retry_requested(self, event: RetryRequested) -> None:
        key = ("retry", event.app, event.device, event.by)
        self._jobs.soon(key, lambda: self.retry(event.app, event.device, event.by))

    def _cancel_requested(self, event: CancelRequested) -> None:
        key = ("cancel", event.app, event.device, event.by)
        self._jobs.soon(key, lambda: self.cancel(event.app, event.device, event.by))

    async def retry(self, app: str, device: str, by: str, also: Sequence[Change] = ()) -> None:
        """Let a device try again what it left, or what failed, or what waits for its next attempt. Said of an update under way,
        its end will not block the next one.

        `also` is committed with it; alone where nothing holds it back from what it should run already. Raises RefusedError where
        there is nothing to try.
        """
        await undisputed(app, device, partial(self._retry, app, device, by, also))

    async def _retry(self, app: str, device: str, by: str, also: Sequence[Change]) -> None:
        async with self._memory.hold(app, device) as hold:
            after = retried(hold.known.deployment, self._now())
            if after is None:
                desired, target = await self._memory.wanted(hold, hold.known.actual, self._now())
                if desired.version and target is None:
                    raise RefusedError(f"{desired.problem}; there is nothing to try again")
                if nothing := nothing_to_do(device, target, hold.known.actual):
                    raise RefusedError(f"{nothing}: there is nothing to try again")
                if also:
                    await self._store.commit(also)
                return
            await self._change(hold, after, f"retry by {by}", also)
        self._bus.publish(DeviceChanged(app, device, access=False))

    async def cancel(self, app: str, device: str, by: str, also: Sequence[Change] = ()) -> None:
        """End a device's deployment, or the one that it would begin with its next status; the same image is not sent again
        until somebody retries or asks for another.

        `also` is committed with it; alone where the image is not sent anyway until somebody says retry. Raises RefusedError where
        there is nothing to end, and where it cannot be done: on trial the device decides, and what is not published cannot be
        named.
        """
        await undisputed(app, device, partial(self._cancel, app, device, by, also))

    async def _cancel(self, app: str, device: str, by: str, also: Sequence[Change]) -> None:
        async with self._memory.hold(app, device) as hold:
            desired, target = await self._memory.wanted(hold, hold.known.actual, self._now())
            if desired.version and target is None:
                raise RefusedError(f"{desired.problem}; to cancel, change what device {device} should run")
            known = hold.known
            after = cancelled(app, device, known.deployment, known.actual, target, by, self._now())
            if after is None:
                if nothing := nothing_to_do(device, target, known.actual):
                    raise RefusedError(f"{nothing}: there is nothing to cancel")
                if also:
                    await self._store.commit(also)
                return
            await self._change(hold, after, Event.CANCEL, also)
        self._bus.publish(DeviceChanged(app, device, access=False))

    @asynccontextmanager
    async def leaving(self, app: str, device: str) -> AsyncIterator[Sequence[Change]]:
        """Hold a device that is deleted; yield what counts it out of its rollouts, to be committed with that."""
        async with self._memory.hold(app, device) as hold:
            counted: dict[str, int] = {}
            with suppress(UnreadableError):
                counted = departed(await self._store.deployments(app, device, limit=DEPLOYMENTS_MAX))
            yield [*counting(counted), *self.fleet.left(hold.known.actual)]
        self.rollouts.counted(counted)

    async def _change(self, hold: Hold, deployment: Deployment, event: str, also: Sequence[Change] = ()) -> None:
        entry = entry_of(deployment, event)
        counted = await counted_of(self._store, self.rollouts.leads, hold.known.deployment, [deployment])
        told, waiting = self._outbox.put_steps([(deployment, entry)])
        more = [*await self._tallied(hold, deployment), *waiting]
        changes: list[Change] = [PutDeployment(deployment, entry), *counting(counted), *more, *also]
        await self._store.commit(hold.guarded(changes))
        hold.stored(changes)
        hold.known.deployment = deployment
        self.rollouts.counted(counted)
        self._bus.publish(DeploymentChanged(deployment, entry, *told))

    async def _tallied(self, hold: Hold, deployment: Deployment) -> list[Change]:
        """Return the changes that count a device anew whose deployment is going to be this one."""
        known = hold.known
        if known.actual is None:
            return []
        actual, tallied = await self.fleet.noted(known.actual, deployment)
        known.actual = actual
        return [PutActual(actual), *tallied]
