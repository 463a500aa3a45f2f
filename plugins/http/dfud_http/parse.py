"""Requests out of bytes, with limits. Pure: httptools does the grammar, this class the judging.

`feed()` never raises; what is wrong with a peer's bytes becomes `fault`, an answer to send before closing.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from urllib.parse import parse_qs, unquote

import httptools
import msgspec

from dfud_http.budget import HEADER_COST_BYTES, REQUEST_COST_BYTES
from dfud_http.config import HttpConfig

TARGET_MAX_BYTES = 2048


class Fault(msgspec.Struct, frozen=True):
    status: int
    message: str


class HttpRequest(msgspec.Struct):
    """One whole request. headers holds lower-case names; of a repeated one the last value."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    cost: int = 0


class RequestReader:
    """Feed it what the peer sends; take whole requests from `requests` with `take()`.

    held: what the whole and the unfinished requests cost in bytes, whatever they were made of.
    """

    __slots__ = (
        "_ahead",
        "_body",
        "_body_max",
        "_done",
        "_header_max",
        "_header_size",
        "_headers",
        "_headers_max",
        "_lines",
        "_parser",
        "_pieces",
        "_pieces_max",
        "_queued",
        "_target",
        "_text_size",
        "expects_continue",
        "fault",
        "held",
        "mid_request",
        "requests",
    )

    def __init__(self, config: HttpConfig) -> None:
        self._header_max = config.header_max
        self._headers_max = config.headers
        self._body_max = config.body_max
        self._pieces_max = config.body_pieces
        self._ahead = config.pipelined
        self._queued = 0
        self.held = 0
        self._parser = httptools.HttpRequestParser(self)
        self.requests: deque[HttpRequest] = deque()
        self.fault: Fault | None = None
        self.mid_request = False
        self.expects_continue = False
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        # One buffer at the most, not a list: a body may come in pieces of one byte, each of which would be an object.
        self._body: bytes | bytearray = b""
        self._pieces = 0
        self._lines = 0
        self._text_size = 0
        self._header_size = 0
        self._done = False

    def close(self) -> None:
        """End it; nothing may be fed any longer. The parser refers to it: without this, both are left to the garbage collection."""
        del self._parser

    def feed(self, data: bytes) -> None:
        if self.fault is not None:
            return
        before = self.mid_request
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._queued -= self.requests.pop().cost
            self.fault = Fault(400, "upgrades are not supported")
        except httptools.HttpParserError:
            self.fault = self.fault or Fault(400, "not HTTP/1.1")
        if before and self.mid_request and not self._done:
            # The parser tells of a header when it is whole; one that never ends is bounded here.
            self._count(len(data))
        self.held = self._queued + self._cost() if self.mid_request else self._queued

    def take(self) -> HttpRequest:
        """Return the oldest whole request, which is then no longer held."""
        request = self.requests.popleft()
        self._queued -= request.cost
        self.held -= request.cost
        return request

    def _cost(self) -> int:
        """Return what the request that is on its way costs so far."""
        return (
            REQUEST_COST_BYTES + len(self._target) + self._text_size + self._lines * HEADER_COST_BYTES + len(self._body)
        )

    def _count(self, size: int) -> None:
        self._header_size += size
        if self._header_size > self._header_max:
            self.fault = self.fault or Fault(431, "the headers are too long")

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._reset()
        self.mid_request = True
        if len(self.requests) >= self._ahead:
            self.fault = self.fault or Fault(429, f"more than {self._ahead} requests ahead of their answers")
            self._stop()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count(len(url))
        if len(self._target) > TARGET_MAX_BYTES:
            self.fault = self.fault or Fault(414, "the target is too long")
        self._stop()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Called for every header of every poll: no calls in here.
        size = len(name) + len(value) + 4
        self._text_size += size
        self._header_size += size
        self._lines += 1
        if self._header_size > self._header_max or self._lines > self._headers_max or self.fault is not None:
            self._count(0)
            self.fault = self.fault or Fault(431, f"more than {self._headers_max} headers")
            self._stop()
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._done = True
        self._header_size = 0
        length = self._headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._body_max):
            self.fault = Fault(413, f"the body is longer than {self._body_max} bytes")
            self._stop()
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.expects_continue = True

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._body_max:
            self.fault = Fault(413, f"the body is longer than {self._body_max} bytes")
            self._stop()
        if not self._body:
            self._body = data  # all of it, as a rule
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += data

    def on_chunk_header(self) -> None:
        self._pieces += 1
        if self._pieces > self._pieces_max:
            self.fault = Fault(413, f"the body comes in more than {self._pieces_max} chunks")
            self._stop()

    def on_message_complete(self) -> None:
        self.mid_request = False
        self.expects_continue = False
        cost = self._cost()
        self._queued += cost
        self.requests.append(
            HttpRequest(
                method=self._parser.get_method(),
                target=self._target,
                headers=self._headers,
                body=bytes(self._body),
                keep_alive=self._parser.should_keep_alive(),
                cost=cost,
            )
        )
        # A request that is parked for minutes should not be held here, too.
        self._reset()

    def _stop(self) -> None:
        if self.fault is not None:
            raise ValueError  # httptools turns it into its own error and reads no further


@lru_cache(maxsize=2048)
def split_target_untrusted(target: bytes) -> tuple[list[str], dict[str, str]] | None:
    """Return the path's percent-decoded segments and the query parameters (of a repeated one the first), or None.

    Devices ask for the same few targets again and again, so the answer is remembered; callers must not change it.
    """
    try:
        text = target.decode("ascii")
    except UnicodeDecodeError:
        return None
    if text.startswith(("http://", "https://")):
        text = "/" + text.split("//", 1)[1].partition("/")[2]
    if not text.startswith("/"):
        return None
    path, _, query = text.partition("#")[0].partition("?")
    try:
        segments = [unquote(s, errors="strict") for s in path[1:].split("/")]
        values = parse_qs(query, keep_blank_values=True, max_num_fields=32, errors="strict") if query else {}
    except ValueError:
        return None
    return segments, {key: found[0] for key, found in values.items()}
