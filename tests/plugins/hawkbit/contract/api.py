"""Requests to a hawkBit that are kept, with what was answered, so that they can be recorded and replayed."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.plugins.hawkbit.contract.symbols import Symbols
from tests.plugins.hawkbit.server import Hawkbit

WAIT_S = 90.0
Settings = Callable[[dict[str, Any]], None]  # see the fixture
HEADERS = ("etag", "content-range", "accept-ranges", "retry-after", "www-authenticate", "location")


@dataclass
class Answer:
    status: int
    body: Any  # JSON, text, or None for nothing
    raw: bytes
    headers: httpx.Headers


@dataclass
class Exchange:
    """A request and its answer, with symbols. quiet: the body was not looked at; until: it took several tries."""

    request: dict[str, Any]
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    quiet: bool = False
    until: bool = False
    times: int = 1

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"request": self.request, "status": self.status}
        if self.headers:
            value["headers"] = self.headers
        if not self.quiet and self.body is not None:
            value["body"] = self.body
        if self.quiet:
            value["quiet"] = True
        if self.until:
            value["until"] = True
        if self.times > 1:
            value["times"] = self.times
        return value


class Api:
    """One scenario on one server. Everything that it makes has `run` in its name."""

    def __init__(self, server: Hawkbit, run: str = "") -> None:
        self.server = server
        self.run = run or "x" + secrets.token_hex(4)
        self.symbols = Symbols(server.url, self.run, {"user": server.user} if server.user != "admin" else {})
        self.exchanges: list[Exchange] = []
        self.tokens: dict[str, str] = {}
        self.client = httpx.Client(base_url=server.url, timeout=60.0, trust_env=False)

    def name(self, text: str) -> str:
        return f"{text}-{self.run}"

    # Requests

    def mgmt(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        return self._do({"api": "mgmt", "method": method, "path": path, "auth": "user"}, body, options)

    def ddi(self, method: str, cid: str, path: str = "", body: Any = None, **options: Any) -> Answer:
        return self._do({"api": "ddi", "method": method, "path": f"/{cid}{path}", "auth": "gateway"}, body, options)

    def until(self, good: Callable[[Answer], bool], method: str, path: str, **options: Any) -> Answer:
        """Ask the Management API again and again until the answer is good."""
        pause_s = options.pop("pause_s", 0.05)
        return self._until(good, lambda: self.mgmt(method, path, **options), pause_s)

    def until_ddi(
        self, good: Callable[[Answer], bool], method: str, cid: str, path: str = "", **options: Any
    ) -> Answer:
        return self._until(good, lambda: self.ddi(method, cid, path, **options))

    def _until(self, good: Callable[[Answer], bool], ask: Callable[[], Answer], pause_s: float = 0.05) -> Answer:
        limit = time.monotonic() + WAIT_S
        while True:
            found = ask()
            if good(found):
                self.exchanges[-1].until = True
                return found
            assert time.monotonic() < limit, f"still {found.status} {found.raw[:500]!r}"
            self.exchanges.pop()
            time.sleep(pause_s)

    def _do(self, request: dict[str, Any], body: Any, options: dict[str, Any]) -> Answer:
        quiet = options.pop("quiet", False)
        for key in ("query", "headers", "auth", "upload", "text"):
            if key in options:
                request[key] = options.pop(key)
        assert not options, options
        if body is not None:
            request["body"] = body
        answer = self._send(request)
        self._learn(answer.body)
        kept = {k: v for k, v in request.items() if k != "body"}
        kept = json.loads(self.symbols.hide_text(json.dumps(kept)))
        if "query" in kept and request["path"] == "/actions":
            kept["query"] = {k: self.symbols.hide_query(str(v)) for k, v in request["query"].items()}
        if body is not None:
            kept["body"] = self.symbols.hide(body, self._body_kind(request["path"]))
        self.exchanges.append(
            Exchange(
                kept,
                answer.status,
                self._shown(answer),
                self._hidden(request["path"], answer),
                quiet,
            )
        )
        return answer

    def _hidden(self, path: str, answer: Answer) -> Any:
        kind = ""
        if "/status" in path:
            kind = "status"
        elif "Base/" in path or "cancelAction/" in path:
            kind = "action"
        return self.symbols.hide(answer.body, kind)

    def _shown(self, answer: Answer) -> dict[str, str]:
        """The headers that matter; the ETag of JSON is an MD5 of its bytes and tells nothing."""
        names = [k for k in HEADERS if k in answer.headers]
        if len(answer.headers.get("etag", "")) != 42:
            names = [k for k in names if k != "etag"]
        return {k: self.symbols.hide_text(answer.headers[k]) for k in names}

    @staticmethod
    def _body_kind(path: str) -> str:
        kinds = {"/assignedDS": "set", "/autoAssignDS": "set", "/assignedSM": "module"}
        return next((kind for end, kind in kinds.items() if path.endswith(end)), "")

    def _send(self, request: dict[str, Any]) -> Answer:
        prefix = "/rest/v1" if request["api"] == "mgmt" else f"/{self.server.tenant}/controller/v1"
        headers = {"accept": "application/hal+json", **request.get("headers", {})}
        options: dict[str, Any] = {"headers": headers}
        self._authorize(request["auth"], options)
        if "query" in request:
            options["params"] = request["query"]
        if "body" in request:
            headers["content-type"] = "application/json"
            options["content"] = json.dumps(request["body"]).encode()
        if "text" in request:
            headers["content-type"] = "application/json"
            options["content"] = request["text"].encode()
        if "upload" in request:
            upload = request["upload"]
            options["files"] = {"file": (upload["filename"], upload["content"].encode() * upload.get("times", 1))}
        found = self.client.request(request["method"], prefix + request["path"], **options)
        kind = found.headers.get("content-type", "")
        body: Any = None
        if "json" in kind and found.content:
            body = found.json()
        elif found.content:
            body = found.text if len(found.content) < 200 else f"{len(found.content)} bytes"
        return Answer(found.status_code, body, found.content, found.headers)

    def _authorize(self, how: str, options: dict[str, Any]) -> None:
        headers = options["headers"]
        if how == "user":
            options["auth"] = (self.server.user, self.server.password)
        elif how == "wrong user":
            options["auth"] = (self.server.user, "not-" + self.server.password)
        elif how == "gateway":
            headers["authorization"] = f"GatewayToken {self.server.gateway_token}"
        elif how == "wrong gateway":
            headers["authorization"] = "GatewayToken not-it"
        elif how == "wrong target":
            headers["authorization"] = "TargetToken not-it"
        elif how.startswith("target "):
            cid = self.symbols.show_text(how.removeprefix("target "))
            headers["authorization"] = f"TargetToken {self.tokens[cid]}"
        else:
            assert how == "nobody", how

    def _learn(self, body: Any) -> None:
        for row in body if isinstance(body, list) else [body]:
            if isinstance(row, dict) and "securityToken" in row:
                self.tokens[row["controllerId"]] = row["securityToken"]

    def replay(self, kept: dict[str, Any]) -> Exchange:
        """Send a recorded request to this server. Return what it amounts to here."""
        request = {k: self.symbols.show(v) for k, v in kept["request"].items()}
        request["auth"] = kept["request"]["auth"]
        body = request.pop("body", None)
        options = {k: v for k, v in request.items() if k in ("query", "headers", "auth", "upload", "text")}
        options["quiet"] = kept.get("quiet", False)
        for _ in range(kept.get("times", 1)):
            self._do({k: request[k] for k in ("api", "method", "path")}, body, dict(options))
        return self.exchanges[-1]

    # What most scenarios begin with

    def target(self, name: str = "dev") -> str:
        cid = self.name(name)
        assert self.mgmt("POST", "/targets", [{"controllerId": cid}], quiet=True).status == 201
        return cid

    def targets(self, count: int) -> list[str]:
        cids = [self.name(f"dev{n}") for n in range(count)]
        assert self.mgmt("POST", "/targets", [{"controllerId": cid} for cid in cids], quiet=True).status == 201
        return cids

    def firmware(self, version: str = "1", *, content: str = "firmware", **values: Any) -> tuple[int, int]:
        """Return (module, set) of a set of one module with one artifact."""
        name = self.name("fw")
        rows: list[dict[str, Any]] = [{"name": name, "version": version, "type": "os"}]
        module = self.mgmt("POST", "/softwaremodules", rows, quiet=True).body[0]["id"]
        upload = {"filename": "image.bin", "content": content}
        path = f"/softwaremodules/{module}/artifacts"
        assert self.mgmt("POST", path, upload=upload, quiet=True).status == 201
        rows = [{"name": name, "version": version, "type": "os", "modules": [{"id": module}], **values}]
        return module, self.mgmt("POST", "/distributionsets", rows, quiet=True).body[0]["id"]

    def assign(self, ds: int, cid: str, **how: Any) -> int:
        """Assign a set and return the action."""
        found = self.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": ds, **how}, quiet=True)
        assert found.status == 200, found.raw
        return int(found.body["assignedActions"][0]["id"])

    def feedback(self, cid: str, action: int, execution: str, finished: str = "none", **more: Any) -> Answer:
        timestamp = {"timestamp": more.pop("timestamp")} if "timestamp" in more else {}
        quiet = more.pop("quiet", False)
        kind = more.pop("kind", "deploymentBase")
        body = {"status": {"execution": execution, "result": {"finished": finished}, **more}, **timestamp}
        return self.ddi("POST", cid, f"/{kind}/{action}/feedback", body, quiet=quiet)

    def action(self, cid: str, action: int) -> dict[str, Any]:
        found: dict[str, Any] = self.mgmt("GET", f"/targets/{cid}/actions/{action}").body
        return found

    def look(self, cid: str) -> dict[str, Any]:
        """Return a target as the Management API shows it."""
        found: dict[str, Any] = self.mgmt("GET", f"/targets/{cid}").body
        return found

    def repeat(self, times: int, method: str, cid: str, path: str, body: Any) -> None:
        """Send the same request to the device interface so many times; kept as one."""
        for n in range(times):
            assert self.ddi(method, cid, path, body, quiet=True).status == 200, n
            if n:
                self.exchanges.pop()
        self.exchanges[-1].times = times
