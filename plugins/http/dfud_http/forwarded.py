"""Who asks, where a trusted proxy says so: what X-Forwarded-For is worth. Pure.

Which client a request is counted under is worked out for each request, from its own bytes and its own connection: nothing of it is
remembered with a head.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dfud.api import client_of, is_in, trusted_proxies
from dfud_http.config import HttpConfig
from dfud_http.parse import HttpRequest, RequestReader

NAME = b"x-forwarded-for"
CLIENTS_MAX = 8192
VALUE_MAX_BYTES = 256
# A line as proxies write it. None that the next one continues, and not the first one: that is the request's.
_LINE = re.compile(
    rb"\r\nx-forwarded-for: ([0-9A-Fa-f.:, \[\]]{1,%d})(?=\r\n[^ \t\r]|\r\n\r\n)" % VALUE_MAX_BYTES, re.I
)


class Proxies:
    """Those that [transport.http] trusted_proxies names. Raises ConfigError."""

    def __init__(self, config: HttpConfig) -> None:
        self._trusted = trusted_proxies("transport.http", config.trusted_proxies)
        # Devices ask again and again, through the same few proxies.
        self._client = lru_cache(maxsize=CLIENTS_MAX)(self._judge)

    def trusts(self, peer: str) -> bool:
        return bool(self._trusted) and is_in(peer, self._trusted)

    def client(self, peer: str, forwarded: bytes) -> str:
        """Return whom `peer`, a proxy, names; itself, if that cannot be read. forwarded: all values of the header."""
        if len(forwarded) > VALUE_MAX_BYTES:
            return self._judge(peer, forwarded)  # not worth remembering
        return self._client(peer, forwarded)

    def _judge(self, peer: str, forwarded: bytes) -> str:
        return client_of(peer, (forwarded.decode("latin-1"),), self._trusted)

    def client_of(self, peer: str, request: HttpRequest) -> str:
        return self.client(peer, request.headers.get(NAME, b""))


class ForwardedReader(RequestReader):
    """Keeps all values of X-Forwarded-For, in their order: a proxy may add a line of its own to those that came."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        before = self._headers.get(NAME)
        super().on_header(name, value)
        if name.lower() != NAME:
            return
        if self._done:  # in the trailers of a body, which no proxy adds to
            self._headers[NAME] = before or b""
        elif before is not None:
            self._headers[NAME] = before + b"," + value


def cut(data: bytes) -> tuple[bytes, bytes] | None:
    """Return `data` with the value of its X-Forwarded-For left out, and the value ("" if there is none); None: the parser has to say.

    What is left is parsed to the same as `data`, but for that value.
    """
    stop = data.find(b"\r\n\r\n")
    head = data[:stop]
    lines = head.count(b"\n")
    # Where lines end with anything but CRLF, or the first one is empty, it is for the parser to say what a line is.
    if stop <= 0 or lines != head.count(b"\r\n") or lines != head.count(b"\r") or not head[:1].isalpha():
        return None
    lower = head.lower()
    if (named := lower.count(NAME)) != 1:
        return None if named else (data, b"")
    found = _LINE.search(data, 0, stop + 4)
    return (data[: found.start(1)] + data[found.end(1) :], found[1]) if found is not None else None
