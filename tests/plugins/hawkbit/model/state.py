"""What hawkBit does with actions: assign, retrieve, feedback, cancel, confirm. No HTTP here."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from tests.plugins.hawkbit.model import entities as e

SERVER = "Update Server: "
DEFAULTS: dict[str, Any] = {
    "authentication.header.enabled": False,
    "authentication.header.authority": "",
    "authentication.targettoken.enabled": False,
    "authentication.gatewaytoken.enabled": False,
    "authentication.gatewaytoken.key": "",
    "pollingTime": "00:05:00",
    "pollingOverdueTime": "00:05:00",
    "maintenanceWindowPollCount": 3,
    "rollout.approval.enabled": False,
    "repository.actions.autoclose.enabled": False,
    "user.confirmation.flow.enabled": False,
    "implicit.lock.enabled": True,
    "batch.assignments.enabled": False,
}
CONFIRMED = "Target confirmed action. Therefore, it will be set to the running state to proceed with the deployment."
DENIED = "Target rejected action. Action will stay in confirmation pending state."
_CLOSED = ("finished", "error")


class State:
    """One tenant. Everything is a dict by id in order of creation."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.defaults = {**DEFAULTS, **config}
        self.config: dict[str, Any] = {}
        self.modules: dict[int, e.Module] = {}
        self.sets: dict[int, e.DistributionSet] = {}
        self.targets: dict[str, e.Target] = {}
        self.actions: dict[int, e.Action] = {}
        self.filters: dict[int, e.Base] = {}
        self.rollouts: dict[int, e.Rollout] = {}
        self._ids: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        self.clock: Callable[[], float] = time.time

    def now(self) -> int:
        return int(self.clock() * 1000)

    def next_id(self, table: str) -> int:
        return next(self._ids[table])

    def setting(self, key: str) -> Any:
        return self.config.get(key, self.defaults[key])

    def configure(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if key not in self.defaults:
                raise e.Problem(400, "hawkbit.server.error.configKeyInvalid", f"no setting {key}")
            if key == "pollingTime" and not re.fullmatch(r"\d\d:\d\d:\d\d", str(value)):
                raise e.Problem(400, "hawkbit.server.error.configValueInvalid", f"no time {value}")
        self.config |= values

    # Finding

    def module(self, number: int) -> e.Module:
        found = self.modules.get(number)
        if found is None or found.deleted:
            raise e.not_found("SoftwareModule", number)
        return found

    def set(self, number: int) -> e.DistributionSet:
        found = self.sets.get(number)
        if found is None:
            raise e.not_found("DistributionSet", number)
        return found

    def target(self, cid: str) -> e.Target:
        found = self.targets.get(cid)
        if found is None:
            raise e.not_found("Target", cid)
        return found

    def action(self, target: e.Target, number: int) -> e.Action:
        found = target.actions.get(number)
        if found is None:
            raise e.not_found("Action", number)
        return found

    def top(self, target: e.Target) -> e.Action | None:
        """The one action that is offered: the highest weight, then the oldest."""
        return min(target.open.values(), key=lambda action: (-action.weight, action.id), default=None)

    # Targets

    def new_target(self, cid: str, *, by: str = "admin", status: str = "unknown", **values: Any) -> e.Target:
        now = self.now()
        target = e.Target(self.next_id("target"), now, now, by, by, cid=cid, update_status=status)
        target.name = values.pop("name", None) or cid
        target.token = values.pop("token", None) or secrets.token_hex(16)
        for key, value in values.items():
            setattr(target, key, value)
        self.targets[cid] = target
        return target

    def delete_target(self, cid: str) -> None:
        target = self.target(cid)
        for number in target.actions:
            self.actions.pop(number, None)
        del self.targets[cid]

    def poll(self, cid: str, address: str) -> e.Target:
        target = self.targets.get(cid)
        if target is None:
            text = f"Plug and Play target: {cid}"
            target = self.new_target(cid, by="CONTROLLER_PLUG_AND_PLAY", status="registered", description=text)
        elif target.update_status == "unknown":
            target.update_status = "registered"
        target.address = address
        target.polled_at = self.now()
        return target

    # Actions

    def assign(
        self, ds: e.DistributionSet, requests: list[dict[str, Any]], *, offline: bool = False, by: str = "admin"
    ) -> dict[str, Any]:
        """Assign a set to targets (`id` and how). Returns assigned, alreadyAssigned, total, assignedActions."""
        if len(requests) > e.ASSIGN_MAX:
            raise e.quota("Target", "DistributionSet", ds.id, e.ASSIGN_MAX, len(requests))
        if not ds.valid:
            raise e.Problem(400, "hawkbit.server.error.repo.invalidDistributionSet", "is invalid")
        if not self.complete(ds):
            text = f"Distribution set of type {ds.type} is incomplete: {ds.id}"
            raise e.Problem(400, "hawkbit.server.error.distributionset.incomplete", text)
        for request in requests:
            check_window(request.get("maintenanceWindow"), self.now())
        known = {r["id"]: r for r in requests if r["id"] in self.targets}
        made = []
        for cid, request in known.items():
            target = self.targets[cid]
            if target.assigned == ds.id or (offline and target.update_status == "pending"):
                continue
            made.append(self.new_action(target, ds, request, offline=offline, by=by))
        if known:
            self.lock(ds, by)
        return {
            "alreadyAssigned": len(known) - len(made),
            "assigned": len(made),
            "total": len(known),
            "assignedActions": made,
        }

    def complete(self, ds: e.DistributionSet) -> bool:
        types = {self.modules[number].type for number in ds.modules}
        needed = {"os": {"os"}, "os_app": {"os"}, "app": {"application"}}.get(ds.type, set())
        return needed <= types

    def lock(self, ds: e.DistributionSet, by: str = "admin") -> None:
        if self.setting("implicit.lock.enabled"):
            rows: list[e.DistributionSet | e.Module] = [ds, *(self.modules[number] for number in ds.modules)]
            for row in rows:
                if not row.locked:
                    row.locked, row.modified_at, row.modified_by = True, self.now(), by

    def new_action(
        self, target: e.Target, ds: e.DistributionSet, how: dict[str, Any], *, offline: bool = False, by: str = "admin"
    ) -> e.Action:
        if not offline:
            self.close_obsolete(target)
        now = self.now()
        action = e.Action(self.next_id("action"), now, now, by, by, target=target, ds=ds.id)
        action.force_type = how.get("type", "forced")
        action.force_time = how.get("forcetime")
        action.weight = how.get("weight") or e.WEIGHT
        action.window = how.get("maintenanceWindow")
        target.actions[action.id] = self.actions[action.id] = action
        if offline:
            action.active = False
            action.status = "finished"
            text = f"Assignment initiated by user '{by}'"
            self.note(action, "finished", [text, SERVER + "Action reported as offline deployment"])
            target.assigned = target.installed = ds.id
            target.modified_at, target.modified_by = now, by
            target.installed_at = now
            target.update_status = "in_sync"
        else:
            self.begin(action, how.get("confirmationRequired", True))
        return action

    def begin(self, action: e.Action, confirmation: bool = True, text: str = "") -> None:
        """Make an action run, or wait for its user."""
        target = action.target
        flow = self.setting("user.confirmation.flow.enabled")
        waits = flow and confirmation and target.auto_confirm is None
        action.status = "wait_for_confirmation" if waits else "running"
        action.active = True
        target.open[action.id] = action
        target.assigned = action.ds
        target.update_status = "pending"
        action.modified_at = target.modified_at = self.now()
        messages = [text or "Assignment initiated by user 'admin'"]
        if waits:
            messages.append("Waiting for the confirmation by the device before processing with the deployment")
        elif flow:
            messages.append(_confirmed_by(None if not confirmation else target.auto_confirm))
        self.note(action, "wait_for_confirmation" if flow else "running", messages)

    def close_obsolete(self, target: e.Target) -> None:
        """Cancel what is under way on a target, or close it at once."""
        at_once = self.setting("repository.actions.autoclose.enabled")
        for action in list(target.open.values()):
            if self.sets[action.ds].migration:
                continue
            if at_once:
                self._close(action, "canceled")
                self.note(action, "canceled", [SERVER + "close obsolete action due to new update"])
            elif action.status != "canceling":
                action.status = "canceling"
                self.note(action, "canceling", [SERVER + "cancel obsolete action due to new update"])
            action.modified_at = self.now()

    def note(
        self, action: e.Action, kind: str, messages: list[str], *, code: int | None = None, at: int | None = None
    ) -> None:
        now = self.now()
        split = [m[i : i + e.MESSAGE_CHARS] for m in messages for i in range(0, max(len(m), 1), e.MESSAGE_CHARS)]
        number = self.next_id("status")
        action.history.append(e.ActionStatus(number, kind, now if at is None else at, now, split, code))

    def check_quota(self, action: e.Action, kind: str, messages: list[str]) -> None:
        if kind not in _CLOSED and len(action.history) + 1 > e.STATUS_MAX:
            raise e.quota("ActionStatus", "Action", action.id, e.STATUS_MAX, 1)
        if len(messages) > e.MESSAGES_MAX:
            raise e.quota("Message", "ActionStatus", None, e.MESSAGES_MAX, len(messages))

    def _close(self, action: e.Action, status: str) -> None:
        action.active = False
        action.status = status
        action.target.open.pop(action.id, None)

    def retrieved(self, action: e.Action, text: str) -> None:
        if action.history and action.history[-1].type == "retrieved":
            return
        self.note(action, "retrieved", [SERVER + text])
        if not action.canceling:
            action.status = "retrieved"

    def feedback(self, action: e.Action, kind: str, messages: list[str], code: int | None, at: int | None) -> None:
        """Note what a device says of its action. kind: the status that it amounts to."""
        self.check_quota(action, kind, messages)
        target = action.target
        when = self.now() if at is None else at
        if kind == "error":
            self._close(action, "error")
            target.update_status = "error"
            target.assigned = None
        elif kind == "finished":
            self._close(action, "finished")
            if target.installed_at is None or target.installed_at < when:
                target.installed, target.installed_at = action.ds, when
                if action.force_type == "downloadonly":
                    target.assigned = action.ds
                if target.assigned == action.ds:
                    target.update_status = "in_sync"
            target.request_attributes = True
        elif kind == "downloaded" and action.force_type == "downloadonly":
            self._close(action, "downloaded")
            target.update_status = "in_sync"
            target.request_attributes = True
        self.note(action, kind, messages, code=code, at=when)
        action.last_code = code

    def cancel(self, action: e.Action, force: bool) -> None:
        """Ask the device to stop, or (force, only after that) stop without asking it."""
        if force:
            if not action.canceling or not action.active:
                code = "hawkbit.server.error.action.notForceQuitable"
                raise e.Problem(405, code, "Action is not in canceling state")
            self.note(action, "canceled", ["A force quit has been performed."])
            self.cancelled(action)
        else:
            if action.canceling or not action.active:
                code = "hawkbit.server.error.action.notCancelable"
                raise e.Problem(405, code, "cannot be canceled")
            action.status = "canceling"
            self.note(action, "canceling", [SERVER + "manual cancelation requested"])
        action.modified_at = self.now()

    def cancelled(self, action: e.Action) -> None:
        self._close(action, "canceled")
        target = action.target
        following = min(target.open.values(), key=lambda other: other.id, default=None)
        if following is None:
            target.assigned = target.installed
            target.update_status = "in_sync"
        else:
            target.assigned = following.ds

    def cancel_feedback(
        self, action: e.Action, kind: str, messages: list[str], code: int | None, at: int | None
    ) -> None:
        if not action.canceling:
            code_ = "hawkbit.server.error.action.notCancelable"
            raise e.Problem(405, code_, "The action is not in canceling state.")
        if kind == "canceled":
            messages = [*messages, SERVER + "Cancellation completion is finished successfully."]
            self.cancelled(action)
        elif kind in ("error", "cancel_rejected"):
            action.status = "running"
        else:
            self.check_quota(action, kind, messages)
        self.note(action, kind, messages, code=code, at=at)

    def delete_action(self, action: e.Action) -> None:
        """Forget an action; its target stays as it was, as in hawkBit."""
        self.actions.pop(action.id, None)
        action.target.actions.pop(action.id, None)
        action.target.open.pop(action.id, None)

    # Windows and confirmations

    def window_open(self, action: e.Action) -> bool | None:
        """Whether an action's maintenance window is open; None: it has none."""
        if action.window is None:
            return None
        start, end = window(action.window, self.now())
        return start <= self.now() < end

    def lapse(self, action: e.Action) -> None:
        """Cancel an action whose last maintenance window is over, as hawkBit does when it is asked for it."""
        if action.window is not None and action.active and not action.canceling:
            if window(action.window, self.now())[0] < 0:
                action.status = "canceling"
                self.note(action, "canceling", [SERVER + "manual cancelation requested"])

    def confirm(self, action: e.Action, yes: bool, details: list[str], code: int | None) -> None:
        if action.status != "wait_for_confirmation":
            raise e.Problem(404)
        messages = list(details)
        if code is not None:
            messages.append(f"Confirmation status code: {code}")
        said = CONFIRMED if yes else DENIED
        action.status = "running" if yes else action.status
        self.note(action, action.status, [*messages, SERVER + said], code=code)
        action.last_code = code


def _confirmed_by(auto: dict[str, Any] | None) -> str:
    """Return who spared the question: the one who assigned, or an automatic confirmation."""
    if auto is None:
        return "Assignment confirmed by initiator [admin]."
    remark = f" \n\nRemark: {auto.get('remark') or 'n/a'}"
    said = f"Assignment automatically confirmed by initiator '{auto.get('initiator')}'. "
    return f"{said}\n\nAuto confirmation activated by system user: 'admin'{remark}"


def next_start(spec: dict[str, str], now_ms: int) -> int:
    """Return when a window opens next; 0 if it does not any more."""
    start = window(spec, now_ms)[0]
    return start if start > now_ms else 0


def check_window(spec: dict[str, str] | None, now_ms: int) -> None:
    """Raise Problem for a maintenance window that is not well formed or over."""
    if spec is None:
        return
    try:
        good = window(spec, now_ms)[0] >= 0
    except (KeyError, ValueError):
        good = False
    if not good:
        code = "hawkbit.server.error.maintenanceScheduleInvalid"
        raise e.Problem(400, code, "No valid maintenance window available after current time")


def window(spec: dict[str, str], now_ms: int) -> tuple[int, int]:
    """Return (start, end) of the window that is open or comes next; (-1, -1) if there is none any more.

    Only schedules of one moment (`s m h d M ? y`) and daily ones (`s m h * * ?` or `s m h ? * *`) are known.
    """
    import datetime as dt

    if len(spec["schedule"].split()) not in (6, 7):
        raise ValueError(spec["schedule"])
    sign = -1 if spec["timezone"].startswith("-") else 1
    hours, minutes = spec["timezone"].lstrip("+-").split(":")
    zone = dt.timezone(sign * dt.timedelta(hours=int(hours), minutes=int(minutes)))
    h, m, s = (int(part) for part in spec["duration"].split(":"))
    length = ((h * 60 + m) * 60 + s) * 1000
    parts = spec["schedule"].split()
    now = dt.datetime.fromtimestamp(now_ms / 1000, zone)
    second, minute, hour, day, month = parts[:5]
    today = now.replace(hour=int(hour), minute=int(minute), second=int(second), microsecond=0)
    if day.isdigit() and month.isdigit() and len(parts) == 7:
        moment = today.replace(year=int(parts[6]), month=int(month), day=int(day))
        starts = [moment]
    elif day in ("*", "?") and month == "*":
        starts = [today + dt.timedelta(days=n) for n in (-1, 0, 1)]
    else:
        raise e.Unknown(f"maintenance schedule {spec['schedule']}")
    for start in starts:
        at = int(start.timestamp() * 1000)
        if now_ms < at + length:
            return at, at + length
    return -1, -1
