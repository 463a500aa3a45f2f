"""One hawkBit, its Management API and its device interface (DDI), by httpx under trio. Every request is counted."""

from __future__ import annotations

import email.utils
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import trio

from dfud.api import ConfigError, PeerError, StoreError
from dfud_hawkbit.answers import (
    Action,
    Assigned,
    Named,
    Offer,
    Order,
    decode_error_untrusted,
    decode_offer_untrusted,
    decode_order_untrusted,
    decode_rows_untrusted,
    decode_untrusted,
)
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.names import quoted

T = TypeVar("T")
PAGE = 500  # hawkBit cuts larger ones silently
QUOTA = "hawkbit.server.error.quota."
ANSWER_MAX_BYTES = 16 << 20


class Away(StoreError):
    """hawkBit cannot be asked now; asking again later is right. retry_after_s: what it said itself, or 0.

    everywhere: nothing else can be asked either; else it may be this one request that it stumbles over.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0, *, everywhere: bool = True) -> None:
        super().__init__(message, retryable=True)
        self.retry_after_s = retry_after_s
        self.everywhere = everywhere


class Refused(StoreError):
    """hawkBit understood and said no; the same request would be refused again."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @property
    def quota(self) -> bool:
        return self.code.startswith(QUOTA)


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    date_s: float  # hawkBit's own clock, 0 if it did not say

    def read(self, kind: type[T], what: str) -> T:
        found: T = _peer(decode_untrusted, self.body, kind, what)
        return found


def _peer(decode: Any, *arguments: Any) -> Any:
    """Call a decoder; what hawkBit says wrongly is hawkBit being away: it may be a proxy's page."""
    try:
        return decode(*arguments)
    except PeerError as error:
        raise Away(str(error), everywhere=False) from None


