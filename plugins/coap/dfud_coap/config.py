"""The section [transport.coap]."""

from __future__ import annotations

from typing import Annotated

import msgspec

Meta = msgspec.Meta
S = {"unit": "s"}
BYTES = {"unit": "bytes"}


class CoapConfig(msgspec.Struct, frozen=True):
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Meta(description="UDP port for OSCORE, and plain CoAP if allowed; 0: any free one", ge=0, le=65535)
    ] = 5683
    plain: Annotated[bool, Meta(description="serve unprotected requests, too: credentials are readable on the way")] = (
        False
    )
    dtls_port: Annotated[
        int, Meta(description="UDP port for DTLS, with a certificate; 0: any free one", ge=0, le=65535)
    ] = 5684
    certificate: Annotated[str, Meta(description="PEM file of the certificate chain; empty: no DTLS")] = ""
    key: Annotated[str, Meta(description="PEM file of its private key")] = ""
    client_ca: Annotated[
        str, Meta(description="PEM file of CAs whose client certificates are looked at; the app's anchors decide")
    ] = ""
    client_required: Annotated[bool, Meta(description="refuse DTLS without a client certificate")] = False
    block_max: Annotated[int, Meta(description="largest block: 16, 32, ... 1024", ge=16, le=1024, extra=BYTES)] = 1024
    body_max: Annotated[
        int, Meta(description="body of a request in all its blocks", ge=4096, le=1 << 20, extra=BYTES)
    ] = 65536
    transfers: Annotated[
        int, Meta(description="bodies on their way in blocks, in each direction", ge=1, le=1_000_000)
    ] = 1024
    transfers_per_address: Annotated[
        int, Meta(description="of these, requests from one address", ge=1, le=1_000_000)
    ] = 64
    waiting: Annotated[int, Meta(description="requests that wait and observations, in total", ge=1, le=1_000_000)] = (
        20_000
    )
    waiting_per_address: Annotated[int, Meta(description="of these, from one address", ge=1, le=1_000_000)] = 10_000
    under_way: Annotated[int, Meta(description="requests being worked on at a time", ge=1, le=100_000)] = 1000
    under_way_per_address: Annotated[int, Meta(description="of these, from one address", ge=1, le=100_000)] = 500
    under_way_events: Annotated[
        int,
        Meta(
            description="of all of these, telemetry: where it goes to may hang, and updates must not wait for that",
            ge=1,
            le=100_000,
        ),
    ] = 500
    remembered: Annotated[int, Meta(description="messages recognised when they come twice", ge=16, le=10_000_000)] = (
        65536
    )
    remembered_max_bytes: Annotated[
        int, Meta(description="answers that are kept for them", ge=1 << 16, le=1 << 34, extra=BYTES)
    ] = 1 << 26
    requests_known: Annotated[
        int, Meta(description="requests that are recognised by their bytes; others are read anew", ge=16, le=10_000_000)
    ] = 16384
    peers: Annotated[
        int, Meta(description="addresses with a port that are remembered, without DTLS", ge=16, le=10_000_000)
    ] = 65536
    verified: Annotated[
        int, Meta(description="of these, ones that have proved themselves, for an hour", ge=16, le=10_000_000)
    ] = 100_000
    counted_max: Annotated[
        int,
        Meta(
            description="addresses whose errors are counted in one minute; further ones get none", ge=16, le=100_000_000
        ),
    ] = 100_000
    queued_per_peer: Annotated[
        int, Meta(description="confirmable messages that wait for the acknowledgement of another", ge=1, le=10_000)
    ] = 64
    repeated_to_strangers: Annotated[
        int,
        Meta(
            description="answers to strangers that are repeated until they are acknowledged; further ones are sent once",
            ge=0,
            le=1_000_000,
        ),
    ] = 4096
    contexts: Annotated[int, Meta(description="OSCORE contexts kept", ge=1, le=10_000_000)] = 100_000
    sessions: Annotated[int, Meta(description="DTLS sessions in total", ge=1, le=1_000_000)] = 5000
    sessions_per_address: Annotated[int, Meta(description="DTLS sessions from one address", ge=1, le=1_000_000)] = 2500
    session_queue: Annotated[
        int, Meta(description="datagrams of one session that wait, in each direction; more are lost", ge=1, le=10_000)
    ] = 16
    session_idle_s: Annotated[
        float, Meta(description="time a DTLS session may be silent", ge=0.05, le=86400, extra=S)
    ] = 1800.0
    handshake_s: Annotated[
        float, Meta(description="time for a DTLS handshake, from its turn on", ge=0.05, le=600, extra=S)
    ] = 30.0
    handshakes: Annotated[int, Meta(description="DTLS handshakes at a time; others wait", ge=1, le=10_000)] = 64
    handshake_turn_s: Annotated[
        float,
        Meta(
            description="how long one that stalls keeps others waiting; then it goes on beside them",
            ge=0.05,
            le=600,
            extra=S,
        ),
    ] = 0.5  # below the second after which a client repeats itself (RFC 6347 section 4.2.4.1): trio loses one that began late
    handshakes_per_address: Annotated[int, Meta(description="of these, from one address", ge=1, le=10_000)] = 32
    errors_per_address: Annotated[
        int, Meta(description="errors told to strangers at one address in a minute; then silence", ge=1, le=1_000_000)
    ] = 600
    observe_check_s: Annotated[
        float, Meta(description="how often an observing device must show that it is there", ge=1, le=86400, extra=S)
    ] = 900.0
    verify_addresses: Annotated[
        bool, Meta(description="unprotected: have an address prove itself before large answers, even with credentials")
    ] = False
