"""Brings one device and its target in line, from whatever state both are in: so replaying it does no harm.

It starts from the records (what is wanted, what the device said, its newest deployment and history) and the Link (what both
sides agreed on, what hawkBit has been told), and ends with one commit of the new Link. A crash anywhere before means: again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import trio

from dfud.api import (
    Bus,
    CancelRequested,
    ConflictError,
    Deployment,
    DeploymentChanged,
    Device,
    DeviceView,
    HistoryEntry,
    NotFoundError,
    RetryRequested,
    State,
    Store,
)
from dfud_hawkbit import feedback, records
from dfud_hawkbit.answers import Offer
from dfud_hawkbit.client import Client, Refused
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.desire import attributes_of, digest_of, wish_of, with_mode
from dfud_hawkbit.firmware import FirmwareSync, Unusable
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import FirmwareSet, Link

log = logging.getLogger("dfud.hawkbit")
ROUNDS_MAX = 8  # looks at one device in a row: each ends a cancelled action or finds the one to work on
CANCEL_S = 5.0  # how long the controller may take to cancel
BEFORE_BOOT = frozenset({State.PENDING, State.NOTIFIED, State.FETCHING})


class Registry(Protocol):
    """dfud's registry, as far as it is needed here."""

    async def update_device(self, app: str, name: str, given: Device, by: str) -> None: ...


class Case:
    """One device under work. `link` changes as hawkBit is told; `again_s`: look at it again then."""

    def __init__(self, key: str, generation: int, view: DeviceView | None, link: Link) -> None:
        self.key = key
        self.generation = generation
        self.app, self.device = records.split(key)
        self.target = target_id(self.app, self.device)
        self.view = view
        self.link = link
        self.cancelled = ""
        self.again_s = 0.0

    def set(self, **changes: Any) -> None:
        self.link = msgspec.structs.replace(self.link, **changes)

    def later(self, at_s: float) -> None:
        self.again_s = min(self.again_s or at_s, at_s)


