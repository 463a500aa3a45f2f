"""What hawkBit does for many devices in one request: making targets, and assigning a firmware."""

from __future__ import annotations

import logging

from dfud.api import Deployment, State
from dfud_hawkbit.case import Case
from dfud_hawkbit.desire import wish_of
from dfud_hawkbit.firmware import FirmwareSync, Unusable
from dfud_hawkbit.http import Refused
from dfud_hawkbit.known import Known
from dfud_hawkbit.owner import Ownership
from dfud_hawkbit.records import Link
from dfud_hawkbit.shared import Shared
from dfud_hawkbit.sync import DeviceSync
from dfud_hawkbit.text import acceptable, cut
from dfud_hawkbit.writeback import WriteBack, newest_of

log = logging.getLogger("dfud.hawkbit")
NAME_CHARS = 128  # hawkBit's column


class Bulk:
    """Each step takes cases and changes their links; what is refused is the link's problem. Raises Away."""

    def __init__(
        self,
        shared: Shared,
        firmware: FirmwareSync,
        devices: DeviceSync,
        write_back: WriteBack,
        owner: Ownership,
        known: Known,
    ) -> None:
        self._store, self._client, self._now = shared.store, shared.client, shared.now
        self._firmware = firmware
        self._devices = devices
        self._write_back = write_back
        self._owner = owner
        self._known = known

    async def register(self, cases: list[Case]) -> None:
        """Make targets; those that are there already are taken as they are, unless they are another dfud's."""
        bodies = [
            {
                "controllerId": c.target,
                "name": _shown(c.device, c.target),
                "description": self._owner.description(c.app),
            }
            for c in cases
        ]
        try:
            await self._client.mgmt("register", "POST", "/targets", bodies)
        except Refused as refused:
            if len(cases) > 1:
                for case in cases:
                    await self.register([case])
                return
            await self._there(cases[0], refused)
            return
        for case in cases:
            await self._registered(case)

    async def _there(self, case: Case, refused: Refused) -> None:
        """A target that cannot be made: it is there already, or refused."""
        if refused.status != 409:
            case.set(problem=str(refused))
            return
        other = await self._owner.find(case.app, case.target)
        if other:
            why = self._owner.sentence(case.target, other)
            if case.link.foreign != other:
                log.error("a target is another dfud's", extra={"target": case.target, "why": why})
            case.set(foreign=other, problem=why, action=0, kind="")
            self._devices.look.discard(case.key)
            return
        self._devices.look.add(case.key)
        await self._registered(case)
        case.set(attributes="")  # they carry the mark

    async def _registered(self, case: Case) -> None:
        if case.link.foreign:
            case.set(foreign="", problem="")
        if case.link.since < 0:
            said = newest_of(await self._write_back.history(case))
            newest = (await case.fresh(self._store)).deployment
            case.set(since=newest.number if newest is not None else 0, said=said)
        case.set(registered=True)
        case.later(self._now())

    async def assign(self, cases: list[Case]) -> None:
        """Bring to hawkBit what users asked dfud for: assignments by firmware, withdrawals one by one."""
        wanted: dict[tuple[str, str], list[Case]] = {}
        for case in cases:
            assert case.view is not None
            own = wish_of(case.view.device.spec)
            link = case.link
            if own.version != link.wish and link.action:
                # What hawkBit has yet to hear of that action comes first: afterwards it is cancelled.
                await self._write_back.settle(case)
                link = case.link
            if own.version != link.wish and not own.version:
                if link.action:
                    await self._devices.cancel_action(case.target, link.action)
                case.set(wish="", mode="")
                self._devices.look.add(case.key)
            elif own.version != link.wish or self._unassigned(case, own.version):
                version = own.version or (case.view.deployment.version if case.view.deployment else "")
                wanted.setdefault((case.app, version), []).append(case)
        for (app, version), group in wanted.items():
            await self._assign_group(app, version, group)

    def _unassigned(self, case: Case, own: str) -> bool:
        """Say whether dfud is bringing a firmware to a device, or did, without an action of hawkBit's that says so."""
        view, link = case.view, case.link
        current = view.deployment if view is not None else None
        if current is None or link.action or link.deployment == current.id:
            return False
        if current.final and not _untold(current, link):
            return False
        if case.key in self._devices.look and own:
            return False  # hawkBit is asked first whether it has one
        return own in ("", current.version)

    async def _assign_group(self, app: str, version: str, group: list[Case]) -> None:
        try:
            made = await self._firmware.push(app, version)
            self._known.problems.pop(f"firmware {app}/{version}", None)
            answer = await self._client.assign(made.set_id, [case.target for case in group], type="forced")
        except (Refused, Unusable) as error:
            if len(group) > 1 and isinstance(error, Refused):
                for case in group:
                    await self._assign_group(app, version, [case])
                return
            for case in group:
                case.set(problem=str(error))
            return
        if answer.assigned < len(group):
            log.info("hawkBit had assigned this already", extra={"firmware": f"{app}/{version}", "devices": len(group)})
        for case in group:
            assert case.view is not None
            current = case.view.deployment
            own = wish_of(case.view.device.spec).version
            case.set(wish=own, mode="" if own else case.link.mode, problem="")
            ours = current is not None and current.version == version
            if ours and current is not None and current.id != case.link.deployment:
                case.set(owed=current.id)
            if not case.link.action:
                case.set(deployment=current.id if ours and current is not None else "")
            self._devices.look.add(case.key)


def _untold(current: Deployment, link: Link) -> bool:
    """Say whether a deployment came to its end without hawkBit having heard of it, since it knows the device."""
    return link.since >= 0 and current.state is not State.CANCELLED and current.number > max(link.since, link.after)


def _shown(device: str, target: str) -> str:
    """Return a name for people; hawkBit refuses what could be markup."""
    plain = acceptable(device)
    return plain if plain == device == cut(device, NAME_CHARS) else target[:NAME_CHARS]
