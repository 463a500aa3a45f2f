"""What hawkBit is told of one device: the states of its open action, what runs without one, and its attributes.

A feedback that hawkBit refuses for its text is sent again with what decides alone. An end that it does not take even so is not
told: the action stays the device's, and its end is sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from dfud.api import Deployment, DeviceView, HistoryEntry, State
from dfud_hawkbit import feedback, records
from dfud_hawkbit.case import Case
from dfud_hawkbit.desire import attributes_of, digest_of
from dfud_hawkbit.http import Refused
from dfud_hawkbit.owner import Ownership
from dfud_hawkbit.records import FirmwareSet
from dfud_hawkbit.shared import Shared

log = logging.getLogger("dfud.hawkbit")
HISTORY_MAX = 100  # states that are looked through for what hawkBit has not heard; a feedback holds 50 lines


class WriteBack:
    """look: devices whose action must be read from hawkBit. others: whether a target has another open action than this."""

    def __init__(
        self,
        shared: Shared,
        owner: Ownership,
    ) -> None:
        self._store, self._client, self._config, self._now = shared.store, shared.client, shared.config, shared.now
        self._owner = owner
        self._look = shared.look
        self.others: Callable[[str, int], bool] = lambda target, action: False

    async def bound(self, case: Case, view: DeviceView) -> Deployment | None:
        """Return the deployment that stands for the link's action."""
        link, newest = case.link, view.deployment
        if not link.action:
            return None
        if link.deployment:
            if newest is not None and newest.id == link.deployment:
                return newest
            return await self._store.deployment(link.deployment)
        if newest is not None and newest.sha256 == link.sha256 and not newest.final:
            return newest
        # It may have come and gone while hawkBit could not be told, with others behind it.
        for one in await self._store.deployments(case.app, case.device):
            if one.sha256 == link.sha256 and one.number > link.after:
                return one
        return None

    async def settle(self, case: Case) -> None:
        """Tell the end of the open action if its deployment has come to one, before hawkBit is asked for something else."""
        current = await self.bound(case, await case.fresh(self._store))
        if current is not None and current.final and current.state is not State.CANCELLED:
            await self.action(case)

    async def action(self, case: Case) -> None:
        """Tell what became of the open action."""
        link = case.link
        if link.kind != "update" or not link.action:
            return
        view = await case.fresh(self._store)
        current = await self.bound(case, view)
        if current is None:
            actual = view.actual
            if actual is not None and actual.sha256 == link.sha256 and not actual.trial:
                told = feedback.body("closed", "success", [f"it runs {link.version} already"])
                await self._close(case, told, success=True)
            return
        case.set(deployment=current.id)
        if current.state is State.CANCELLED:
            return await self._withdraw_cancelled(case)
        news = await self._news(case, current)
        told = feedback.of_deployment(current, news)
        if told is None:
            return
        if current.final:
            if await self._close(case, told, success=current.state is State.DONE):
                if news:
                    case.set(said=news[-1].number)
                if view.deployment is not None and view.deployment.id != current.id:
                    case.later(self._now())  # what came after it has yet to be told
            return
        await self._intermediate(case, current, news, told)

    async def _news(self, case: Case, current: Deployment) -> list[HistoryEntry]:
        """Return the history of a deployment that hawkBit has not heard, oldest first, behind what came and went before it."""
        entries = await self.history(case)
        first = first_of(current, entries)
        return [
            e
            for e in reversed(entries)
            if e.number > case.link.said and (e.deployment == current.id or e.number < first)
        ]

    async def history(self, case: Case) -> list[HistoryEntry]:
        """Return what hawkBit may not have heard yet, newest first."""
        return await self._store.history(case.app, case.device, limit=HISTORY_MAX)

    async def _intermediate(self, case: Case, current: Deployment, news: list[HistoryEntry], told: Any) -> None:
        link, now_s, step = case.link, self._now(), feedback.step(current)
        if link.full or link.sent >= self._config.feedback_max or (not news and step <= link.step):
            return
        ends = current.state is State.WRITTEN and link.mode == "download"
        # What was told in the future, by a clock that was set back since, was told long ago.
        if not ends and link.sent and 0 <= now_s - link.told_s < self._config.feedback_s:
            return case.later(link.told_s + self._config.feedback_s)
        try:
            open_still = await self._say(case, "deploymentBase", link.action, told)
        except Refused as refused:
            if not refused.quota:
                raise
            # hawkBit takes no more of these for this action; the last one passes.
            return case.set(full=True, problem=str(refused))
        case.set(sent=link.sent + 1, step=step, told_s=now_s, state=str(current.state))
        if news:
            case.set(said=news[-1].number)
        if not open_still or ends:
            if ends:
                case.set(action=0, kind="")
            self._look.add(case.key)
            case.later(now_s)

    async def _say(self, case: Case, kind: str, action: int, told: Any) -> bool:
        """Send a feedback; what hawkBit refuses in it is left out. False: the action is over. Raises Refused, Away."""
        try:
            return await self._client.feedback(case.target, kind, action, told)
        except Refused as refused:
            if refused.quota and told["status"]["execution"] not in ("closed", "rejected"):
                raise
            if not case.link.problem:
                log.warning("hawkBit refuses a feedback", extra={"target": case.target, "why": str(refused)})
        return await self._client.feedback(case.target, kind, action, feedback.bare(told))

    async def end(self, case: Case, kind: str, action: int, told: Any) -> bool:
        """Send what ends an action; return whether it is over. What hawkBit refuses even bare is noted and comes again."""
        try:
            await self._say(case, kind, action, told)
        except Refused as refused:
            case.unanswered = True
            case.set(problem=f"hawkBit does not take the end of action {action}, which is sent again: {refused}")
            return False
        return True

    async def _close(self, case: Case, told: Any, *, success: bool) -> bool:
        """Send the last feedback; return whether the action is over. One that is over already is just that."""
        action, version = case.link.action, case.link.version
        if not await self.end(case, "deploymentBase", action, told):
            return False
        case.set(action=0, kind="", problem="")
        if success:
            case.set(installed=version)
        if self.others(case.target, action):
            self._look.add(case.key)
            case.later(self._now())
        return True

    async def _withdraw_cancelled(self, case: Case) -> None:
        """A user of dfud cancelled: cancel the action too, and take part in that as its device."""
        await self.cancel_action(case.target, case.link.action)
        self._look.add(case.key)
        case.later(self._now())

    async def cancel_action(self, target: str, action: int) -> None:
        """Ask hawkBit to cancel an action; one that is being cancelled, or is over, is left as it is."""
        try:
            await self._client.mgmt("cancel", "DELETE", f"/targets/{target}/actions/{action}")
        except Refused as refused:
            if refused.status not in (404, 405, 410):
                raise

    async def device(self, case: Case) -> None:
        """Tell what runs without an action, and what the device says of itself."""
        view, link, now_s = await case.fresh(self._store), case.link, self._now()
        actual = view.actual
        if actual is not None and not actual.trial and not link.action and case.key not in self._look:
            await self._installed(case, actual.sha256)
        said = attributes_of(view, self._owner.mark)
        digest = digest_of(said)
        if not case.asked and (digest == link.attributes or (actual is None and not view.device.metadata.labels)):
            return
        due_s = link.attributes_s + self._config.attributes_s
        # What was sent in the future, by a clock that was set back since, was sent long ago.
        if link.attributes and link.attributes_s <= now_s < due_s and not case.asked:
            return case.later(due_s)
        await self._client.attributes(case.target, said)
        case.asked = False
        case.set(attributes=digest, attributes_s=now_s)

    async def _installed(self, case: Case, sha256: str) -> None:
        running = await self._store.firmware_by_digest(case.app, sha256)
        if running is None or running.version == case.link.installed:
            return
        key = records.firmware_key(case.app, running.version)
        known = await records.get(self._store, records.SETS, key, FirmwareSet)
        if known is None or not known.set_id:
            return
        try:
            await self._client.installed(case.target, known.name, known.set_version)
        except Refused as refused:
            if refused.status == 404 and not await self._is_there(case.target):
                raise
            return case.set(problem=str(refused))  # the set is gone, not the target
        case.set(installed=running.version)

    async def _is_there(self, target: str) -> bool:
        try:
            await self._client.mgmt("look up", "GET", f"/targets/{target}")
        except Refused as refused:
            if refused.status != 404:
                raise
            return False
        return True


def newest_of(entries: Sequence[HistoryEntry]) -> int:
    """Return the number of the newest entry of a history, 0 without any."""
    return max((entry.number for entry in entries), default=0)


def first_of(deployment: Deployment, entries: Sequence[HistoryEntry]) -> int:
    """Return the number with which a deployment began; where none of its entries is left, of what comes next."""
    own = [entry.number for entry in entries if entry.deployment == deployment.id]
    return min(own, default=newest_of(entries) + 1)
