"""The Management API of the model."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any
from urllib.parse import quote

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.query import compile_query
from tests.plugins.hawkbit.model.ranges import served
from tests.plugins.hawkbit.model.routes import Request, Response, Routes, answer, in_order, page
from tests.plugins.hawkbit.model.state import State, next_start

ROUTES = Routes()
PAGED = ("q", "sort", "limit", "offset")
_MODULE_TYPES = {"os": (1, "OS"), "application": (2, "Application")}
_SET_TYPES = {"app": (1, "App(s) only"), "os": (2, "OS only"), "os_app": (3, "OS with app(s)")}
ACTION_FIELDS = {
    "id": lambda a: a.id,
    "active": lambda a: a.active,
    "status": lambda a: a.status,
    "weight": lambda a: a.weight,
    "createdAt": lambda a: a.created_at,
    "lastModifiedAt": lambda a: a.modified_at,
    "lastStatusCode": lambda a: a.last_code,
    "target.controllerId": lambda a: a.target.cid,
    "target.name": lambda a: a.target.name,
    "distributionSet.id": lambda a: a.ds,
    "rollout.id": lambda a: a.rollout.id if a.rollout else None,
    "rollout.name": lambda a: a.rollout.name if a.rollout else None,
}
TARGET_FIELDS = {
    "id": lambda t: t.cid,
    "controllerId": lambda t: t.cid,
    "name": lambda t: t.name,
    "updateStatus": lambda t: t.update_status,
    "createdAt": lambda t: t.created_at,
    "lastModifiedAt": lambda t: t.modified_at,
    "group": lambda t: t.group,
    "attribute.*": lambda t: t.attributes,
    "metadata.*": lambda t: t.metadata,
}
MODULE_FIELDS = {
    "id": lambda m: m.id,
    "name": lambda m: m.name,
    "version": lambda m: m.version,
    "type": lambda m: m.type,
}


def _base(row: e.Base) -> dict[str, Any]:
    return {
        "createdBy": row.created_by,
        "createdAt": row.created_at,
        "lastModifiedBy": row.modified_by,
        "lastModifiedAt": row.modified_at,
    }


def _link(request: Request, path: str, name: str | None = None) -> dict[str, str]:
    found = {"href": f"{request.base}/rest/v1{path}"}
    if name is not None:
        found["name"] = name
    return found


def _rows(request: Request, rows: list[Any], fields: Any) -> list[Any]:
    if "q" in request.query:
        test = compile_query(request.query["q"], fields)
        rows = [row for row in rows if test(row)]
    return in_order(request, rows)


def _taken(kind: str) -> e.Problem:
    return e.Problem(
        409, "hawkbit.server.error.repo.entityAlreadyExists", f"The given {kind} already exists in database."
    )


# Software modules


def show_module(request: Request, module: e.Module) -> dict[str, Any]:
    value = _base(module)
    value["name"] = module.name
    if module.description is not None:
        value["description"] = module.description
    value["id"] = module.id
    value["version"] = module.version
    value["type"] = module.type
    value["typeName"] = _MODULE_TYPES[module.type][1]
    if module.vendor is not None:
        value["vendor"] = module.vendor
    value |= {
        "encrypted": False,
        "locked": module.locked,
        "deleted": module.deleted,
        "complete": True,
    }
    value["_links"] = {"self": _link(request, f"/softwaremodules/{module.id}")}
    return value


@ROUTES.add("POST", "/softwaremodules")
def make_modules(state: State, request: Request) -> Response:
    made = []
    for row in request.json("name", "version", "type", "vendor", "description", rows=True):
        if row["type"] not in _MODULE_TYPES:
            raise e.not_found("SoftwareModuleType", row["type"])
        taken = any(
            (m.name, m.version, m.type) == (row["name"], row["version"], row["type"]) for m in state.modules.values()
        )
        if taken:
            raise _taken("SoftwareModule")
        now = state.now()
        module = e.Module(state.next_id("module"), now, now, **row)
        state.modules[module.id] = module
        made.append(show_module(request, module))
    return answer(made, 201)


@ROUTES.add("GET", "/softwaremodules")
def list_modules(state: State, request: Request) -> Response:
    request.only(*PAGED)
    rows = _rows(request, [m for m in state.modules.values() if not m.deleted], MODULE_FIELDS)
    return page(request, rows, lambda m: show_module(request, m))


@ROUTES.add("GET", "/softwaremodules/{id:int}")
def get_module(state: State, request: Request, number: int) -> Response:
    request.only()
    return answer(_whole_module(request, state.module(number)))


def _whole_module(request: Request, module: e.Module) -> dict[str, Any]:
    value = show_module(request, module)
    path = f"/softwaremodules/{module.id}"
    value["_links"]["artifacts"] = _link(request, f"{path}/artifacts")
    value["_links"]["type"] = _link(request, f"/softwaremoduletypes/{_MODULE_TYPES[module.type][0]}")
    value["_links"]["metadata"] = _link(request, f"{path}/metadata")
    return value


@ROUTES.add("DELETE", "/softwaremodules/{id:int}")
def delete_module(state: State, request: Request, number: int) -> Response:
    module = state.module(number)
    if any(number in s.modules for s in state.sets.values()):
        module.deleted = True
    else:
        del state.modules[number]
    return Response(204)


@ROUTES.add("PUT", "/softwaremodules/{id:int}")
def put_module(state: State, request: Request, number: int) -> Response:
    module = state.module(number)
    body = request.json("locked", "description", "vendor")
    for key, value in body.items():
        setattr(module, key, value)
    module.modified_at = state.now()
    return answer(_whole_module(request, module))


@ROUTES.add("GET", "/softwaremodules/{id:int}/metadata")
def list_module_metadata(state: State, request: Request, number: int) -> Response:
    request.only("limit", "offset")
    rows = sorted(state.module(number).metadata.items())
    return page(request, rows, lambda r: {"key": r[0], "value": r[1][0], "targetVisible": r[1][1]})


@ROUTES.add("POST", "/softwaremodules/{id:int}/metadata")
def make_module_metadata(state: State, request: Request, number: int) -> Response:
    module = state.module(number)
    new = dict(module.metadata)
    rows = request.json("key", "value", "targetVisible", rows=True)
    for row in rows:
        if len(row["value"]) > e.METADATA_VALUE_CHARS:
            raise e.Problem(400, "hawkbit.server.error.repo.constraintViolation", "value is too long")
        new[row["key"]] = (row["value"], bool(row.get("targetVisible")))
    if len(new) > e.METADATA_MAX:
        raise e.quota("Metadata", "SoftwareModule", number, e.METADATA_MAX, len(rows))
    module.metadata = new
    return Response(201)


@ROUTES.add("GET", "/softwaremodules/{id:int}/metadata/{key}")
def get_module_metadata(state: State, request: Request, number: int, key: str) -> Response:
    found = state.module(number).metadata.get(key)
    if found is None:
        raise e.not_found("SoftwareModuleMetadata", key)
    return answer({"key": key, "value": found[0], "targetVisible": found[1]})


@ROUTES.add("PUT", "/softwaremodules/{id:int}/metadata/{key}")
def put_module_metadata(state: State, request: Request, number: int, key: str) -> Response:
    module = state.module(number)
    body = request.json("value", "targetVisible")
    if "targetVisible" not in body:
        raise e.Unknown("metadata of a module without targetVisible")
    module.metadata[key] = (body["value"], body["targetVisible"])
    return Response(204)


@ROUTES.add("DELETE", "/softwaremodules/{id:int}/metadata/{key}")
def delete_module_metadata(state: State, request: Request, number: int, key: str) -> Response:
    if state.module(number).metadata.pop(key, None) is None:
        raise e.not_found("Metadata", key)
    return Response(204)


# Artifacts


def show_artifact(request: Request, number: int, artifact: e.Artifact) -> dict[str, Any]:
    value = _base(artifact)
    value["id"] = artifact.id
    value["hashes"] = {"sha1": artifact.sha1, "md5": artifact.md5, "sha256": artifact.sha256}
    value["providedFilename"] = artifact.filename
    value["size"] = len(artifact.data)
    value["_links"] = {"self": _link(request, f"/softwaremodules/{number}/artifacts/{artifact.id}")}
    return value


def _with_download(request: Request, number: int, artifact: e.Artifact) -> dict[str, Any]:
    value = show_artifact(request, number, artifact)
    value["_links"]["download"] = _link(request, f"/softwaremodules/{number}/artifacts/{artifact.id}/download")
    return value


def _uploaded(request: Request) -> tuple[str, bytes]:
    """Return (filename, bytes) of the multipart part `file`."""
    found = re.search(r'boundary="?([^";]+)"?', request.headers.get("content-type", ""))
    if not found:
        raise e.Unknown("an upload that is not multipart")
    mark = b"--" + found[1].encode()
    for part in request.body.split(mark)[1:-1]:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if re.search(rb'name="file"', head):
            name = re.search(rb'filename="([^"]*)"', head)
            return (name[1].decode() if name else ""), data.removesuffix(b"\r\n")
    raise e.Unknown("an upload without a part named file")


@ROUTES.add("POST", "/softwaremodules/{id:int}/artifacts")
def upload(state: State, request: Request, number: int) -> Response:
    request.only("filename", "md5sum", "sha1sum", "sha256sum")
    module = state.module(number)
    filename, data = _uploaded(request)
    filename = request.query.get("filename") or filename
    if module.locked:
        raise e.Problem(
            423, "hawkbit.server.error.locked", f"SoftwareModule with given identifier {{{number}}} is locked."
        )
    hashes = {
        "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
        "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    for kind, value in hashes.items():
        wanted = request.query.get(f"{kind}sum")
        if wanted is not None and wanted.lower() != value:
            code = f"hawkbit.server.error.artifact.uploadFailed.checksum.{kind}.match"
            raise e.Problem(400, code, "Upload of artifact failed as the provided checksum did not match")
    if any(a.filename == filename for a in module.artifacts.values()):
        raise _taken("Artifact")
    now = state.now()
    artifact = e.Artifact(state.next_id("artifact"), now, now, filename=filename, data=data, **hashes)
    module.artifacts[artifact.id] = artifact
    return answer(_with_download(request, number, artifact), 201)


@ROUTES.add("GET", "/softwaremodules/{id:int}/artifacts")
def list_artifacts(state: State, request: Request, number: int) -> Response:
    request.only()
    return answer([show_artifact(request, number, a) for a in state.module(number).artifacts.values()])


def _artifact(state: State, number: int, aid: int) -> e.Artifact:
    found = state.module(number).artifacts.get(aid)
    if found is None:
        raise e.not_found("Artifact", aid)
    return found


@ROUTES.add("GET", "/softwaremodules/{id:int}/artifacts/{aid:int}")
def get_artifact(state: State, request: Request, number: int, aid: int) -> Response:
    request.only()
    return answer(_with_download(request, number, _artifact(state, number, aid)))


@ROUTES.add("DELETE", "/softwaremodules/{id:int}/artifacts/{aid:int}")
def delete_artifact(state: State, request: Request, number: int, aid: int) -> Response:
    module = state.module(number)
    _artifact(state, number, aid)
    if module.locked:
        raise e.Problem(
            423, "hawkbit.server.error.locked", f"SoftwareModule with given identifier {{{number}}} is locked."
        )
    del module.artifacts[aid]
    return Response(204)


@ROUTES.add("GET", "/softwaremodules/{id:int}/artifacts/{aid:int}/download")
def download(state: State, request: Request, number: int, aid: int) -> Response:
    request.only()
    return served(request, _artifact(state, number, aid))


@ROUTES.add("HEAD", "/softwaremodules/{id:int}/artifacts/{aid:int}/download")
def download_head(state: State, request: Request, number: int, aid: int) -> Response:
    return served(request, _artifact(state, number, aid))


# Distribution sets


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


# Actions


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
