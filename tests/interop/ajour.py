"""A device that speaks Ajour's protocol over HTTP, driven as embedded-update's FirmwareUpdater drives."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import httpx
from dfud_drogue.cbor import decode_untrusted, encode


class AjourDevice:
    """One status after the other, state in RAM. Use as a context manager."""

    def __init__(
        self, url: str, user: str, password: str, version: str, *, mtu: int | None = 512, path: str = "/v1/dfu?ct=1"
    ) -> None:
        self._client = httpx.Client(base_url=url, auth=(user, password), timeout=60)
        self._path = path
        self.mtu = mtu
        self.version = version
        self.flash = b""

    def __enter__(self) -> AjourDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def ask(self, update: dict[int, Any] | None = None) -> dict[int, Any]:
        """Send a status, return the command: {number: {number: value}} as packed."""
        body = encode({0: self.version.encode(), 1: self.mtu, 2: None, 3: update})
        answer = self._client.post(self._path, content=body)
        assert (answer.status_code, answer.headers.get("command")) == (200, "dfu"), answer.text
        found: dict[int, Any] = decode_untrusted(answer.content)
        return found

    def update(self) -> dict[int, Any]:
        """Ask and write until something other than a write comes; return that."""
        self.flash = b""
        answer = self.ask()
        while 2 in answer:
            write = answer[2]
            assert write[2] == len(self.flash)
            self.flash += write[3]
            answer = self.ask({0: write[0], 1: len(self.flash)})
        return answer
