"""Distribution sets and targets, in the model's Management API."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.mgmt import (
    _SET_TYPES,
    PAGED,
    ROUTES,
    TARGET_FIELDS,
    _base,
    _link,
    _rows,
    _taken,
)
from tests.plugins.hawkbit.model.mgmt_modules import show_module
from tests.plugins.hawkbit.model.routes import Request, Response, answer, page
from tests.plugins.hawkbit.model.state import State


def show_set(state: State, request: Request, ds: e.DistributionSet) -> dict[str, Any]:
    value = _base(ds)
    value["name"] = ds.name
    if ds.description is not None:
        value["description"] = ds.description
    value["id"] = ds.id
    value["version"] = ds.version
    value["type"] = ds.type
    value["typeName"] = _SET_TYPES[ds.type][1]
    value |= {"complete": state.complete(ds), "locked": ds.locked, "deleted": ds.deleted, "valid": ds.valid}
    value["requiredMigrationStep"] = ds.migration
    value["modules"] = [show_module(request, state.modules[number]) for number in ds.modules]
    value["_links"] = {"self": _link(request, f"/distributionsets/{ds.id}")}
    return value


SET_FIELDS = {
    "id": lambda s: s.id,
    "name": lambda s: s.name,
    "version": lambda s: s.version,
    "type": lambda s: s.type,
    "valid": lambda s: s.valid,
}


@ROUTES.add("POST", "/distributionsets")
def make_sets(state: State, request: Request) -> Response:
    made = []
    keys = ("name", "version", "type", "description", "modules", "requiredMigrationStep")
    for row in request.json(*keys, rows=True):
        kind = row.get("type", "os_app")
        if kind not in _SET_TYPES:
            raise e.not_found("DistributionSetType", kind)
        if any((s.name, s.version) == (row["name"], row["version"]) for s in state.sets.values()):
            raise _taken("DistributionSet")
        modules = [state.module(m["id"]).id for m in row.get("modules", [])]
        now = state.now()
        ds = e.DistributionSet(state.next_id("set"), now, now, name=row["name"], version=row["version"], type=kind)
        ds.description = row.get("description")
        ds.modules = modules
        ds.migration = bool(row.get("requiredMigrationStep"))
        state.sets[ds.id] = ds
        made.append(show_set(state, request, ds))
    return answer(made, 201)


@ROUTES.add("GET", "/distributionsets")
def list_sets(state: State, request: Request) -> Response:
    request.only(*PAGED)
    rows = _rows(request, [s for s in state.sets.values() if not s.deleted], SET_FIELDS)
    return page(request, rows, lambda s: show_set(state, request, s))


@ROUTES.add("GET", "/distributionsets/{id:int}")
def get_set(state: State, request: Request, number: int) -> Response:
    request.only()
    value = show_set(state, request, state.set(number))
    path = f"/distributionsets/{number}"
    value["_links"]["modules"] = _link(request, f"{path}/assignedSM?offset=0&limit=50")
    value["_links"]["type"] = _link(request, f"/distributionsettypes/{_SET_TYPES[value['type']][0]}")
    value["_links"]["metadata"] = _link(request, f"{path}/metadata")
    return answer(value)


@ROUTES.add("DELETE", "/distributionsets/{id:int}")
def delete_set(state: State, request: Request, number: int) -> Response:
    ds = state.set(number)
    if any(a.ds == number for a in state.actions.values()):
        ds.deleted = True
    else:
        del state.sets[number]
    return Response(204)


@ROUTES.add("POST", "/distributionsets/{id:int}/assignedTargets")
def assign_targets(state: State, request: Request, number: int) -> Response:
    request.only("offline")
    keys = ("id", "type", "forcetime", "weight", "confirmationRequired", "maintenanceWindow")
    rows = request.json(*keys, rows=True)
    return _assign(state, request, state.set(number), rows)


def _assign(state: State, request: Request, ds: e.DistributionSet, rows: list[dict[str, Any]]) -> Response:
    done = state.assign(ds, rows, offline=request.query.get("offline") == "true")
    made = []
    for action in done["assignedActions"]:
        path = f"/targets/{quote(action.target.cid)}/actions/{action.id}"
        made.append({"id": action.id, "_links": {"self": _link(request, path)}})
    return answer({**done, "assignedActions": made})


# Targets


def show_target(state: State, request: Request, target: e.Target) -> dict[str, Any]:
    value = _base(target)
    value["name"] = target.name
    if target.description is not None:
        value["description"] = target.description
    value["controllerId"] = target.cid
    value["updateStatus"] = target.update_status
    if target.polled_at is not None:
        value["lastControllerRequestAt"] = target.polled_at
    if target.installed_at is not None:
        value["installedAt"] = target.installed_at
    if target.address is not None:
        value["ipAddress"] = target.address.partition("://")[2].partition("/")[0]
        value["address"] = target.address
    if target.polled_at is not None:
        following = target.polled_at + _seconds(state.setting("pollingTime")) * 1000
        late = following + _seconds(state.setting("pollingOverdueTime")) * 1000
        value["pollStatus"] = {
            "lastRequestAt": target.polled_at,
            "nextExpectedRequestAt": following,
            "overdue": state.now() > late,
        }
    value["securityToken"] = target.token
    value["requestAttributes"] = target.request_attributes
    if target.group is not None:
        value["group"] = target.group
    if state.setting("user.confirmation.flow.enabled"):
        value["autoConfirmActive"] = target.auto_confirm is not None
    value["_links"] = {"self": _link(request, f"/targets/{quote(target.cid)}")}
    return value


def _seconds(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    return (int(hours) * 60 + int(minutes)) * 60 + int(seconds)


@ROUTES.add("POST", "/targets")
def make_targets(state: State, request: Request) -> Response:
    keys = ("controllerId", "name", "securityToken", "description", "address", "requestAttributes", "group")
    rows = request.json(*keys, rows=True)
    if any(row["controllerId"] in state.targets for row in rows):
        raise _taken("Target")
    made = []
    for row in rows:
        target = state.new_target(row["controllerId"], name=row.get("name"), token=row.get("securityToken"))
        target.description = row.get("description")
        target.address = row.get("address")
        target.group = row.get("group")
        made.append(show_target(state, request, target))
    return answer(made, 201)


@ROUTES.add("GET", "/targets")
def list_targets(state: State, request: Request) -> Response:
    request.only(*PAGED)
    rows = _rows(request, list(state.targets.values()), TARGET_FIELDS)
    return page(request, rows, lambda t: show_target(state, request, t))


@ROUTES.add("GET", "/targets/{cid}")
def get_target(state: State, request: Request, cid: str) -> Response:
    request.only()
    return answer(_with_links(state, request, state.target(cid)))


def _with_links(state: State, request: Request, target: e.Target) -> dict[str, Any]:
    value = show_target(state, request, target)
    cid = target.cid
    for name in ("assignedDS", "installedDS", "attributes"):
        value["_links"][name] = _link(request, f"/targets/{quote(cid)}/{name}")
    path = f"/targets/{quote(cid)}/actions?offset=0&limit=50&sort=id%3ADESC"
    value["_links"]["actions"] = _link(request, path)
    value["_links"]["metadata"] = _link(request, f"/targets/{quote(cid)}/metadata")
    if "autoConfirmActive" in value:
        value["_links"]["autoConfirm"] = _link(request, f"/targets/{quote(cid)}/autoConfirm")
    return value


@ROUTES.add("PUT", "/targets/{cid}")
def put_target(state: State, request: Request, cid: str) -> Response:
    target = state.target(cid)
    names = {"securityToken": "token", "requestAttributes": "request_attributes"}
    for key, value in request.json("name", "description", "securityToken", "requestAttributes").items():
        setattr(target, names.get(key, key), value)
    target.modified_at = state.now()
    return answer(_with_links(state, request, target))


@ROUTES.add("DELETE", "/targets/{cid}")
def delete_target(state: State, request: Request, cid: str) -> Response:
    state.delete_target(cid)
    return Response(204)


@ROUTES.add("GET", "/targets/{cid}/attributes")
def get_attributes(state: State, request: Request, cid: str) -> Response:
    found = state.target(cid).attributes
    return answer(found) if found else Response(204)


@ROUTES.add("GET", "/targets/{cid}/metadata")
def get_target_metadata(state: State, request: Request, cid: str) -> Response:
    rows = sorted(state.target(cid).metadata.items())
    return page(request, rows, lambda row: {"key": row[0], "value": row[1]})


@ROUTES.add("POST", "/targets/{cid}/metadata")
def make_target_metadata(state: State, request: Request, cid: str) -> Response:
    target = state.target(cid)
    rows = request.json("key", "value", rows=True)
    new = {**target.metadata, **{row["key"]: row["value"] for row in rows}}
    if len(new) > e.METADATA_MAX:
        raise e.quota("Metadata", "Target", target.id, e.METADATA_MAX, len(rows))
    target.metadata = new
    return Response(201)


@ROUTES.add("PUT", "/targets/{cid}/metadata/{key}")
def put_target_metadata(state: State, request: Request, cid: str, key: str) -> Response:
    state.target(cid).metadata[key] = request.json("key", "value")["value"]
    return Response(204)


@ROUTES.add("GET", "/targets/{cid}/assignedDS")
def get_assigned(state: State, request: Request, cid: str) -> Response:
    number = state.target(cid).assigned
    return Response(204) if number is None else _whole_set(state, request, number)


@ROUTES.add("GET", "/targets/{cid}/installedDS")
def get_installed(state: State, request: Request, cid: str) -> Response:
    number = state.target(cid).installed
    return Response(204) if number is None else _whole_set(state, request, number)


def _whole_set(state: State, request: Request, number: int) -> Response:
    value = show_set(state, request, state.sets[number])
    path = f"/distributionsets/{number}"
    value["_links"]["modules"] = _link(request, f"{path}/assignedSM?offset=0&limit=50")
    value["_links"]["type"] = _link(request, f"/distributionsettypes/{_SET_TYPES[value['type']][0]}")
    value["_links"]["metadata"] = _link(request, f"{path}/metadata")
    return answer(value)


@ROUTES.add("POST", "/targets/{cid}/assignedDS")
def assign_set(state: State, request: Request, cid: str) -> Response:
    request.only("offline")
    keys = ("id", "type", "forcetime", "weight", "confirmationRequired", "maintenanceWindow")
    rows = request.json(*keys, rows=True)
    state.target(cid)
    if len(rows) != 1:
        raise e.Unknown("an assignment of several sets at once")
    return _assign(state, request, state.set(rows[0]["id"]), [{**rows[0], "id": cid}])
