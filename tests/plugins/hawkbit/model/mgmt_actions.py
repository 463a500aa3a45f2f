"""Actions, and the tenant's settings, in the model's Management API."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.mgmt import (
    ACTION_FIELDS,
    PAGED,
    ROUTES,
    _base,
    _link,
    _rows,
)
from tests.plugins.hawkbit.model.query import compile_query
from tests.plugins.hawkbit.model.routes import Request, Response, answer, in_order, page
from tests.plugins.hawkbit.model.state import State, next_start


def show_action(state: State, request: Request, action: e.Action, *, full: bool) -> dict[str, Any]:
    cid = quote(action.target.cid)
    path = f"/targets/{cid}/actions/{action.id}"
    value = _base(action)
    value["id"] = action.id
    value["type"] = "cancel" if action.canceling else "update"
    value["active"] = action.active
    value["status"] = action.status
    if action.force_type == "timeforced":
        value["forceTime"] = action.force_time
    value["forceType"] = action.force_type
    value["weight"] = action.weight
    if action.window is not None:
        value["maintenanceWindow"] = {
            **action.window,
            "nextStartAt": next_start(action.window, int(time.time() * 1000)),
        }
    if action.rollout is not None:
        value["rollout"] = action.rollout.id
        value["rolloutName"] = action.rollout.name
    if action.last_code is not None:
        value["lastStatusCode"] = action.last_code
    links: dict[str, Any] = {"self": _link(request, path)}
    if full:
        if action.canceling:
            links["canceledaction"] = _link(request, path)
        ds = state.sets[action.ds]
        links["target"] = _link(request, f"/targets/{cid}", action.target.name)
        links["distributionset"] = _link(request, f"/distributionsets/{ds.id}", f"{ds.name}:{ds.version}")
        links["status"] = _link(request, f"{path}/status?offset=0&limit=50&sort=id%3ADESC")
        if action.rollout is not None:
            links["rollout"] = _link(request, f"/rollouts/{action.rollout.id}", action.rollout.name)
    value["_links"] = links
    return value


@ROUTES.add("GET", "/actions")
def list_actions(state: State, request: Request) -> Response:
    request.only(*PAGED, "representation")
    full = request.query.get("representation") == "full"
    rows = _rows(request, list(state.actions.values()), ACTION_FIELDS)
    return page(request, rows, lambda a: show_action(state, request, a, full=full))


@ROUTES.add("DELETE", "/actions")
def delete_actions(state: State, request: Request) -> Response:
    if "q" not in request.query:
        raise e.Problem(400, "hawkbit.server.error.rest.body.notReadable", "neither q nor a list of actions")
    request.only("q")
    test = compile_query(request.query["q"], ACTION_FIELDS)
    for action in [a for a in state.actions.values() if test(a)]:
        state.delete_action(action)
    return Response(204)


@ROUTES.add("GET", "/targets/{cid}/actions")
def list_target_actions(state: State, request: Request, cid: str) -> Response:
    request.only(*PAGED)
    rows = list(state.target(cid).actions.values())
    if "q" in request.query:
        test = compile_query(request.query["q"], ACTION_FIELDS)
        rows = [row for row in rows if test(row)]
    return page(request, in_order(request, rows, "id:DESC"), lambda a: show_action(state, request, a, full=False))


@ROUTES.add("GET", "/targets/{cid}/actions/{aid:int}")
def get_action(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only()
    if aid in state.actions and aid not in state.target(cid).actions:
        return Response(404)
    return answer(show_action(state, request, state.action(state.target(cid), aid), full=True))


@ROUTES.add("DELETE", "/targets/{cid}/actions/{aid:int}")
def cancel_action(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only("force")
    state.cancel(state.action(state.target(cid), aid), request.query.get("force") == "true")
    return Response(204)


@ROUTES.add("PUT", "/targets/{cid}/actions/{aid:int}")
def put_action(state: State, request: Request, cid: str, aid: int) -> Response:
    action = state.action(state.target(cid), aid)
    if request.json("forceType")["forceType"] != "forced":
        raise e.Problem(400, "hawkbit.server.error.repo.constraintViolation", "only to forced")
    if action.active and not action.canceling:
        action.force_type = "forced"
        action.modified_at = state.now()
    return answer(show_action(state, request, action, full=True))


@ROUTES.add("GET", "/targets/{cid}/actions/{aid:int}/status")
def list_status(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only("sort", "limit", "offset")
    action = state.action(state.target(cid), aid)
    return page(request, in_order(request, action.history, "id:DESC"), _show_status)


def _show_status(entry: e.ActionStatus) -> dict[str, Any]:
    value: dict[str, Any] = {"id": entry.id, "type": entry.type, "messages": entry.messages or [None]}
    value["reportedAt"] = entry.reported_at
    value["timestamp"] = entry.timestamp
    if entry.code is not None:
        value["code"] = entry.code
    return value


@ROUTES.add("PUT", "/targets/{cid}/actions/{aid:int}/confirmation")
def put_confirmation(state: State, request: Request, cid: str, aid: int) -> Response:
    body = request.json("confirmation", "code", "details")
    action = state.action(state.target(cid), aid)
    state.confirm(action, body["confirmation"] == "confirmed", body.get("details") or [], body.get("code"))
    return Response(204)


# Settings


@ROUTES.add("GET", "/system/configs")
def list_configs(state: State, request: Request) -> Response:
    return answer({key: _show_config(state, request, key) for key in state.defaults})


def _show_config(state: State, request: Request, key: str) -> dict[str, Any]:
    value: dict[str, Any] = {"value": state.setting(key), "global": key not in state.config}
    if key in state.config:
        now = state.now()
        value |= _base(e.Base(0, now, now))
    value["_links"] = {"self": _link(request, f"/system/configs/{key}")}
    return value


def _key(state: State, key: str) -> str:
    if key not in state.defaults:
        raise e.Problem(
            400, "hawkbit.server.error.configKeyInvalid", f"The given configuration key {key} does not exist."
        )
    return key


@ROUTES.add("GET", "/system/configs/{key}")
def get_config(state: State, request: Request, key: str) -> Response:
    return answer(_show_config(state, request, _key(state, key)))


@ROUTES.add("PUT", "/system/configs/{key}")
def put_config(state: State, request: Request, key: str) -> Response:
    state.configure({key: request.json("value")["value"]})
    return Response(204)


@ROUTES.add("PUT", "/system/configs")
def put_configs(state: State, request: Request) -> Response:
    state.configure(request.json())
    return Response(204)


@ROUTES.add("DELETE", "/system/configs/{key}")
def delete_config(state: State, request: Request, key: str) -> Response:
    state.config.pop(_key(state, key), None)
    return Response(204)
