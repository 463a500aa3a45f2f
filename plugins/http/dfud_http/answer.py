"""Answers as bytes: one buffer each, so that each is one send."""

from __future__ import annotations

import json
from functools import lru_cache
from http import HTTPStatus

from dfud.api import Chunks, Reply

_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CLOSE = b"connection: close\r\n"
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
FAILED = "the request failed; the log of dfud says why"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def encode_reply(reply: Reply, keep_alive: bool) -> bytes:
    """Write a reply of the endpoint; errors as Drogue's JSON object."""
    code = int(reply.code)
    if code == 202 and keep_alive:
        return _ACCEPTED
    body = reply.body
    if code == 200 and keep_alive and not reply.content_type and not reply.retry_after_s:
        # Nearly all of them.
        return b"HTTP/1.1 200 OK\r\ncommand: %s\r\ncontent-length: %d\r\n\r\n%s" % (
            _header_text(reply.command),
            len(body),
            body,
        )
    head = [_LINES[code]]
    if code == 200:
        head.append(b"command: %s\r\n" % _header_text(reply.command))
    elif reply.error:
        body = json.dumps({"code": code, "error": reply.error, "message": reply.message}).encode()
        head.append(b"content-type: application/json\r\n")
    if reply.content_type:
        head.append(b"content-type: %s\r\n" % _header_text(reply.content_type))
    if reply.retry_after_s:
        head.append(b"retry-after: %d\r\n" % reply.retry_after_s)
    if not keep_alive:
        head.append(_CLOSE)
    head.append(b"content-length: %d\r\n\r\n" % len(body))
    head.append(body)
    return b"".join(head)


def encode_chunks(chunks: Chunks, keep_alive: bool, *, head_only: bool = False) -> bytes:
    size = sum(map(len, chunks.bodies))
    head = (
        b'HTTP/1.1 200 OK\r\netag: "%s"\r\ncache-control: private, immutable, max-age=31536000\r\n%scontent-length: %d\r\n\r\n'
        % (
            etag(chunks),
            b"" if keep_alive else _CLOSE,
            size,
        )
    )
    return head if head_only else b"".join([head, *chunks.bodies])


def etag(chunks: Chunks) -> bytes:
    last = chunks.first + len(chunks.bodies) - 1
    return f"{chunks.package}-{chunks.first}{f'-{last}' if last != chunks.first else ''}".encode()


def encode_plain(status: int, message: str = "", *, keep_alive: bool = False, headers: bytes = b"") -> bytes:
    """Write an answer of the transport itself."""
    body = b""
    if message:
        body = json.dumps(
            {"code": status, "error": HTTPStatus(status).phrase.replace(" ", ""), "message": message}
        ).encode()
        headers += b"content-type: application/json\r\n"
    return b"%s%s%scontent-length: %d\r\n\r\n%s" % (
        _LINES[status],
        headers,
        b"" if keep_alive else _CLOSE,
        len(body),
        body,
    )


@lru_cache(maxsize=256)
def _header_text(text: str) -> bytes:
    """Return `text` as a header value that cannot end the header: what does not fit is left out."""
    return "".join(c for c in text if c.isprintable()).encode("utf-8", "replace")