class DeviceSync:
    """look: devices whose action must be read from hawkBit. pulling: links to commit together with a changed device."""

    def __init__(
        self, store: Store, client: Client, firmware: FirmwareSync, config: HawkbitConfig, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._client = client
        self._firmware = firmware
        self._config = config
        self._now = now
        self.bus = Bus()
        self.registry: Registry | None = None
        self.look: set[str] = set()
        self.pulling: dict[str, Link] = {}
        self.others: Callable[[str, int], bool] = lambda target, action: False

    async def run(self, case: Case) -> None:
        """Do everything for one device that exists and is registered. Raises Away; what is refused is the link's problem."""
        for _ in range(ROUNDS_MAX):
            if case.key not in self.look or self.registry is None:
                break
            self.look.discard(case.key)
            try:
                await self._look(case)
            except BaseException:
                self.look.add(case.key)
                raise
            await self._write_back(case)
        else:
            case.later(self._now() + self._config.poll_s)
        if case.key not in self.look:
            await self._write_back(case)
        await self._tell(case)

    # From hawkBit

    async def _look(self, case: Case) -> None:
        offer = await self._client.offer(case.target)
        if offer.kind == "cancel":
            await self._cancel(case, offer.action)
        elif offer.kind in ("update", "confirm"):
            await self._order(case, offer)
        else:
            await self._nothing(case)

    async def _fresh(self, case: Case) -> DeviceView:
        """Read the device again. Raises NotFoundError if it was deleted meanwhile."""
        view = await self._store.device(case.app, case.device)
        if view is None:
            raise NotFoundError(f"no device {case.device}")
        case.view = view
        return view

    async def _nothing(self, case: Case) -> None:
        """hawkBit wants nothing: an action that was open was ended there, or a cancelled one leaves no wish."""
        link, view = case.link, await self._fresh(case)
        ended = link.version if link.action else case.cancelled
        if link.action:
            current = self._bound(case, view)
            case.set(action=0, kind="")
            if current is not None and current.final and current.state is not State.CANCELLED:
                return  # hawkBit heard the end of it, and dfud was killed before it noted that
            if current is not None and not await self._stop(case, current, by="hawkBit"):
                return
        if ended and wish_of(view.device.spec).version == ended:
            await self._pull(case, view, None, "")

    async def _cancel(self, case: Case, action: int) -> None:
        """Accept a cancellation unless the device runs the image, or may be about to; then refuse it."""
        view = await self._fresh(case)
        current = self._bound(case, view) if action == case.link.action else None
        if current is not None and not await self._stop(case, current, by="hawkBit"):
            return await self._refuse_cancel(case, action, current)
        told = feedback.body("closed", "success", ["cancelled"])
        await self._client.feedback(case.target, "cancelAction", action, told)
        if action == case.link.action:
            case.cancelled = case.link.version
            case.set(action=0, kind="")
        self.look.add(case.key)

    async def _refuse_cancel(self, case: Case, action: int, current: Deployment) -> None:
        view = await self._fresh(case)
        newest = view.deployment or current
        if not newest.final and newest.state in BEFORE_BOOT:
            case.later(self._now() + 1.0)  # the controller has not come to it yet
            self.look.add(case.key)
            raise Postponed
        why = f"the device is past the point of return: {newest.state}"
        await self._client.feedback(case.target, "cancelAction", action, feedback.body("rejected", "none", [why]))
        self.look.add(case.key)

    async def _stop(self, case: Case, current: Deployment, by: str) -> bool:
        """Have an open deployment cancelled where that is safe; return whether it is over without having run."""
        if current.final:
            return current.state is State.CANCELLED
        held_back = current.state is State.WRITTEN and bool(case.link.mode)
        if current.state not in BEFORE_BOOT and not held_back:
            return False
        over = trio.Event()

        def heard(event: DeploymentChanged) -> None:
            if event.deployment.id == current.id and event.deployment.final:
                over.set()

        end = self.bus.subscribe(DeploymentChanged, heard)
        try:
            self.bus.publish(CancelRequested(case.app, case.device, by))
            with trio.move_on_after(CANCEL_S):
                await over.wait()
        finally:
            end()
        found = await self._store.deployment(current.id)
        return found is None or found.state is State.CANCELLED

    async def _order(self, case: Case, offer: Offer) -> None:
        """Take over an action: its firmware, and what it says of when."""
        order = await self._client.order(case.target, offer)
        if order is None:
            self.look.add(case.key)
            return case.later(self._now() + self._config.poll_s)
        try:
            firmware = await self._firmware.adopt(case.app, case.target, offer.action, order)
        except (Unusable, Refused) as error:
            await self._unusable(case, offer, str(error))
            return
        view = await self._fresh(case)
        mode = ""
        if offer.kind == "confirm":
            mode = "confirm"
        elif order.update == "skip":
            mode = "window" if order.maintenance_window == "unavailable" else "download"
        before = case.link
        case.set(action=offer.action, kind=offer.kind, version=firmware.version, sha256=firmware.sha256, problem="")
        if offer.action != before.action:
            case.set(deployment="", state="", sent=0, step=0, full=False, bound_s=self._now(), said_s=self._now())
            newest = view.deployment
            if newest is not None and newest.sha256 == firmware.sha256:
                if not newest.final:
                    case.set(deployment=newest.id, said_s=newest.created_s - 1)
                elif newest.blocks:
                    self.bus.publish(RetryRequested(case.app, case.device, "hawkBit"))
        await self._want(case, view, firmware.version, mode)

    async def _want(self, case: Case, view: DeviceView, version: str, mode: str) -> None:
        own = wish_of(view.device.spec)
        if own.version != case.link.wish and own.version != version:
            # A user of dfud changed it since both sides agreed: that goes to hawkBit before anything is taken from there.
            self.look.add(case.key)
            raise Postponed
        if own.version == version and mode == case.link.mode:
            case.set(wish=version)
            return
        app = await self._store.app(case.app)
        if not own.there and not mode and app is not None and wish_of(app.spec).version == version:
            return  # the app's default asks for the same: it needs no wish of the device's own
        await self._pull(case, view, version, mode)

    async def _pull(self, case: Case, view: DeviceView, version: str | None, mode: str) -> None:
        """Change what the device should run to what hawkBit says, in one commit with the link."""
        if self.registry is None:
            return
        case.set(wish=version or "", mode=mode)
        self.pulling[case.key] = case.link
        device = view.device
        try:
            spec = with_mode(device.spec, version, mode)
            await self.registry.update_device(case.app, case.device, Device(device.metadata, spec), "hawkbit")
        except (ConflictError, NotFoundError):
            # A user was faster: his wish is looked at first, and this one again.
            self.look.add(case.key)
            raise Postponed from None
        finally:
            del self.pulling[case.key]
        await self._fresh(case)

    async def _unusable(self, case: Case, offer: Offer, why: str) -> None:
        log.warning("an action of hawkBit's cannot be rolled out", extra={"target": case.target, "why": why})
        case.set(problem=why)
        if offer.kind == "update":
            told = feedback.body("closed", "failure", [why])
            await self._client.feedback(case.target, "deploymentBase", offer.action, told)
            case.set(action=0, kind="")
            if self.others(case.target, offer.action):
                self.look.add(case.key)

    # To hawkBit

    def _bound(self, case: Case, view: DeviceView) -> Deployment | None:
        """Return the deployment that stands for the link's action."""
        link, newest = case.link, view.deployment
        if newest is None or not link.action:
            return None
        if newest.id == link.deployment:
            return newest
        fits = newest.sha256 == link.sha256 and (not newest.final or newest.created_s > link.bound_s)
        return newest if fits and not link.deployment else None

    async def _write_back(self, case: Case) -> None:
        """Tell what became of the open action."""
        link = case.link
        if link.kind != "update" or not link.action:
            return
        view = await self._fresh(case)
        current = self._bound(case, view)
        if current is None:
            actual = view.actual
            if actual is not None and actual.sha256 == link.sha256 and not actual.trial:
                await self._close(case, feedback.body("closed", "success", [f"it runs {link.version} already"]), True)
            return
        case.set(deployment=current.id)
        if current.state is State.CANCELLED:
            return await self._withdraw_cancelled(case, view)
        news = [e for e in await self._news(case, current) if e.at_s > link.said_s]
        told = feedback.of_deployment(current, news)
        if told is None:
            return
        if current.final:
            if news:
                case.set(said_s=news[-1].at_s)
            return await self._close(case, told, current.state is State.DONE)
        await self._intermediate(case, current, news, told)

    async def _news(self, case: Case, current: Deployment) -> list[HistoryEntry]:
        found = await self._store.history(case.app, case.device)
        return [entry for entry in reversed(found) if entry.deployment == current.id]

    async def _intermediate(self, case: Case, current: Deployment, news: list[HistoryEntry], told: Any) -> None:
        link, now_s, step = case.link, self._now(), feedback.step(current)
        if link.full or link.sent >= self._config.feedback_max or (not news and step <= link.step):
            return
        ends = current.state is State.WRITTEN and link.mode == "download"
        if not ends and link.sent and now_s - link.told_s < self._config.feedback_s:
            return case.later(link.told_s + self._config.feedback_s)
        try:
            open_still = await self._client.feedback(case.target, "deploymentBase", link.action, told)
        except Refused as refused:
            if not refused.quota:
                raise
            # hawkBit takes no more of these for this action; the last one passes.
            return case.set(full=True, problem=str(refused))
        case.set(sent=link.sent + 1, step=step, told_s=now_s, state=str(current.state))
        if news:
            case.set(said_s=news[-1].at_s)
        if not open_still or ends:
            if ends:
                case.set(action=0, kind="")
            self.look.add(case.key)
            case.later(now_s)

    async def _close(self, case: Case, told: Any, success: bool) -> None:
        """Send the last feedback. An action that is over already is just that."""
        action, version = case.link.action, case.link.version
        try:
            await self._client.feedback(case.target, "deploymentBase", action, told)
        except Refused as refused:
            if not refused.quota:
                raise
            told["status"]["details"] = told["status"]["details"][:1]
            await self._client.feedback(case.target, "deploymentBase", action, told)
        case.set(action=0, kind="", problem="")
        if success:
            case.set(installed=version)
        if self.others(case.target, action):
            self.look.add(case.key)
            case.later(self._now())

    async def _withdraw_cancelled(self, case: Case, view: DeviceView) -> None:
        """A user of dfud cancelled: cancel the action too, and take part in that as its device."""
        await self.cancel_action(case.target, case.link.action)
        self.look.add(case.key)
        case.later(self._now())

    async def cancel_action(self, target: str, action: int) -> None:
        """Ask hawkBit to cancel an action; one that is being cancelled, or is over, is left as it is."""
        try:
            await self._client.mgmt("cancel", "DELETE", f"/targets/{target}/actions/{action}")
        except Refused as refused:
            if refused.status not in (404, 405, 410):
                raise

    async def _tell(self, case: Case) -> None:
        """Tell what runs without an action, and what the device says of itself."""
        view, link, now_s = await self._fresh(case), case.link, self._now()
        actual = view.actual
        if actual is not None and not actual.trial and not link.action and case.key not in self.look:
            running = await self._store.firmware_by_digest(case.app, actual.sha256)
            if running is not None and running.version != link.installed:
                key = records.firmware_key(case.app, running.version)
                known = await records.get(self._store, records.SETS, key, FirmwareSet)
                if known is not None and known.set_id:
                    await self._client.installed(case.target, known.name, known.set_version)
                    case.set(installed=running.version)
        said = attributes_of(view)
        digest = digest_of(said)
        if digest != link.attributes and (actual is not None or view.device.metadata.labels):
            due_s = link.attributes_s + self._config.attributes_s
            if link.attributes and due_s > now_s:
                case.later(due_s)
            else:
                await self._client.attributes(case.target, said)
                case.set(attributes=digest, attributes_s=now_s)


class Postponed(Exception):
    """Nothing is wrong; this device goes on when it is looked at again."""
