"""The model as an HTTP server on the loopback: one trio loop in a thread, so that a test's own loop is left alone.

It can be killed and started again with its state kept, be slow, and refuse: see `kill`, `restart`, `latency_s`, `outage`,
`limit_requests` and `fail_next`.
"""

from __future__ import annotations

import base64
import json
import threading
import traceback
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httptools
import trio

from dfud.testing.ports import KeptPort
from tests.plugins.hawkbit.model import ddi, mgmt, mgmt_actions, mgmt_modules, mgmt_targets, more
from tests.plugins.hawkbit.model.entities import Problem, Unknown
from tests.plugins.hawkbit.model.rollouts import step
from tests.plugins.hawkbit.model.routes import Request, Response, answer
from tests.plugins.hawkbit.model.state import State

START_S = 120.0  # on a machine with much else to do
SCHEDULER_S = 0.1
MANAGEMENT = (mgmt_modules, mgmt_targets, mgmt_actions)  # each adds its routes to mgmt.ROUTES


@dataclass
class Failure:
    method: str
    contains: str
    response: Response | None  # None: the connection is cut, after the request was carried out
    carried_out: bool
    says: bytes = b""  # what the request's body must hold


class HawkbitModel:
    """Start with `start()`, end with `stop()`. Everything may be called from any thread.

    requests counts what came by "METHOD kind"; log keeps the last 5000 requests as (method, target of the request, status).
    """

    def __init__(
        self, *, user: str = "admin", password: str = "admin", gateway_token: str = "GW", tenant: str = "DEFAULT"
    ) -> None:
        self.user, self.password, self.gateway_token, self.tenant = user, password, gateway_token, tenant
        self.state = State(
            {
                "authentication.gatewaytoken.enabled": True,
                "authentication.gatewaytoken.key": gateway_token,
                "authentication.targettoken.enabled": True,
                "pollingTime": "00:00:05",
            }
        )
        self.unknown: list[str] = []
        self.errors: list[str] = []
        self.requests: Counter[str] = Counter()
        self.log: deque[tuple[str, str, int]] = deque(maxlen=5000)
        self.forwarded: set[str] = set()  # what X-Forwarded-For has named
        self.latency_s = 0.0
        self.outage: int | None = None  # a status that everything is answered with
        self.frozen = False  # requests are taken and not answered, as by a process that is stopped
        self.client_limit = 10  # requests a second of one client that X-Forwarded-For names, with others than 127.*
        self._clients: Counter[tuple[str, int]] = Counter()
        self.limit_requests: int | None = None  # so many more are let through, then 429 with an empty body
        self._kept = KeptPort()  # it comes back on it
        self.port = self._kept.number
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._broken: BaseException | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Life

    def start(self) -> None:
        self._ready.clear()
        self._thread = threading.Thread(target=self._main, name="hawkbit-model", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_S) or self._broken is not None:
            raise RuntimeError(f"the model did not start: {self._broken}")

    def kill(self) -> None:
        """Be gone at once, open connections included; the state stays for `restart`."""
        if self._thread is None or self._token is None or self._scope is None:
            return
        scope = self._scope
        self._token.run_sync_soon(scope.cancel)
        self._thread.join(START_S)
        self._thread = None

    def restart(self) -> None:
        """Come back on the same port."""
        self.start()

    stop = kill

    def fail_next(
        self,
        method: str,
        contains: str,
        response: Response | None = None,
        *,
        carried_out: bool = False,
        times: int = 1,
        says: bytes = b"",
    ) -> None:
        """Answer the next request of this method whose path contains this with `response` (None: cut the connection).

        carried_out: the request has its effect all the same, only its answer is lost.
        """
        with self._lock:
            self._failures += [Failure(method, contains, response, carried_out, says)] * times

    def fail_next_clear(self) -> None:
        """Answer again as ever."""
        with self._lock:
            self._failures.clear()

    # HTTP

    def _main(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._broken = error
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1", backlog=1024)
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            nursery.start_soon(self._schedule)
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            self._ready.set()

    async def _schedule(self) -> None:
        while True:
            with self._lock:
                step(self.state)
                more.step(self.state)
            await trio.sleep(SCHEDULER_S)

    async def _connection(self, stream: trio.SocketStream) -> None:
        reader = _Reader()
        try:
            while data := await stream.receive_some(1 << 16):
                if reader.feed(data):
                    await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                while reader.done:
                    request, keep = reader.done.popleft()
                    if self.latency_s:
                        await trio.sleep(self.latency_s)
                    while self.frozen:
                        await trio.sleep(0.02)
                    response = self.handle(request)
                    if response is None:
                        return
                    await stream.send_all(_encode(request, response, keep))
                    if not keep:
                        return
        except (trio.BrokenResourceError, httptools.HttpParserError):
            return
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def handle(self, request: Request) -> Response | None:
        """Answer one request; None: cut the connection."""
        with self._lock:
            failure = next(
                (
                    f
                    for f in self._failures
                    if f.method == request.method and f.contains in request.path and f.says in request.body
                ),
                None,
            )
            if failure is not None:
                self._failures.remove(failure)
                if failure.carried_out:
                    self._route(request)
                response = failure.response
            elif self.outage is not None:
                response = Response(self.outage)
            elif self._limited(request) or (self.limit_requests is not None and self.limit_requests <= 0):
                response = Response(429)
            else:
                if self.limit_requests is not None:
                    self.limit_requests -= 1
                response = self._route(request)
            query = "?" + "&".join(f"{k}={v}" for k, v in request.query.items()) if request.query else ""
            self.log.append((request.method, request.path + query, response.status if response else 0))
            return response

    def _limited(self, request: Request) -> bool:
        client = request.headers.get("x-forwarded-for", "127.0.0.1")
        self.forwarded |= {client} if "x-forwarded-for" in request.headers else set()
        if client.startswith("127."):
            return False
        key = (client, int(self.state.clock()))
        if key not in self._clients:
            self._clients.clear()
        self._clients[key] += 1
        return self._clients[key] > self.client_limit + 2

    def _route(self, request: Request) -> Response:
        try:
            return self._routed(request)
        except Problem as problem:
            if problem.status == 401 and request.path.startswith("/rest/"):
                return answer({"timestamp": "", "status": 401, "error": "Unauthorized"}, 401, "application/json")
            if not problem.code:
                return Response(problem.status)
            body = {"errorCode": problem.code, "message": problem.message}
            if problem.exception:
                body = {"exceptionClass": problem.exception, **body}
            return answer(body, problem.status, "application/json")
        except Unknown as unknown:
            text = f"{request.method} {request.path} {request.query}: {unknown}"
            self.unknown.append(text)
            return Response(501, f"the model does not know: {text}".encode(), {"content-type": "text/plain"})
        except Exception:
            self.errors.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return Response(501, traceback.format_exc().encode(), {"content-type": "text/plain"})

    def _routed(self, request: Request) -> Response:
        path = request.path
        if path.startswith("/rest/v1/"):
            self.requests[f"{request.method} mgmt"] += 1
            if not self._logged_in(request):
                raise Problem(401)
            handler, parts = mgmt.ROUTES.find(request.method, path[len("/rest/v1") :])
            return handler(self.state, request, *parts)
        tenant, _, rest = path[1:].partition("/controller/v1")
        if rest:
            self.requests[f"{request.method} ddi"] += 1
            handler, parts = ddi.ROUTES.find(request.method, rest)
            if tenant != self.tenant:
                raise Problem(401)
            ddi.authorize(self.state, request, parts[0])
            return handler(self.state, request, *parts)
        raise Unknown("no such path")

    def _logged_in(self, request: Request) -> bool:
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        wanted = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return kind == "Basic" and text == wanted


class _Reader:
    """Bytes into requests. feed() returns whether the sender waits for a go-ahead."""

    def __init__(self) -> None:
        self.done: deque[tuple[Request, bool]] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._expects = False

    def feed(self, data: bytes) -> bool:
        self._expects = False
        self._parser.feed_data(data)
        return self._expects

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._expects = self._headers.get("expect", "").lower() == "100-continue"

    def on_body(self, data: bytes) -> None:
        self._expects = False
        self._body.append(data)

    def on_message_complete(self) -> None:
        parts = urlsplit(self._target.decode("latin-1"))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        method = self._parser.get_method().decode()
        host = self._headers.get("host", "127.0.0.1")
        request = Request(method, parts.path, query, self._headers, b"".join(self._body), f"http://{host}")
        self.done.append((request, self._parser.should_keep_alive()))


_REASONS = {200: "OK", 201: "Created", 204: "No Content", 206: "Partial Content", 401: "Unauthorized", 404: "Not Found"}


def _encode(request: Request, response: Response, keep: bool) -> bytes:
    headers = dict(response.headers)
    body = response.body
    headers["content-length"] = str(len(body))
    if request.method == "HEAD":
        body = b""
    if response.status == 204:
        del headers["content-length"]
    if response.status == 401 and response.body:
        headers["www-authenticate"] = 'Basic realm="hawkBit"'
    headers["date"] = _date()
    if not keep:
        headers["connection"] = "close"
    head = f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\n"
    return (head + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n").encode("latin-1") + body


def _date() -> str:
    import email.utils

    return email.utils.formatdate(usegmt=True)


def read_json(response: Response) -> Any:
    return json.loads(response.body) if response.body else None
