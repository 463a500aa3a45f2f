"""The user plane's TLS: a certificate that can be replaced while running, and where plain HTTP is sent."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from dfud.api import server_context
from dfud.registry.config import RegistryConfig


class Tls:
    """Stands in for an ssl.SSLContext where connections are wrapped; each new one gets the newest certificate."""

    def __init__(self, config: RegistryConfig) -> None:
        """Raises ConfigError for files that cannot be used."""
        self._config = config
        self._context = self._load()

    def _load(self) -> ssl.SSLContext:
        c = self._config
        return server_context("registry", c.certificate, c.key, protocols=["http/1.1"])

    def reload(self) -> None:
        """Read the files again. Raises ConfigError, and then goes on with the old ones."""
        self._context = self._load()

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What trio.SSLStream asks of a context."""
        return self._context.wrap_bio(*arguments, **options)


class RedirectPlain:
    """An ASGI application around another: what did not come over TLS is sent to the TLS port, and to nothing else.

    Its credentials were shown in clear already; neither they nor the body are looked at.
    """

    def __init__(self, app: Any, port: int, external_url: str) -> None:
        self._app = app
        self._port = port
        self._external = external_url

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http" or scope["scheme"] == "https":
            await self._app(scope, receive, send)
            return
        where = self._external or self._here(scope)
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        if where:
            query = scope["query_string"]
            path = scope["raw_path"].split(b"?")[0]
            path = path if path.startswith(b"/") else b"/"
            headers.append((b"location", where.encode() + path + (b"?" + query if query else b"")))
        await send({"type": "http.response.start", "status": 308 if where else 400, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _here(self, scope: Any) -> str:
        """Return this server by the name that the client used for it, or "" if that is none."""
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        try:
            name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
        except (UnicodeDecodeError, ValueError):
            return ""
        if not name or not all(c.isalnum() or c in "-.:" for c in name):
            return ""
        return f"https://{f'[{name}]' if ':' in name else name}:{self._port}"
