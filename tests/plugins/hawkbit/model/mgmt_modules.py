"""Software modules and their artifacts, in the model's Management API."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model.mgmt import (
    _MODULE_TYPES,
    MODULE_FIELDS,
    PAGED,
    ROUTES,
    _base,
    _link,
    _rows,
    _taken,
)
from tests.plugins.hawkbit.model.ranges import served
from tests.plugins.hawkbit.model.routes import Request, Response, answer, page
from tests.plugins.hawkbit.model.state import State


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
