"""Rollouts: groups of targets, one after the other; the scheduler moves them."""

from __future__ import annotations

import math
from typing import Any

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.mgmt import PAGED, ROUTES, TARGET_FIELDS, _base, _link, _rows
from tests.plugins.hawkbit.model.mgmt_targets import show_target
from tests.plugins.hawkbit.model.query import compile_query
from tests.plugins.hawkbit.model.routes import Request, Response, answer, page
from tests.plugins.hawkbit.model.state import State

_OVER = ("finished", "error", "canceled", "downloaded")


def show_rollout(request: Request, rollout: e.Rollout, *, full: bool) -> dict[str, Any]:
    value = _base(rollout)
    value["name"] = rollout.name
    if rollout.description is not None:
        value["description"] = rollout.description
    value["id"] = rollout.id
    value["targetFilterQuery"] = rollout.filter
    value["distributionSetId"] = rollout.ds
    value["status"] = rollout.status
    value["totalTargets"] = sum(len(group.targets) for group in rollout.groups)
    if full:
        value["totalTargetsPerStatus"] = counts(a for g in rollout.groups for a in _states(g))
        value["totalGroups"] = len(rollout.groups)
    value["type"] = rollout.force_type
    value["weight"] = rollout.weight
    value["deleted"] = rollout.deleted
    value["dynamic"] = False
    value["forcetime"] = rollout.force_time or 0
    value["_links"] = {"self": _link(request, f"/rollouts/{rollout.id}")}
    return value


def _states(group: e.Group) -> list[str]:
    if not group.actions:
        return ["notstarted"] * len(group.targets)
    return [_STATES.get(action.status, "running") for action in group.actions]


_STATES = {
    "finished": "finished",
    "downloaded": "finished",
    "error": "error",
    "canceled": "cancelled",
    "scheduled": "scheduled",
}


def counts(states: Any) -> dict[str, int]:
    found = dict.fromkeys(("running", "notstarted", "scheduled", "cancelled", "finished", "error"), 0)
    for name in states:
        found[name] += 1
    return found


def _rollout(state: State, number: int) -> e.Rollout:
    found = state.rollouts.get(number)
    if found is None:
        raise e.not_found("Rollout", number)
    return found


@ROUTES.add("POST", "/rollouts")
def make_rollout(state: State, request: Request) -> Response:
    keys = (
        "name",
        "description",
        "targetFilterQuery",
        "distributionSetId",
        "amountGroups",
        "groups",
        "type",
        "forcetime",
        "weight",
        "successCondition",
        "successAction",
        "errorCondition",
        "errorAction",
        "confirmationRequired",
    )
    body = request.json(*keys)
    ds = state.set(body["distributionSetId"])
    test = compile_query(body["targetFilterQuery"], TARGET_FIELDS)
    if any(r.name == body["name"] for r in state.rollouts.values()):
        raise e.Problem(409, "hawkbit.server.error.repo.entityAlreadyExists", "exists")
    cids = [t.cid for t in state.targets.values() if test(t)]
    if not cids:
        raise e.Problem(
            400, "hawkbit.server.error.repo.constraintViolation", "Rollout does not match any existing targets"
        )
    now = state.now()
    rollout = e.Rollout(
        state.next_id("rollout"), now, now, name=body["name"], filter=body["targetFilterQuery"], ds=ds.id
    )
    rollout.description = body.get("description")
    rollout.force_type = body.get("type", "forced")
    rollout.force_time = body.get("forcetime")
    rollout.weight = body.get("weight", e.WEIGHT)
    specs = body.get("groups") or [{} for _ in range(body.get("amountGroups", 1))]
    left = cids
    for index, spec in enumerate(specs):
        merged = {**{k: body[k] for k in body if k.endswith(("Condition", "Action", "Required"))}, **spec}
        group = e.Group(state.next_id("group"), now, now, name=spec.get("name", f"group-{index + 1}"))
        group.success = merged.get("successCondition", {}).get("expression", "50")
        group.success_action = merged.get("successAction", {}).get("action", "NEXTGROUP")
        group.error = merged.get("errorCondition", {"expression": "50"})["expression"]
        group.filter = spec.get("targetFilterQuery", "")
        group.description = None if body.get("groups") else group.name
        group.confirmation = bool(merged.get("confirmationRequired"))
        matches = compile_query(group.filter, TARGET_FIELDS) if group.filter else lambda target: True
        share = spec.get("targetPercentage", 100.0) if body.get("groups") else 100.0 / (len(specs) - index)
        group.percentage = share if body.get("groups") else 100.0 / len(specs)
        fitting = [cid for cid in left if matches(state.targets[cid])]
        group.targets = fitting[: math.ceil(len(fitting) * share / 100 - 1e-9)]
        taken = set(group.targets)
        left = [cid for cid in left if cid not in taken]
        rollout.groups.append(group)
    state.lock(ds)
    state.rollouts[rollout.id] = rollout
    return answer(_with_links(state, request, rollout), 201)


