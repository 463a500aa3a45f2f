"""The calls of hawkBit's Management API and of its device interface (DDI) that dfud uses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from dfud.api import note
from dfud_hawkbit.answers import (
    Action,
    Assigned,
    Named,
    Offer,
    Order,
    Rows,
    decode_offer_untrusted,
    decode_order_untrusted,
    decode_rows_untrusted,
)
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.http import Answer, Answering, Http, Refused, peer
from dfud_hawkbit.names import forwarded, quoted

T = TypeVar("T")
PAGE = 500  # hawkBit cuts larger ones silently


class Client:
    """Raises Away and Refused, nothing else but cancellation."""

    def __init__(self, config: HawkbitConfig, password: str, token: str, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._auth = httpx.BasicAuth(config.user, password)
        self._token = token
        self._http = Http(config, now)
        self._ddi = f"/{quote(config.tenant, safe='')}/controller/v1/"

    @property
    def requests(self) -> Counter[str]:
        """How many requests were sent, by kind."""
        return self._http.requests

    @property
    def failures(self) -> Counter[str]:
        """How many were not answered as expected, by error code or status."""
        return self._http.failures

    @property
    def answering(self) -> Answering:
        return self._http.answering

    def open(self) -> AbstractAsyncContextManager[None]:
        """Be usable within. Raises ConfigError for a CA file that cannot be read."""
        return self._http.open()

    # The Management API

    async def mgmt(
        self, kind: str, method: str, path: str, body: Any = None, *, expect: Collection[int] = (), **query: Any
    ) -> Answer:
        """One request. body: to be sent as JSON, unless None. expect: statuses that mean done, if not the usual ones."""
        options: dict[str, Any] = {"params": query} if query else {}
        headers = {}
        if body is not None:
            options["content"] = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        return await self._http.send(
            f"mgmt {kind}", method, f"/rest/v1{path}", headers, expect=expect, auth=self._auth, **options
        )

    async def pages(self, kind: str, path: str, row: type[T], **query: Any) -> AsyncGenerator[list[T], None]:
        """Yield the rows of a list page by page, by ascending id. Rows that cannot be read are left out."""
        offset = 0
        while True:
            answer = await self.mgmt(kind, "GET", path, limit=PAGE, offset=offset, **query)
            found = _rows(answer.body, row, kind)
            yield found.rows
            offset += found.sent
            if not found.sent or offset >= found.total:
                return

    async def actions(self, query: str, offset: int = 0) -> tuple[Rows[Action], float]:
        """Return a page of the actions that match, and hawkBit's clock."""
        answer = await self.mgmt(
            "feed", "GET", "/actions", q=query, sort="id:ASC", limit=PAGE, offset=offset, representation="full"
        )
        return _rows(answer.body, Action, "list of actions"), answer.date_s

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

        async def body() -> AsyncGenerator[bytes, None]:
            yield head
            async for data in content:
                yield data
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
        }
        path = f"/rest/v1/softwaremodules/{module}/artifacts"
        query = {"filename": filename, "sha256sum": sha256}
        async with aclosing(body()) as sent:  # httpx leaves it where the connection broke
            await self._http.send(
                "mgmt upload", "POST", path, headers, unhurried=True, content=sent, params=query, auth=self._auth
            )

    def download(self, module: int, artifact: int) -> AsyncGenerator[bytes, None]:
        """Yield an artifact's bytes."""
        path = f"/rest/v1/softwaremodules/{module}/artifacts/{artifact}/download"
        return self._http.load("mgmt download", path, auth=self._auth)

    async def first(self, kind: str, path: str, name: str, version: str, key: str = "") -> Named | None:
        """Return the module or set of this name, version and (with key) type; exactly that, whatever the query matched."""
        query = f"name=={quoted(name)};version=={quoted(version)}"
        async with aclosing(self.pages(kind, path, Named, q=query, sort="id:ASC")) as pages:
            async for rows in pages:
                for row in rows:
                    if (row.name, row.version) == (name, version) and not row.deleted and key in ("", row.type):
                        return row
        return None

    # The device interface

    async def _device(
        self,
        kind: str,
        method: str,
        target: str,
        path: str,
        body: Any = None,
        *,
        expect: Collection[int] = (200,),
        address: str = "",
    ) -> Answer:
        options: dict[str, Any] = {}
        headers = {"authorization": f"GatewayToken {self._token}"}
        if address:
            headers["x-forwarded-for"] = address
        if body is not None:
            options["content"] = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        return await self._http.send(
            f"ddi {kind}", method, f"{self._ddi}{quote(target, safe=':')}{path}", headers, expect=expect, **options
        )

    async def offer(self, target: str, address: str = "") -> Offer:
        """Ask what hawkBit wants of a device; registers it if it is unknown, and moves its last contact and its address.

        address: of the device, or of the gateway that speaks for it; hawkBit shows it instead of dfud's own.
        """
        answer = await self._device("poll", "GET", target, "", address=forwarded(address))
        found: Offer = peer(decode_offer_untrusted, answer.body)
        return found

    async def order(self, target: str, offer: Offer) -> Order | None:
        """Read an action; the first time that hawkBit notes it as retrieved. None: it is no longer on offer."""
        try:
            answer = await self._device("retrieve", "GET", target, offer.path)
        except Refused as refused:
            if refused.status in (404, 410):
                return None
            raise
        found: Order = peer(decode_order_untrusted, answer.body)
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
        body = {"name": name, "version": version}
        await self._device("installed", "PUT", target, "/installedBase", body, expect=(200, 201))


def _rows(body: bytes, row: type[T], what: str) -> Rows[T]:
    """Read a page; rows that cannot be read are logged and counted, and cost nothing else."""
    found: Rows[T] = peer(decode_rows_untrusted, body, row, what)
    for error in found.unread:
        note("hawkbit.row", error, list=what)
    return found
