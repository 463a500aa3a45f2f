"""Less used parts of the Management API: types, automatic confirmation, target filters, modules of a set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.mgmt import _MODULE_TYPES, _SET_TYPES, PAGED, ROUTES, TARGET_FIELDS, _base, _link
from tests.plugins.hawkbit.model.query import compile_query
from tests.plugins.hawkbit.model.routes import Request, Response, answer, page
from tests.plugins.hawkbit.model.state import State

_MODULE_TEXTS = {"os": ("Core firmware or operating system", 1), "application": ("Application Addons", 2147483647)}
_SET_TEXTS = {
    "app": "Default type with app(s) only.",
    "os": "Default type with Firmware/OS only.",
    "os_app": "Default type with Firmware/OS and optional app(s).",
}


@dataclass
class Filter(e.Base):
    name: str = ""
    query: str = ""
    ds: int | None = None
    force_type: str = "forced"


def _type(request: Request, kind: str, key: str, number: int, name: str, text: str, **more: Any) -> dict[str, Any]:
    value = _base(e.Base(number, 0, 0, "system", "system"))
    value["createdAt"] = value["lastModifiedAt"] = 1_700_000_000_000
    value |= {"name": name, "description": text, "key": key, "deleted": False, "id": number, **more}
    value["_links"] = {"self": _link(request, f"/{kind}/{number}")}
    return value


def _by_key(request: Request) -> None:
    request.only(*PAGED)
    if request.query.get("sort") != "key:ASC" or "q" in request.query:
        raise e.Unknown("types in another order than that of their keys")


@ROUTES.add("GET", "/softwaremoduletypes")
def module_types(state: State, request: Request) -> Response:
    _by_key(request)
    rows = []
    for key, (number, name) in sorted(_MODULE_TYPES.items()):
        text, most = _MODULE_TEXTS[key]
        more = {"minArtifacts": 0, "maxAssignments": most}
        rows.append(_type(request, "softwaremoduletypes", key, number, name, text, **more))
    return page(request, rows, dict)


@ROUTES.add("GET", "/distributionsettypes")
def set_types(state: State, request: Request) -> Response:
    _by_key(request)
    rows = [
        _type(request, "distributionsettypes", k, n, name, _SET_TEXTS[k]) for k, (n, name) in sorted(_SET_TYPES.items())
    ]
    return page(request, rows, dict)


@ROUTES.add("POST", "/distributionsets/{id:int}/assignedSM")
def add_modules(state: State, request: Request, number: int) -> Response:
    ds = state.set(number)
    if ds.locked:
        raise e.Unknown("a change of the modules of a set that is locked")
    for row in request.json("id", rows=True):
        if state.module(row["id"]).id not in ds.modules:
            ds.modules.append(row["id"])
    ds.modified_at = state.now()
    return Response(204)


@ROUTES.add("GET", "/targets/{cid}/autoConfirm")
def auto_confirm(state: State, request: Request, cid: str) -> Response:
    found = state.target(cid).auto_confirm
    path = f"/targets/{quote(cid)}/autoConfirm"
    if found is None:
        return answer({"active": False, "_links": {"activate": _link(request, f"{path}/activate")}})
    return answer({"active": True, **found, "_links": {"deactivate": _link(request, f"{path}/deactivate")}})


@ROUTES.add("POST", "/targets/{cid}/autoConfirm/activate")
def activate(state: State, request: Request, cid: str) -> Response:
    body = request.json("initiator", "remark")
    state.target(cid).auto_confirm = {**body, "activatedAt": state.now()}
    return Response(204)


@ROUTES.add("POST", "/targets/{cid}/autoConfirm/deactivate")
def deactivate(state: State, request: Request, cid: str) -> Response:
    state.target(cid).auto_confirm = None
    return Response(204)


@ROUTES.add("POST", "/targetfilters")
def make_filter(state: State, request: Request) -> Response:
    body = request.json("name", "query")
    compile_query(body["query"], TARGET_FIELDS)
    now = state.now()
    made = Filter(state.next_id("filter"), now, now, name=body["name"], query=body["query"])
    state.filters[made.id] = made
    return answer(_show(request, made), 201)


def _show(request: Request, row: Filter) -> dict[str, Any]:
    value: dict[str, Any] = {**_base(row), "id": row.id, "name": row.name, "query": row.query}
    value["autoAssignDistributionSet"] = row.ds
    value["autoAssignActionType"] = row.force_type if row.ds else None
    value["autoAssignWeight"] = e.WEIGHT if row.ds else None
    value["confirmationRequired"] = False if row.ds else None
    path = f"/targetfilters/{row.id}"
    value["_links"] = {"self": _link(request, path), "autoAssignDS": _link(request, f"{path}/autoAssignDS")}
    return value


def _filter(state: State, number: int) -> Filter:
    found = state.filters.get(number)
    if not isinstance(found, Filter):
        raise e.not_found("TargetFilterQuery", number)
    return found


@ROUTES.add("POST", "/targetfilters/{id:int}/autoAssignDS")
def auto_assign(state: State, request: Request, number: int) -> Response:
    body = request.json("id", "type")
    found = _filter(state, number)
    found.ds, found.force_type = state.set(body["id"]).id, body.get("type", "forced")
    return answer(_show(request, found))


@ROUTES.add("DELETE", "/targetfilters/{id:int}")
def delete_filter(state: State, request: Request, number: int) -> Response:
    del state.filters[_filter(state, number).id]
    return Response(204)


def step(state: State) -> None:
    """Assign what filters assign, as hawkBit's scheduler does: to targets that never had the set."""
    for row in list(state.filters.values()):
        if not isinstance(row, Filter) or row.ds is None:
            continue
        test = compile_query(row.query, TARGET_FIELDS)
        ds = state.sets[row.ds]
        for target in [t for t in state.targets.values() if test(t)]:
            if all(action.ds != ds.id for action in target.actions.values()) and target.assigned != ds.id:
                state.lock(ds)
                state.new_action(target, ds, {"type": row.force_type})
