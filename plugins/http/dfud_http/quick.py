"""Requests that can be answered from memory, for connections that have no task. Pure, but for asking the endpoint.

A fleet's requests differ in who asks and what is said: heads that are alike but for the value of Authorization are parsed once.
"""

from __future__ import annotations

import msgspec

from dfud.api import Cache, Chunks, Endpoint, Reply, Waiting, is_acceptable
from dfud_http.answer import encode_chunks, encode_plain, encode_reply, etag
from dfud_http.asked import Fetch, Plain, Publish, credentials, understand
from dfud_http.config import HttpConfig
from dfud_http.forwarded import ForwardedReader, Proxies, cut
from dfud_http.parse import HttpRequest, RequestReader

HEADS_MAX = 4096  # one a chunk of a package that is being fetched, and a few for everything else
NEW_MAX = 64
HEAD_MAX_BYTES = 1024
REPLIES_MAX = 256
PAUSE_MAX_S = 5.0
_AUTHORIZATION = b"uthorization: "
_VALUE = bytes(range(0x20, 0x7F))
# With these, where the body ends is not said by the head alone, or more than one answer is due.
_NOT_ALIKE = frozenset({b"transfer-encoding", b"expect", b"upgrade"})

# The answer, or what it waits for; whether the connection stays; and for how long what it says next can wait.
Found = tuple[bytes | Waiting, bool, float]


class _Head(msgspec.Struct, frozen=True):
    asked: Publish | Fetch
    length: int  # of the body
    keep_alive: bool