def _with_links(state: State, request: Request, rollout: e.Rollout) -> dict[str, Any]:
    value = show_rollout(request, rollout, full=True)
    ds = state.sets[rollout.ds]
    value["_links"]["distributionset"] = _link(request, f"/distributionsets/{ds.id}", f"{ds.name}:{ds.version}")
    for name in ("start", "pause", "resume", "triggerNextGroup", "approve", "deny"):
        value["_links"][name] = _link(request, f"/rollouts/{rollout.id}/{name}")
    value["_links"]["groups"] = _link(request, f"/rollouts/{rollout.id}/deploygroups?offset=0&limit=50")
    return value


@ROUTES.add("GET", "/rollouts/{id:int}")
def get_rollout(state: State, request: Request, number: int) -> Response:
    request.only()
    return answer(_with_links(state, request, _rollout(state, number)))


@ROUTES.add("GET", "/rollouts")
def list_rollouts(state: State, request: Request) -> Response:
    request.only(*PAGED, "representation")
    fields = {"id": lambda r: r.id, "name": lambda r: r.name, "status": lambda r: r.status}
    rows = _rows(request, [r for r in state.rollouts.values() if not r.deleted], fields)
    full = request.query.get("representation") == "full"
    return page(request, rows, lambda r: show_rollout(request, r, full=full))


def _move(state: State, number: int, wanted: tuple[str, ...], to: str) -> Response:
    rollout = _rollout(state, number)
    if rollout.status not in wanted:
        code = "hawkbit.server.error.rollout.illegalState"
        raise e.Problem(400, code, f"Rollout is in state {rollout.status}")
    rollout.status = to
    rollout.modified_at = state.now()
    return Response(204)


@ROUTES.add("POST", "/rollouts/{id:int}/start")
def start(state: State, request: Request, number: int) -> Response:
    return _move(state, number, ("ready",), "starting")


@ROUTES.add("POST", "/rollouts/{id:int}/pause")
def pause(state: State, request: Request, number: int) -> Response:
    return _move(state, number, ("running",), "paused")


@ROUTES.add("POST", "/rollouts/{id:int}/resume")
def resume(state: State, request: Request, number: int) -> Response:
    return _move(state, number, ("paused",), "running")


@ROUTES.add("GET", "/rollouts/{id:int}/deploygroups")
def list_groups(state: State, request: Request, number: int) -> Response:
    request.only(*PAGED, "representation")
    full = request.query.get("representation") == "full"
    return page(request, _rollout(state, number).groups, lambda g: show_group(request, number, g, full=full))


def show_group(request: Request, number: int, group: e.Group, *, full: bool) -> dict[str, Any]:
    value = _base(group)
    value["name"] = group.name
    value["id"] = group.id
    value["status"] = group.status
    value["totalTargets"] = len(group.targets)
    if group.description is not None:
        value["description"] = group.description
    value["dynamic"] = False
    value["targetFilterQuery"] = group.filter
    value["targetPercentage"] = float(group.percentage)
    value["successCondition"] = {"condition": "THRESHOLD", "expression": group.success}
    value["successAction"] = {"action": group.success_action, "expression": ""}
    if group.error is not None:
        value["errorCondition"] = {"condition": "THRESHOLD", "expression": group.error}
        value["errorAction"] = {"action": group.error_action, "expression": ""}
    if full:
        value["totalTargetsPerStatus"] = counts(_states(group))
    value["_links"] = {"self": _link(request, f"/rollouts/{number}/deploygroups/{group.id}")}
    return value


