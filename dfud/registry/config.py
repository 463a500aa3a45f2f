"""The section [registry]."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dfud.api import Section, trusted_proxies
from dfud.model.address import Networks
from dfud.model.selectors import SELECTOR_MAX_BYTES, SELECTOR_MAX_TERMS
from dfud.model.untrusted import ENCODED_MAX_BYTES

Meta = msgspec.Meta
S = {"unit": "s"}
BYTES = {"unit": "bytes"}
METADATA_MAX_BYTES = 1 << 14


class RegistryConfig(msgspec.Struct, frozen=True):
    host: Annotated[str, Meta(description="address to listen on; only loopback may be plain unless allow_plain")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(description="port to listen on; 0: any free one", ge=0, le=65535)] = 8881
    allow_plain: Annotated[bool, Meta(description="serve without TLS on other addresses than loopback")] = False
    certificate: Annotated[str, Meta(description="PEM file of the certificate chain; empty: no TLS")] = ""
    key: Annotated[str, Meta(description="PEM file of its private key")] = ""
    redirect_port: Annotated[
        int, Meta(description="plain port that sends everybody to the TLS one; 0: there is none", ge=0, le=65535)
    ] = 0
    handshake_s: Annotated[float, Meta(description="time for a TLS handshake", ge=0.05, le=600, extra=S)] = 10.0
    external_url: Annotated[
        str, Meta(description="how users reach this registry, without a trailing slash; empty: by host")
    ] = ""
    device_url: Annotated[
        str, Meta(description="how devices reach dfud, for those who ask the registry; empty: unknown")
    ] = ""
    firmware_max: Annotated[int, Meta(description="largest firmware", ge=1024, le=1 << 32, extra=BYTES)] = 64 << 20
    body_max: Annotated[int, Meta(description="largest other body", ge=1024, le=1 << 26, extra=BYTES)] = 1 << 20
    update_max: Annotated[
        int,
        Meta(
            description="devices that an update by selector may tell at once unless it says allAtOnce; more take a rollout",
            ge=1,
            le=100_000_000,
        ),
    ] = 500
    batch_max: Annotated[
        int, Meta(description="devices that one request may register; body_max counts as well", ge=1, le=10_000)
    ] = 500
    body_s: Annotated[float, Meta(description="time a user has to send a body", ge=0.1, le=86400, extra=S)] = 60.0
    upload_s: Annotated[float, Meta(description="time a user has to send a firmware", ge=1, le=86400, extra=S)] = 1800.0
    connections: Annotated[int, Meta(description="connections at one time", ge=1, le=1_000_000)] = 1000
    connections_per_address: Annotated[
        int, Meta(description="connections of one address at one time", ge=1, le=1_000_000)
    ] = 200
    trusted_proxies: Annotated[
        list[str],
        Meta(description="addresses or networks of proxies whose X-Forwarded-For says who asks; nobody else's does"),
    ] = msgspec.field(default_factory=list)
    requests_per_minute: Annotated[
        int,
        Meta(
            description="requests of one token, or of one address without a right one, in a minute before they are refused",
            ge=1,
            le=10_000_000,
        ),
    ] = 6000
    failures_per_minute: Annotated[
        int, Meta(description="wrong tokens of one address in a minute before no more are tried", ge=1, le=1_000_000)
    ] = 30
    spec_max_bytes: Annotated[
        int, Meta(description="largest spec of an app or a device, as JSON", ge=1024, le=1 << 20, extra=BYTES)
    ] = ENCODED_MAX_BYTES
    metadata_max_bytes: Annotated[
        int,
        Meta(description="most labels, annotations and finalizers of one, as JSON", ge=1024, le=1 << 20, extra=BYTES),
    ] = METADATA_MAX_BYTES
    selector_max_bytes: Annotated[
        int, Meta(description="longest label selector", ge=64, le=SELECTOR_MAX_BYTES, extra=BYTES)
    ] = SELECTOR_MAX_BYTES
    selector_max_terms: Annotated[int, Meta(description="terms of one label selector", ge=1, le=SELECTOR_MAX_TERMS)] = (
        SELECTOR_MAX_TERMS
    )
    lists: Annotated[int, Meta(description="lists that are sent at one time; others wait", ge=1, le=10_000)] = 32
    lists_per_user: Annotated[int, Meta(description="of them, lists of one token", ge=1, le=10_000)] = 8
    list_wait_s: Annotated[
        float, Meta(description="how long a list waits for its turn before it is refused", ge=0, le=600, extra=S)
    ] = 30.0
    list_page_bytes: Annotated[
        int, Meta(description="about how much of a list is in memory at one time", ge=4096, le=1 << 26, extra=BYTES)
    ] = 1 << 20
    lists_made: Annotated[
        int,
        Meta(
            description="pages of lists that are read and encoded at one time: as objects they are many times as large",
            ge=1,
            le=1000,
        ),
    ] = 2
    counted_max: Annotated[
        int,
        Meta(
            description="tokens and addresses whose requests are counted in one minute; further ones are refused",
            ge=16,
            le=100_000_000,
        ),
    ] = 100_000
    denials_logged: Annotated[
        int, Meta(description="lines about refused users in the log in a minute", ge=1, le=100_000)
    ] = 60
    events_behind: Annotated[
        int, Meta(description="events that wait for a user who watches; then the stream ends", ge=1, le=1_000_000)
    ] = 1000
    tokens_per_user: Annotated[int, Meta(description="access tokens of one user", ge=1, le=100_000)] = 100
    claims_per_app: Annotated[int, Meta(description="claim codes of one app", ge=1, le=100_000)] = 100
    token_days: Annotated[
        int, Meta(description="life of a new token unless its maker says otherwise", ge=1, le=3650)
    ] = 365


SECTION = Section("registry", RegistryConfig, "What users talk to.")


def proxies_of(config: RegistryConfig) -> Networks:
    """Return [registry] trusted_proxies. Raises ConfigError."""
    return trusted_proxies("registry", config.trusted_proxies)
