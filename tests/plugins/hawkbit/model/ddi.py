"""The device interface (DDI) of the model."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from tests.plugins.hawkbit.model import entities as e
from tests.plugins.hawkbit.model import markup
from tests.plugins.hawkbit.model.ranges import served
from tests.plugins.hawkbit.model.routes import Request, Response, Routes, answer, bad_body
from tests.plugins.hawkbit.model.state import SERVER, State

ROUTES = Routes()
_PARTS = {"application": "bApp", "runtime": "jvm"}
_EXECUTIONS = ("closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download")


def authorize(state: State, request: Request, cid: str) -> None:
    """Raise Problem 401 unless the request carries the gateway's token or the target's own."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind == "GatewayToken" and state.setting("authentication.gatewaytoken.enabled"):
        if token and token == state.setting("authentication.gatewaytoken.key"):
            return
    if kind == "TargetToken" and state.setting("authentication.targettoken.enabled"):
        target = state.targets.get(cid)
        if target is not None and token == target.token:
            return
    raise e.Problem(401)


def _base(request: Request, cid: str) -> str:
    tenant = request.path.split("/")[1]
    return f"{request.base}/{tenant}/controller/v1/{quote(cid, safe='')}"


def _address(forwarded: str) -> str:
    """Return what hawkBit keeps as a target's address. Source: IpUtil of 1.0.4, which knows IPv6 in full length only."""
    four = re.search(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", forwarded)
    six = re.search(r"(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}", forwarded)
    host = four[0] if four else f"[{six[0]}]" if six else "127.0.0.1"
    return f"http://{host}"


def _hash(action: e.Action, state: State) -> int:
    """A number that changes when what is offered does."""
    return hash((action.id, action.status, action.force_type, action.weight)) & 0x7FFFFFFF


@ROUTES.add("GET", "/{cid}")
def base(state: State, request: Request, cid: str) -> Response:
    request.only()
    target = state.poll(cid, _address(request.headers.get("x-forwarded-for", "")))
    action = state.top(target)
    at = _base(request, cid)
    links: dict[str, Any] = {}
    if action is not None:
        state.lapse(action)
        query = f"?c={_hash(action, state)}"
        if action.status == "wait_for_confirmation":
            links["confirmationBase"] = {"href": f"{at}/confirmationBase/{action.id}{query}"}
        elif action.canceling:
            links["cancelAction"] = {"href": f"{at}/cancelAction/{action.id}"}
        else:
            links["deploymentBase"] = {"href": f"{at}/deploymentBase/{action.id}{query}"}
    if target.installed is not None:
        done = [a for a in target.actions.values() if a.ds == target.installed and a.status == "finished"]
        if done:
            links["installedBase"] = {"href": f"{at}/installedBase/{max(a.id for a in done)}"}
    if target.request_attributes:
        links["configData"] = {"href": f"{at}/configData"}
    value: dict[str, Any] = {"config": {"polling": {"sleep": state.setting("pollingTime")}}}
    if links:
        value["_links"] = links
    return answer(value)


def _deployment(state: State, request: Request, action: e.Action) -> dict[str, Any]:
    at = _base(request, action.target.cid)
    forced = action.force_type in ("forced", "downloadonly") or (
        action.force_type == "timeforced" and state.now() >= (action.force_time or 0)
    )
    handling = "forced" if forced else "attempt"
    open_ = state.window_open(action)
    value: dict[str, Any] = {"download": handling, "update": handling}
    if action.force_type == "downloadonly" or open_ is False:
        value["update"] = "skip"
    chunks = []
    for number in state.sets[action.ds].modules:
        module = state.modules[number]
        chunk: dict[str, Any] = {
            "part": _PARTS.get(module.type, module.type),
            "version": module.version,
            "name": module.name,
        }
        chunk["artifacts"] = [
            _artifact(f"{at}/softwaremodules/{number}/artifacts", a) for a in module.artifacts.values()
        ]
        metadata = [{"key": k, "value": v} for k, (v, visible) in module.metadata.items() if visible]
        if metadata:
            chunk["metadata"] = metadata
        chunks.append(chunk)
    value["chunks"] = chunks
    if open_ is not None:
        value["maintenanceWindow"] = "available" if open_ else "unavailable"
    return value


def _artifact(at: str, artifact: e.Artifact) -> dict[str, Any]:
    href = f"{at}/{quote(artifact.filename)}"
    links = {}
    scheme = href.partition(":")[0]
    kinds = ("download", "md5sum") if scheme == "https" else ("download-http", "md5sum-http")
    for kind, suffix in zip(kinds, ("", ".MD5SUM"), strict=True):
        links[kind] = {"href": href + suffix}
    hashes = {"sha1": artifact.sha1, "md5": artifact.md5, "sha256": artifact.sha256}
    return {"filename": artifact.filename, "hashes": hashes, "size": len(artifact.data), "_links": links}


def _history(request: Request, action: e.Action) -> dict[str, Any]:
    count = int(request.query.get("actionHistory", 0))
    count = 100 if count < 0 or count > 100 else count
    said = [m for entry in reversed(action.history) for m in entry.messages if not m.startswith(SERVER)][:count]
    return {"actionHistory": {"status": action.status.upper(), "messages": said}} if said else {}


@ROUTES.add("GET", "/{cid}/deploymentBase/{aid:int}")
def deployment_base(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only("c", "actionHistory")
    action = state.action(state.target(cid), aid)
    state.lapse(action)
    if action.canceling or action.status == "wait_for_confirmation":
        return Response(404)
    value = {"id": str(aid), "deployment": _deployment(state, request, action), **_history(request, action)}
    state.retrieved(action, "Target retrieved update action and should start now the download.")
    return answer(value)


@ROUTES.add("GET", "/{cid}/installedBase/{aid:int}")
def installed_base(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only("actionHistory")
    action = state.action(state.target(cid), aid)
    if action.active or action.canceling:
        return Response(404)
    return answer({"id": str(aid), "deployment": _deployment(state, request, action), **_history(request, action)})


def _feedback(request: Request) -> tuple[str, str, list[str], int | None, int | None]:
    """Return (execution, finished, details, code, timestamp). Fields that hawkBit ignores are ignored."""
    try:
        body = json.loads(request.body)
        status = body["status"]
        execution = status["execution"]
        finished = status["result"]["finished"]
        details = status.get("details") or []
        if execution not in _EXECUTIONS or finished not in ("success", "failure", "none"):
            raise ValueError
        return execution, finished, [str(line) for line in details], status.get("code"), body.get("timestamp")
    except (ValueError, KeyError, TypeError):
        raise bad_body() from None


@ROUTES.add("POST", "/{cid}/deploymentBase/{aid:int}/feedback")
def feedback(state: State, request: Request, cid: str, aid: int) -> Response:
    execution, finished, details, code, at = _feedback(request)
    action = state.action(state.target(cid), aid)
    if action.status == "wait_for_confirmation":
        return Response(404)
    if not action.active:
        return Response(410)
    if code is not None:
        details.append(f"Device reported status code: {code}")
    kind = {"canceled": "canceled", "rejected": "warning", "download": "download", "downloaded": "downloaded"}.get(
        execution, "running"
    )
    said = {
        "canceled": "Target confirmed cancellation.",
        "rejected": "Target REJECTED update",
        "download": "Target confirmed download start",
        "downloaded": "Target confirmed download finished",
    }.get(execution, f"Target reported {execution.upper()}")
    if execution == "closed":
        kind, said = (
            ("error", "Target reported CLOSED with ERROR!")
            if finished == "failure"
            else ("finished", "Target reported CLOSED with OK!")
        )
    markup.check(details, "addUpdateActionStatus")
    state.feedback(action, kind, details or [SERVER + said + "."], code, at)
    return Response(200)


@ROUTES.add("GET", "/{cid}/cancelAction/{aid:int}")
def cancel_action(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only()
    action = state.action(state.target(cid), aid)
    if not action.canceling:
        return Response(404)
    state.retrieved(action, "Target retrieved cancel action and should start now the cancellation.")
    return answer({"id": str(aid), "cancelAction": {"stopId": str(aid)}})


@ROUTES.add("POST", "/{cid}/cancelAction/{aid:int}/feedback")
def cancel_feedback(state: State, request: Request, cid: str, aid: int) -> Response:
    execution, finished, details, code, at = _feedback(request)
    action = state.action(state.target(cid), aid)
    messages = []
    kind = "running"
    if execution == "canceled":
        kind = "warning"
        messages.append(SERVER + "Target reported cancel for a cancel which is not supported by the server.")
    elif execution == "rejected":
        kind = "cancel_rejected"
        messages.append(SERVER + "Target rejected the cancellation request.")
    elif execution == "closed":
        kind = "error" if finished == "failure" else "canceled"
        said = "Target was not able to complete cancellation" if kind == "error" else "Cancellation confirmed"
        messages.append(f"{SERVER}{said}.")
    messages += details
    if code is not None:
        messages.append(f"Device reported status code: {code}")
    markup.check(messages, "addCancelActionStatus")
    state.cancel_feedback(action, kind, messages, code, at)
    return Response(200)


@ROUTES.add("PUT", "/{cid}/configData")
def config_data(state: State, request: Request, cid: str) -> Response:
    try:
        body = json.loads(request.body)
        data, mode = body["data"], body.get("mode") or "merge"
        if mode not in ("merge", "replace", "remove"):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise bad_body() from None
    target = state.target(cid)
    if any(len(str(text)) > e.ATTRIBUTE_CHARS for pair in data.items() for text in pair if text is not None):
        raise e.Problem(400, "hawkbit.server.error.repo.invalidTargetAttributes", "too long")
    new = {} if mode == "replace" else dict(target.attributes)
    for key, value in data.items():
        if mode == "remove" or value is None:
            new.pop(key, None)
        else:
            new[key] = str(value)
    if len(new) > e.ATTRIBUTES_MAX:
        raise e.quota("Attribute", "Target", target.id, e.ATTRIBUTES_MAX, len(new))
    target.attributes = new
    if mode != "remove":
        target.request_attributes = False
    return Response(200)


@ROUTES.add("PUT", "/{cid}/installedBase")
def installed(state: State, request: Request, cid: str) -> Response:
    body = request.json("name", "version")
    found = [s for s in state.sets.values() if (s.name, s.version) == (body["name"], body["version"]) and not s.deleted]
    if not found:
        raise e.not_found("DistributionSet", f"{body['name']}:{body['version']}")
    done = state.assign(found[0], [{"id": cid}], offline=True, by=cid)
    return Response(200 if done["alreadyAssigned"] else 201)


@ROUTES.add("GET", "/{cid}/confirmationBase/{aid:int}")
def confirmation_base(state: State, request: Request, cid: str, aid: int) -> Response:
    request.only("c", "actionHistory")
    action = state.action(state.target(cid), aid)
    if action.status != "wait_for_confirmation":
        return Response(404)
    return answer({"id": str(aid), "confirmation": _deployment(state, request, action), **_history(request, action)})


@ROUTES.add("POST", "/{cid}/confirmationBase/{aid:int}/feedback")
def confirmation_feedback(state: State, request: Request, cid: str, aid: int) -> Response:
    body = request.json("confirmation", "code", "details")
    said = body.get("confirmation")
    if said not in ("confirmed", "denied"):
        raise bad_body()
    action = state.action(state.target(cid), aid)
    state.confirm(action, said == "confirmed", body.get("details") or [], body.get("code"))
    return Response(200)


@ROUTES.add("GET", "/{cid}/softwaremodules/{mid:int}/artifacts")
def list_artifacts(state: State, request: Request, cid: str, mid: int) -> Response:
    target, module = state.target(cid), state.module(mid)
    _action_with(state, target, mid)
    at = f"{_base(request, cid)}/softwaremodules/{mid}/artifacts"
    return answer([_artifact(at, artifact) for artifact in module.artifacts.values()])


def _action_with(state: State, target: e.Target, mid: int) -> e.Action:
    """Return an open action of this target's with this module."""
    for action in target.open.values():
        if not action.canceling and mid in state.sets[action.ds].modules:
            return action
    raise e.Problem(
        404, "hawkbit.server.error.repo.entityNotFound", f"Software Module {mid} is not assigned to {target.cid}"
    )


@ROUTES.add("GET", "/{cid}/softwaremodules/{mid:int}/artifacts/{name}")
def download(state: State, request: Request, cid: str, mid: int, name: str) -> Response:
    target, module = state.target(cid), state.module(mid)
    found = [a for a in module.artifacts.values() if a.filename == name]
    if not found:
        return Response(404)
    action = _action_with(state, target, mid)
    if "range" not in request.headers:
        message = [f"{SERVER}Target downloads {request.path}"]
        state.check_quota(action, "download", message)
        state.note(action, "download", message)
    return served(request, found[0])
