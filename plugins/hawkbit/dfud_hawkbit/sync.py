"""Brings one device and its target in line, from whatever state both are in: so replaying it does no harm.

It starts from the records (what is wanted, what the device said, its newest deployment and history) and the Link (what both
sides agreed on, what hawkBit has been told), and ends with one commit of the new Link. A crash anywhere before means: again.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import trio

from dfud.api import (
    Bus,
    CancelRequested,
    ConflictError,
    Deployment,
    DeploymentChanged,
    Device,
    DeviceView,
    NotFoundError,
    RetryRequested,
    State,
)
from dfud_hawkbit import feedback, records
from dfud_hawkbit.answers import Offer
from dfud_hawkbit.case import Case, Postponed
from dfud_hawkbit.desire import wish_of, with_mode
from dfud_hawkbit.firmware import FirmwareSync, Unusable
from dfud_hawkbit.http import Refused
from dfud_hawkbit.known import Known
from dfud_hawkbit.records import Link
from dfud_hawkbit.shared import Shared
from dfud_hawkbit.writeback import WriteBack, first_of, newest_of

log = logging.getLogger("dfud.hawkbit")
ROUNDS_MAX = 8  # looks at one device in a row: each ends a cancelled action or finds the one to work on
CANCEL_S = 5.0  # how long the controller may take to cancel
BEFORE_BOOT = frozenset({State.PENDING, State.NOTIFIED, State.FETCHING})


class Registry(Protocol):
    """dfud's registry, as far as it is needed here."""

    async def update_device(self, app: str, name: str, given: Device, by: str) -> None: ...