@ROUTES.add("GET", "/rollouts/{id:int}/deploygroups/{gid:int}")
def get_group(state: State, request: Request, number: int, gid: int) -> Response:
    found = [g for g in _rollout(state, number).groups if g.id == gid]
    if not found:
        raise e.not_found("RolloutGroup", gid)
    return answer(show_group(request, number, found[0], full=True))


@ROUTES.add("GET", "/rollouts/{id:int}/deploygroups/{gid:int}/targets")
def group_targets(state: State, request: Request, number: int, gid: int) -> Response:
    request.only(*PAGED)
    group = next(g for g in _rollout(state, number).groups if g.id == gid)
    return page(
        request,
        [state.targets[c] for c in group.targets if c in state.targets],
        lambda t: show_target(state, request, t),
    )


def step(state: State) -> None:
    """Move every rollout on, as hawkBit's scheduler does."""
    for rollout in state.rollouts.values():
        if rollout.status == "creating":
            rollout.status = "ready"
            for group in rollout.groups:
                _touch(state, group)
            _touch(state, rollout)
        elif rollout.status == "starting":
            _start(state, rollout)
        elif rollout.status == "running":
            _run(state, rollout)


def _touch(state: State, row: e.Base) -> None:
    row.modified_at = state.now()
    row.modified_by = "system"


def _start(state: State, rollout: e.Rollout) -> None:
    ds = state.sets[rollout.ds]
    for index, group in enumerate(rollout.groups):
        for cid in group.targets:
            target = state.targets.get(cid)
            if target is None:
                continue
            now = state.now()
            action = e.Action(state.next_id("action"), now, now, target=target, ds=ds.id)
            action.force_type, action.force_time = rollout.force_type, rollout.force_time
            action.weight, action.rollout, action.group = rollout.weight, rollout, group
            action.status, action.active = "scheduled", False
            target.actions[action.id] = state.actions[action.id] = action
            group.actions.append(action)
            state.note(action, "scheduled", [_text(rollout, group)])
        group.status = "running" if index == 0 else "scheduled"
        if index == 0:
            _begin(state, rollout, group)
    rollout.status = "running"
    _touch(state, rollout)


def _text(rollout: e.Rollout, group: e.Group) -> str:
    return f"Initiated by Rollout Group '{group.name}' [Rollout {rollout.name}:{rollout.id}]"


def _begin(state: State, rollout: e.Rollout, group: e.Group) -> None:
    group.status = "running"
    for action in group.actions:
        if action.status == "scheduled" and action.target.cid in state.targets:
            if action.target.assigned == rollout.ds:
                action.status = "finished"
                action.modified_at = state.now()
                continue
            state.close_obsolete(action.target)
            state.begin(action, group.confirmation, _text(rollout, group))


def _run(state: State, rollout: e.Rollout) -> None:
    for index, group in enumerate(rollout.groups):
        if group.status != "running":
            continue
        states = _states(group)
        done = states.count("finished")
        failed = states.count("error")
        over = sum(1 for a in group.actions if a.status in _OVER)
        if group.error is not None and states and failed * 100 / len(states) > float(group.error):
            group.status = "error"
            rollout.status = "paused"
            _touch(state, rollout)
            return
        following = rollout.groups[index + 1] if index + 1 < len(rollout.groups) else None
        enough = not states or done * 100 / len(states) >= float(group.success)
        if enough and following is not None and following.status == "scheduled" and group.success_action == "NEXTGROUP":
            _begin(state, rollout, following)
        if over == len(states):
            group.status = "finished"
    if not any(group.status == "running" for group in rollout.groups):
        # Resumed behind a group that failed: it is left behind.
        waiting = next((group for group in rollout.groups if group.status == "scheduled"), None)
        if waiting is not None:
            _begin(state, rollout, waiting)
    if all(group.status in ("finished", "error") for group in rollout.groups):
        rollout.status = "finished"
        _touch(state, rollout)
