"""What a request asks for, whoever asks. Pure; what cannot be asked is an answer of the transport itself."""

from __future__ import annotations

import msgspec

from dfud.api import Credentials, Request, chunk_range_untrusted, timeout_untrusted
from dfud_http.parse import HttpRequest, split_target_untrusted


class Plain(msgspec.Struct, frozen=True, gc=False):
    """An answer of the transport itself."""

    status: int
    message: str = ""
    headers: bytes = b""


class Publish(msgspec.Struct, frozen=True, gc=False):
    """application, device, as_device, data_schema: Drogue's query parameters."""

    channel: str
    topic: str
    content_type: str
    timeout_s: float
    application: str
    device: str
    as_device: str
    data_schema: str

    def of(self, peer: str, authorization: bytes, certificate: bytes, body: bytes, *, encrypted: bool) -> Request:
        return Request(
            transport="http",
            peer=peer,
            credentials=credentials(self, authorization, certificate),
            channel=self.channel,
            body=body,
            content_type=self.content_type,
            timeout_s=self.timeout_s,
            as_device=self.as_device,
            data_schema=self.data_schema,
            topic=self.topic,
            encrypted=encrypted,
        )


class Fetch(msgspec.Struct, frozen=True, gc=False):
    """Chunks first..last of a package. none_match: the value of If-None-Match."""

    package: str
    first: int
    last: int
    none_match: bytes
    head_only: bool
    application: str
    device: str


def credentials(asked: Publish | Fetch, authorization: bytes, certificate: bytes) -> Credentials:
    return Credentials(
        authorization=authorization, certificate=certificate, application=asked.application, device=asked.device
    )


def understand(request: HttpRequest) -> Publish | Fetch | Plain:
    """Return what a whole request asks for."""
    split = split_target_untrusted(request.target)
    if split is None:
        return Plain(400, "the target cannot be read")
    path, query = split
    method = request.method
    if method == b"POST":
        if len(path) >= 2 and path[0] == "v1" and path[1]:
            return _publish(request, path, query)
    elif method in (b"GET", b"HEAD"):
        if path == [""]:
            return Plain(200)
        if len(path) == 4 and path[:2] == ["v1", "dfu"]:
            return _fetch(request, path[2], path[3], query)
    else:
        return Plain(405, "expected GET, HEAD or POST", b"allow: GET, HEAD, POST\r\n")
    return Plain(404, "no such path")


def _publish(request: HttpRequest, path: list[str], query: dict[str, str]) -> Publish | Plain:
    timeout_s = timeout_untrusted(query)
    if timeout_s is None:
        return Plain(400, "ct: expected a number of seconds")
    return Publish(
        channel=path[1],
        topic="/".join(path[2:]),
        content_type=request.headers.get(b"content-type", b"").decode("latin-1"),
        timeout_s=timeout_s,
        application=query.get("application", ""),
        device=query.get("device", ""),
        as_device=query.get("as", ""),
        data_schema=query.get("data_schema", ""),
    )


def _fetch(request: HttpRequest, package: str, which: str, query: dict[str, str]) -> Fetch | Plain:
    asked = chunk_range_untrusted(package, which)
    if asked is None:
        return Plain(404, "no such chunk")
    return Fetch(
        package=package,
        first=asked[0],
        last=asked[1],
        none_match=request.headers.get(b"if-none-match", b""),
        head_only=request.method == b"HEAD",
        application=query.get("application", ""),
        device=query.get("device", ""),
    )