class Client:
    """Raises Away and Refused, nothing else but cancellation. `requests` counts by kind of call."""

    def __init__(self, config: HawkbitConfig, password: str, token: str) -> None:
        self._config = config
        self._password = password
        self._token = token
        self._limiter = trio.CapacityLimiter(config.connections)
        self._http: httpx.AsyncClient | None = None
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        tenant = quote(config.tenant, safe="")
        self._ddi = f"/{tenant}/controller/v1/"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be usable within. Raises ConfigError for a CA file that cannot be read."""
        config = self._config
        verify: ssl.SSLContext | bool = True
        if config.ca_file:
            try:
                verify = ssl.create_default_context(cafile=config.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"[store.hawkbit] ca_file {config.ca_file}: {error}") from error
        limits = httpx.Limits(max_connections=config.connections, max_keepalive_connections=config.connections)
        async with httpx.AsyncClient(
            base_url=config.url.rstrip("/"), timeout=config.timeout_s, verify=verify, limits=limits, trust_env=False
        ) as http:
            self._http = http
            yield

    async def _send(self, kind: str, method: str, path: str, headers: dict[str, str], **options: Any) -> Answer:
        if self._http is None:
            raise Away("hawkBit is not being talked to yet")
        async with self._limiter:
            self.requests[kind] += 1
            try:
                headers = {"accept": "application/hal+json, application/json", **headers}
                answer = await self._http.request(method, path, headers=headers, **options)
            except httpx.HTTPError as error:
                self.failures["unreachable"] += 1
                raise Away(f"hawkBit at {self._config.url} cannot be reached: {type(error).__name__}") from None
        if len(answer.content) > ANSWER_MAX_BYTES:
            raise Away(f"hawkBit answered {len(answer.content)} bytes, expected at most {ANSWER_MAX_BYTES}")
        self._check(kind, method, answer.status_code, answer.headers, answer.content)
        return Answer(answer.status_code, answer.content, _date(answer.headers))

    def _check(self, kind: str, method: str, status: int, headers: httpx.Headers, body: bytes) -> None:
        if status < 400:
            return
        code, message = decode_error_untrusted(body)
        self.failures[code or str(status)] += 1
        if status == 401 or (status == 403 and not code):
            which = "gateway_token_file" if kind.startswith("ddi") else "user or password_file"
            raise Away(f"hawkBit does not accept [store.hawkbit] {which} (HTTP {status})")
        # A quota says so by its code and stays; without one it is the limiter of requests, and passes.
        if status in (408, 409, 423, 425) and not code:
            raise Away(f"hawkBit answered {status} to {kind}", everywhere=False)
        limited = status == 429 and not code.startswith(QUOTA)
        if status >= 500 or limited or code.endswith(".concurrentModification"):
            said = f"hawkBit answered {status} {code} to {kind}".replace("  ", " ")
            raise Away(said, _retry_after(headers), everywhere=limited or status in (502, 503, 504))
        raise Refused(f"hawkBit refused {kind}: {message or code or f'HTTP {status}'}", status, code)

    # The Management API

    async def mgmt(self, kind: str, method: str, path: str, body: Any = None, **query: Any) -> Answer:
        """One request. body: to be sent as JSON, unless None."""
        options: dict[str, Any] = {"params": query} if query else {}
        headers = {}
        if body is not None:
            options["content"] = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        auth = httpx.BasicAuth(self._config.user, self._password)
        return await self._send(f"mgmt {kind}", method, f"/rest/v1{path}", headers, auth=auth, **options)

    async def pages(self, kind: str, path: str, row: type[T], **query: Any) -> AsyncIterator[list[T]]:
        """Yield the rows of a list page by page, by ascending id."""
        offset = 0
        while True:
            answer = await self.mgmt(kind, "GET", path, limit=PAGE, offset=offset, **query)
            rows, total = _peer(decode_rows_untrusted, answer.body, row, kind)
            yield rows
            offset += len(rows)
            if not rows or offset >= total:
                return

    async def actions(self, query: str, offset: int = 0) -> tuple[list[Action], int, float]:
        """Return (rows, how many in all, hawkBit's clock) of the actions that match."""
        answer = await self.mgmt(
            "feed", "GET", "/actions", q=query, sort="id:ASC", limit=PAGE, offset=offset, representation="full"
        )
        rows, total = _peer(decode_rows_untrusted, answer.body, Action, "list of actions")
        return rows, total, answer.date_s

    async def assign(self, set_id: int, targets: Sequence[str], **how: Any) -> Assigned:
        body = [{"id": target, **how} for target in targets]
        answer = await self.mgmt("assign", "POST", f"/distributionsets/{set_id}/assignedTargets", body)
        return answer.read(Assigned, "assignment")

    async def upload(self, module: int, filename: str, content: AsyncIterator[bytes], size: int, sha256: str) -> None:
        """Send an artifact without holding it in memory; hawkBit compares the SHA-256."""
        boundary = "dfud" + sha256[:32]
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        async def body() -> AsyncIterator[bytes]:
            yield head
            async for data in content:
                yield data
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
        }
        auth = httpx.BasicAuth(self._config.user, self._password)
        path = f"/rest/v1/softwaremodules/{module}/artifacts"
        query = {"filename": filename, "sha256sum": sha256}
        await self._send("mgmt upload", "POST", path, headers, content=body(), params=query, auth=auth)

    async def download(self, module: int, artifact: int) -> AsyncIterator[bytes]:
        """Yield an artifact's bytes."""
        if self._http is None:
            raise Away("hawkBit is not being talked to yet")
        path = f"/rest/v1/softwaremodules/{module}/artifacts/{artifact}/download"
        auth = httpx.BasicAuth(self._config.user, self._password)
        self.requests["mgmt download"] += 1
        try:
            async with self._http.stream("GET", path, auth=auth) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    self._check("mgmt download", "GET", answer.status_code, answer.headers, answer.content)
                async for data in answer.aiter_bytes(1 << 16):
                    yield data
        except httpx.HTTPError as error:
            self.failures["unreachable"] += 1
            raise Away(f"hawkBit broke off a download: {type(error).__name__}") from None

    async def first(self, kind: str, path: str, name: str, version: str, key: str = "") -> Named | None:
        """Return the module or set of this name, version and (with key) type; exactly that, whatever the query matched."""
        query = f"name=={quoted(name)};version=={quoted(version)}"
        async for rows in self.pages(kind, path, Named, q=query, sort="id:ASC"):
            for row in rows:
                if (row.name, row.version) == (name, version) and not row.deleted and key in ("", row.type):
                    return row
        return None

    # The device interface

    async def _device(self, kind: str, method: str, target: str, path: str, body: Any = None) -> Answer:
        options: dict[str, Any] = {}
        headers = {"authorization": f"GatewayToken {self._token}"}
        if body is not None:
            options["content"] = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        return await self._send(
            f"ddi {kind}", method, f"{self._ddi}{quote(target, safe=':')}{path}", headers, **options
        )

    async def offer(self, target: str) -> Offer:
        """Ask what hawkBit wants of a device; registers it if it is unknown, and moves its last contact."""
        found: Offer = _peer(decode_offer_untrusted, (await self._device("poll", "GET", target, "")).body)
        return found

    async def order(self, target: str, offer: Offer) -> Order | None:
        """Read an action; the first time that hawkBit notes it as retrieved. None: it is not on offer any more."""
        try:
            answer = await self._device("retrieve", "GET", target, offer.path)
        except Refused as refused:
            if refused.status in (404, 410):
                return None
            raise
        found: Order = _peer(decode_order_untrusted, answer.body)
        return found

    async def feedback(self, target: str, kind: str, action: int, body: dict[str, Any]) -> bool:
        """Send feedback to "deploymentBase", "cancelAction" or "confirmationBase". False: the action is over or gone."""
        try:
            await self._device("feedback", "POST", target, f"/{kind}/{action}/feedback", body)
        except Refused as refused:
            if refused.status in (404, 410):
                return False
            raise
        return True

    async def attributes(self, target: str, data: dict[str, str]) -> None:
        await self._device("attributes", "PUT", target, "/configData", {"mode": "replace", "data": data})

    async def installed(self, target: str, name: str, version: str) -> None:
        """Tell what runs on a device that has no action."""
        await self._device("installed", "PUT", target, "/installedBase", {"name": name, "version": version})


def _date(headers: httpx.Headers) -> float:
    try:
        return email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (TypeError, ValueError):
        return 0.0


def _retry_after(headers: httpx.Headers) -> float:
    text = headers.get("retry-after", "")
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else 0.0