class DeviceSync:
    """look: devices whose action must be read from hawkBit. pulling: links to commit together with a changed device."""

    def __init__(
        self,
        shared: Shared,
        firmware: FirmwareSync,
        write_back: WriteBack,
        known: Known,
    ) -> None:
        self._store, self._client, self._config, self._now = shared.store, shared.client, shared.config, shared.now
        self._firmware = firmware
        self._write_back = write_back
        self._known = known
        self.bus = Bus()
        self.registry: Registry | None = None
        self.look = shared.look
        self.pulling: dict[str, Link] = {}

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
            await self._write_back.action(case)
        else:
            case.later(self._now() + self._config.poll_s)
        if case.key not in self.look:
            await self._write_back.action(case)
        await self._write_back.device(case)

    async def cancel_action(self, target: str, action: int) -> None:
        await self._write_back.cancel_action(target, action)

    # From hawkBit

    async def _look(self, case: Case) -> None:
        address = self._known.addresses.get(case.key, case.link.address)
        offer = await self._client.offer(case.target, address)
        case.set(address=address)
        case.asked = case.asked or offer.attributes
        if offer.kind == "cancel":
            await self._cancel(case, offer.action)
        elif offer.kind in ("update", "confirm"):
            await self._order(case, offer)
        else:
            await self._nothing(case)

    async def _nothing(self, case: Case) -> None:
        """hawkBit wants nothing: an action that was open was ended there, or a cancelled one leaves no wish."""
        link, view = case.link, await case.fresh(self._store)
        case.set(owed="")
        ended = link.version if link.action else case.cancelled
        if link.action:
            current = await self._write_back.bound(case, view)
            case.set(action=0, kind="")
            if current is not None and current.final and current.state is not State.CANCELLED:
                return  # hawkBit heard the end of it, and dfud was killed before it noted that
            if current is not None and not await self._stop(case, current, by="hawkBit"):
                return
        if ended and wish_of(view.device.spec).version == ended:
            await self._pull(case, view, None, "")

    async def _cancel(self, case: Case, action: int) -> None:
        """Accept a cancellation unless the device runs the image, or may be about to; then refuse it."""
        view = await case.fresh(self._store)
        current = await self._write_back.bound(case, view) if action == case.link.action else None
        why = "cancelled"
        if current is not None and current.final and current.state is not State.CANCELLED:
            # It has ended already: that is what hawkBit should know. If it does not take that, it gets its cancel.
            await self._write_back.action(case)
            if not case.link.action:
                self.look.add(case.key)
                return
            case.unanswered = False
            why = f"cancelled after its end: {current.state}"
        elif current is not None and not await self._stop(case, current, by="hawkBit"):
            return await self._refuse_cancel(case, action, current)
        await self._end(case, "cancelAction", action, feedback.body("closed", "success", [why]))
        if action == case.link.action:
            case.cancelled = case.link.version
            case.set(action=0, kind="")
        self.look.add(case.key)

    async def _refuse_cancel(self, case: Case, action: int, current: Deployment) -> None:
        view = await case.fresh(self._store)
        newest = view.deployment or current
        if not newest.final and newest.state in BEFORE_BOOT:
            case.later(self._now() + 1.0)  # the controller has not come to it yet
            self.look.add(case.key)
            raise Postponed
        why = f"the device is past the point of return: {newest.state}"
        await self._end(case, "cancelAction", action, feedback.body("rejected", "none", [why]))
        self.look.add(case.key)

    async def _end(self, case: Case, kind: str, action: int, told: Any) -> None:
        """Answer an action for good. Raises Postponed if hawkBit does not take it: it is looked at again."""
        if not await self._write_back.end(case, kind, action, told):
            self.look.add(case.key)
            raise Postponed

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
            if firmware.of_kind == "app":
                raise Unusable(
                    f"{firmware.version} is app firmware, and a target of hawkBit's has one installed set, which is the system's: "
                    f"say it in dfud, `dfuctl update {case.device} --app {firmware.version}`"
                )
        except (Unusable, Refused) as error:
            await self._unusable(case, offer, str(error))
            return
        # History first: what is added between the two looks is of what the second one sees.
        entries = await self._write_back.history(case)
        view = await case.fresh(self._store)
        mode = ""
        if offer.kind == "confirm":
            mode = "confirm"
        elif order.update == "skip":
            mode = "window" if order.maintenance_window == "unavailable" else "download"
        before = case.link
        case.set(action=offer.action, kind=offer.kind, version=firmware.version, sha256=firmware.sha256, problem="")
        if offer.action != before.action:
            newest, last = view.deployment, newest_of(entries)
            case.set(deployment="", state="", sent=0, step=0, full=False, owed="")
            case.set(bound=last, after=newest.number if newest is not None else 0)
            ours = newest is not None and newest.sha256 == firmware.sha256
            if newest is not None and ours and newest.id == before.owed:
                # dfud asked for this action: it gets every state since hawkBit heard something last.
                case.set(deployment=newest.id, said=min(before.said, first_of(newest, entries) - 1))
            elif newest is not None and ours and not newest.final:
                case.set(deployment=newest.id, said=first_of(newest, entries) - 1)
            else:
                case.set(said=last)
        left = view.deployment
        if left is not None and left.blocks and left.sha256 == firmware.sha256 and not case.link.deployment:
            if newest_of([entry for entry in entries if entry.deployment == left.id]) <= case.link.bound:
                # The action asks once more for what was left. Said at every look until it is so: dfud may be killed in between.
                self.bus.publish(RetryRequested(case.app, case.device, "hawkBit"))
        await self._want(case, view, firmware.version, mode)

    async def _want(self, case: Case, view: DeviceView, version: str, mode: str) -> None:
        own = wish_of(view.device.spec)
        if own.version == version and mode == case.link.mode:
            case.set(wish=version)
            return
        app = await self._store.app(case.app)
        if not own.there and not mode and app is not None and wish_of(app.spec).version == version:
            return  # the app's default asks for the same: it needs no wish of the device's own
        if own.version != case.link.wish:
            # A user changed it while hawkBit was being read: that is newer, and goes to hawkBit first.
            self.look.add(case.key)
            raise Postponed
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
        await case.fresh(self._store)

    async def _unusable(self, case: Case, offer: Offer, why: str) -> None:
        log.warning("an action of hawkBit's cannot be rolled out", extra={"target": case.target, "why": why})
        case.set(problem=why)
        if offer.kind != "update":
            return
        # Stored before it is told: whoever sees it closed in hawkBit finds the reason here, whatever happens between.
        await self._store.commit([records.put(records.LINKS, case.key, case.link)])
        await self._end(case, "deploymentBase", offer.action, feedback.body("closed", "failure", [why]))
        case.set(action=0, kind="")
        if self._write_back.others(case.target, offer.action):
            self.look.add(case.key)
