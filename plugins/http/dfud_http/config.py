"""The section [transport.http]."""

from __future__ import annotations

from typing import Annotated

import msgspec

Meta = msgspec.Meta
S = {"unit": "s"}
BYTES = {"unit": "bytes"}


class HttpConfig(msgspec.Struct, frozen=True):
    host: Annotated[str, Meta(description="address to listen on; only loopback may be plain unless allow_plain")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(description="port to listen on; 0: any free one", ge=0, le=65535)] = 8880
    allow_plain: Annotated[bool, Meta(description="serve without TLS on other addresses than loopback")] = False
    redirect_port: Annotated[
        int, Meta(description="plain port that sends everybody to the TLS one; 0: there is none", ge=0, le=65535)
    ] = 0
    certificate: Annotated[str, Meta(description="PEM file of the certificate chain; empty: no TLS")] = ""
    key: Annotated[str, Meta(description="PEM file of its private key")] = ""
    client_ca: Annotated[
        str, Meta(description="PEM file of CAs whose client certificates are looked at; the app's anchors decide")
    ] = ""
    client_required: Annotated[bool, Meta(description="refuse connections without a client certificate")] = False
    connections: Annotated[
        int, Meta(description="connections in total, with those whose TLS handshake is not done", ge=1, le=1_000_000)
    ] = 20_000
    connections_per_address: Annotated[int, Meta(description="connections from one address", ge=1, le=1_000_000)] = (
        10_000
    )
    trusted_proxies: Annotated[
        list[str],
        Meta(
            description="addresses or networks of proxies whose X-Forwarded-For says who asks; nobody else's does. "
            "Limits on connections and handshakes of one address are not for them"
        ),
    ] = msgspec.field(default_factory=list)
    header_max: Annotated[int, Meta(description="request line and headers", ge=512, le=1 << 20, extra=BYTES)] = 8192
    body_max: Annotated[int, Meta(description="body of a request", ge=4096, le=1 << 26, extra=BYTES)] = 65536
    headers: Annotated[int, Meta(description="header lines in a request", ge=8, le=10_000)] = 100
    body_pieces: Annotated[int, Meta(description="chunks that a chunked body may come in", ge=1, le=1_000_000)] = 1024
    held_max: Annotated[
        int,
        Meta(
            description="requests that are on their way or wait for their turn, all connections together, beyond 8 KB each",
            ge=1 << 20,
            le=1 << 40,
            extra=BYTES,
        ),
    ] = 1 << 26
    request_s: Annotated[
        float, Meta(description="time a peer has to send a whole request", ge=0.05, le=3600, extra=S)
    ] = 30.0
    idle_s: Annotated[
        float, Meta(description="time a connection may be silent between requests", ge=0.05, le=86400, extra=S)
    ] = 400.0
    send_s: Annotated[float, Meta(description="time a peer has to take an answer", ge=0.05, le=3600, extra=S)] = 60.0
    handshake_s: Annotated[
        float, Meta(description="time for a TLS handshake, from its turn on", ge=0.05, le=600, extra=S)
    ] = 10.0
    handshakes: Annotated[int, Meta(description="TLS handshakes at a time; others wait", ge=1, le=10_000)] = 64
    handshake_turn_s: Annotated[
        float,
        Meta(
            description="how long one that stalls keeps others waiting; then it goes on beside them",
            ge=0.05,
            le=600,
            extra=S,
        ),
    ] = 1.0
    handshakes_per_address: Annotated[int, Meta(description="of these, from one address", ge=1, le=10_000)] = 32
    pipelined: Annotated[int, Meta(description="requests a peer may send ahead of their answers", ge=1, le=1000)] = 16