class Quick:
    """Heads are remembered when they were asked with success, so nobody else can have them forgotten.

    Where that is not known yet, a few are remembered apart from these: a fleet that reports, or comes back, is not parsed one by one.
    """

    def __init__(self, endpoint: Endpoint, config: HttpConfig) -> None:
        self._endpoint = endpoint
        self._config = config
        self._heads: Cache[bytes, _Head] = Cache(HEADS_MAX)
        self._new: Cache[bytes, _Head] = Cache(NEW_MAX)
        # By identity: the endpoint keeps equal answers once.
        self._encoded: dict[int, tuple[Reply, bytes]] = {}

    def answer(self, data: bytes, peer: str, certificate: bytes, *, encrypted: bool) -> Found | RequestReader:
        """Answer what came on a connection without anything before it; or return a reader that was fed with it."""
        # Everything up to here is what a poll costs.
        start = data.find(_AUTHORIZATION) + len(_AUTHORIZATION)
        end = data.find(b"\r\n", start)
        stop = data.find(b"\r\n\r\n", end)
        alike = start >= len(_AUTHORIZATION) and end >= start and 0 <= stop <= self._config.header_max
        key = data[:start] + data[end:stop] if alike else b""
        head = self._heads.get(key) if alike else None
        is_new = alike and head is None
        if is_new:
            head = self._new.get(key)
        if head is not None:
            value, body = data[start:end].lstrip(b" "), data[stop + 4 :]  # as the parser does
            if len(body) == head.length and not value.translate(None, _VALUE):
                found, right = self._ask(head.asked, value, body, peer, certificate, encrypted, head.keep_alive)
                if found is not None:
                    if is_new and right:
                        self._new.forget(key)
                        self._heads.put(key, head)
                    return found
        reader = RequestReader(self._config)
        reader.feed(data)
        if len(reader.requests) != 1 or reader.mid_request or reader.fault is not None:
            return reader
        request = reader.requests[0]
        asked = understand(request)
        if isinstance(asked, Plain):
            plain = encode_plain(asked.status, asked.message, keep_alive=request.keep_alive, headers=asked.headers)
            reader.close()
            return plain, request.keep_alive, 0.0
        value = request.headers.get(b"authorization", b"")
        found, right = self._ask(asked, value, request.body, peer, certificate, encrypted, request.keep_alive)
        if found is None:
            return reader
        if alike and value == data[start:end] and stop + 4 + len(request.body) == len(data):
            heads = self._heads if right else self._new
            self._remember(heads, data[:start], data[end:stop], request, asked)
        reader.close()
        return found

    def answer_proxied(
        self, data: bytes, peer: str, certificate: bytes, proxies: Proxies, *, encrypted: bool
    ) -> Found | RequestReader:
        """As answer(), for a trusted proxy: under the address of whom it names, and heads that differ only there are alike."""
        # Far from header_max, so that it is not the value's length that decides.
        if (found := cut(data)) is not None and 2 * data.find(b"\r\n\r\n") <= self._config.header_max:
            answer = self.answer(found[0], proxies.client(peer, found[1]), certificate, encrypted=encrypted)
            if not isinstance(answer, RequestReader):
                return answer
        reader = ForwardedReader(self._config)
        reader.feed(data)
        return reader

    def _remember(
        self, heads: Cache[bytes, _Head], before: bytes, after: bytes, request: HttpRequest, asked: Publish | Fetch
    ) -> None:
        if len(before) + len(after) > HEAD_MAX_BYTES or not _NOT_ALIKE.isdisjoint(request.headers):
            return
        if before.lower().count(b"authorization") != 1 or b"authorization" in after.lower():
            return
        if not before[: -len(_AUTHORIZATION)].endswith((b"\r\nA", b"\r\na")):
            return  # Proxy-Authorization, say
        if int(request.headers.get(b"content-length", b"0")) != len(request.body):
            return
        heads.put(before + after, _Head(asked, len(request.body), request.keep_alive))

    def _ask(
        self,
        asked: Publish | Fetch,
        authorization: bytes,
        body: bytes,
        peer: str,
        certificate: bytes,
        encrypted: bool,
        keep_alive: bool,
    ) -> tuple[Found | None, bool]:
        """Return what becomes of it (None: the endpoint has to be waited for), and whether it is known to be right.

        That is not known yet of what the endpoint takes without a task of this connection's.
        """
        if isinstance(asked, Publish):
            if asked.content_type and not is_acceptable(asked.channel, asked.content_type, body):
                return (encode_plain(406, keep_alive=keep_alive), keep_alive, 0.0), True
            request = asked.of(peer, authorization, certificate, body, encrypted=encrypted)
            found = self._endpoint.quick(request)
            if type(found) is Reply:
                answer = self._encode(found) if keep_alive else encode_reply(found, keep_alive)
                return (answer, keep_alive, min(found.retry_after_s, PAUSE_MAX_S)), True
            if found is not None:
                return (found, keep_alive, 0.0), True  # type: ignore[return-value]  # it waits
            soon = self._endpoint.soon(request)
            return ((soon, keep_alive, 0.0) if soon is not None else None), False
        chunks = self._endpoint.quick_chunks(
            peer, credentials(asked, authorization, certificate), asked.package, asked.first, asked.last
        )
        return ((encode_fetched(chunks, asked, keep_alive), keep_alive, 0.0) if chunks is not None else None), True

    def _encode(self, reply: Reply) -> bytes:
        kept = self._encoded.get(id(reply))
        if kept is not None and kept[0] is reply:
            return kept[1]
        encoded = encode_reply(reply, True)
        if len(encoded) <= HEAD_MAX_BYTES:
            if len(self._encoded) >= REPLIES_MAX:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[id(reply)] = (reply, encoded)
        return encoded


def encode_fetched(found: Chunks | Reply, asked: Fetch, keep_alive: bool) -> bytes:
    """Write what became of a fetch."""
    if not isinstance(found, Chunks):
        return encode_reply(found, keep_alive)
    if asked.none_match and b'"%s"' % etag(found) in asked.none_match:
        return encode_plain(304, keep_alive=keep_alive, headers=b'etag: "%s"\r\n' % etag(found))
    return encode_chunks(found, keep_alive, head_only=asked.head_only)
