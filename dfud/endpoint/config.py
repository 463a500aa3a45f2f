"""The section [endpoint]."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dfud.api import Section
from dfud.model.credentials import PasswordLimits

Meta = msgspec.Meta


class EndpointConfig(msgspec.Struct, frozen=True):
    credential_key: Annotated[
        str, Meta(description="file with the 32-byte key under which device secrets are hashed; `dfud init` makes it")
    ] = "var/credential.key"
    poll_max_s: Annotated[
        float, Meta(description="longest time a device may wait for a command", ge=0, le=3600, extra={"unit": "s"})
    ] = 300.0
    failures_per_address: Annotated[
        int,
        Meta(description="wrong credentials from one address in a minute before it is turned away", ge=1, le=1_000_000),
    ] = 60
    failures_per_device: Annotated[
        int,
        Meta(
            description="wrong credentials for one device in a minute before they are turned away", ge=1, le=1_000_000
        ),
    ] = 10
    slow_checks: Annotated[
        int, Meta(description="checks of bcrypt and sha512-crypt passwords at a time; others wait", ge=1, le=256)
    ] = 2
    bcrypt_cost_max: Annotated[
        int, Meta(description="cost of a stored bcrypt password that is still compared, and may be stored", ge=4, le=18)
    ] = 13
    sha512_rounds_max: Annotated[
        int, Meta(description="rounds of a stored sha512-crypt password, likewise", ge=1000, le=10_000_000)
    ] = 100_000
    forms_per_device: Annotated[
        int, Meta(description="stored passwords of one user of a device that a guess is compared with", ge=1, le=1000)
    ] = 64
    slow_forms_per_device: Annotated[int, Meta(description="of these, bcrypt and sha512-crypt ones", ge=0, le=100)] = 4
    counted_max: Annotated[
        int,
        Meta(
            description="addresses, and devices, with wrong credentials in one minute; further ones are turned away",
            ge=16,
            le=100_000_000,
        ),
    ] = 100_000
    waiting_per_address: Annotated[
        int,
        Meta(
            description="log-ins of one address that wait for the result of others before they are turned away",
            ge=1,
            le=1_000_000,
        ),
    ] = 20_000
    denials_logged: Annotated[
        int, Meta(description="lines about denied devices in the log in a minute", ge=1, le=100_000)
    ] = 60
    sessions: Annotated[
        int,
        Meta(
            description="devices whose log-in and last answer are remembered, 350 bytes each; others are checked and judged anew",
            ge=16,
            le=100_000_000,
        ),
    ] = 1_200_000
    polls: Annotated[
        int, Meta(description="the same of devices behind gateways, which take 1 KB each", ge=16, le=100_000_000)
    ] = 20_000
    chunks_per_request: Annotated[int, Meta(description="chunks in one answer", ge=1, le=10_000)] = 64
    chunk_bytes_per_request: Annotated[
        int,
        Meta(
            description="of an answer with several chunks; one is always sent",
            ge=1024,
            le=1 << 26,
            extra={"unit": "bytes"},
        ),
    ] = 1 << 18
    poll_spread: Annotated[
        float,
        Meta(
            description="by how much of itself the time until the next poll differs from device to device, so that a fleet that "
            "starts together spreads out",
            ge=0,
            le=0.5,
        ),
    ] = 0.1
    judged_at_once: Annotated[
        int,
        Meta(
            description="requests that are judged at a time, fewer where that would make everything late; others wait for their turn",
            ge=16,
            le=1_000_000,
        ),
    ] = 2000
    late_s: Annotated[
        float,
        Meta(
            description="how long they may wait for it; others are told at once to come back (503 and Retry-After)",
            ge=0.01,
            le=60,
            extra={"unit": "s"},
        ),
    ] = 1.0
    away_s: Annotated[
        int,
        Meta(
            description="longest Retry-After of these; each gets another one, and shorter ones if all can be served sooner",
            ge=2,
            le=3600,
            extra={"unit": "s"},
        ),
    ] = 30
    events_s: Annotated[
        float,
        Meta(
            description="time that all sinks have to take an event before its device is told to try again",
            ge=0.1,
            le=86400,
            extra={"unit": "s"},
        ),
    ] = 120.0
    commands_queued: Annotated[
        int, Meta(description="commands kept for one device that is not waiting; 0: none are kept", ge=0, le=1000)
    ] = 8
    commands_expire_s: Annotated[
        float,
        Meta(
            description="how long a kept command waits, unless its sender says otherwise",
            ge=1,
            le=604800,
            extra={"unit": "s"},
        ),
    ] = 60.0
    commands_max: Annotated[int, Meta(description="commands kept for all devices", ge=1, le=10_000_000)] = 100_000
    commands_max_bytes: Annotated[
        int, Meta(description="bytes of them", ge=1024, le=1 << 40, extra={"unit": "bytes"})
    ] = 64 << 20


def password_limits(config: EndpointConfig) -> PasswordLimits:
    """Return what comparing with a stored password may cost."""
    return PasswordLimits(
        forms=config.forms_per_device,
        slow_forms=config.slow_forms_per_device,
        bcrypt_cost=config.bcrypt_cost_max,
        sha512_rounds=config.sha512_rounds_max,
    )


SECTION = Section("endpoint", EndpointConfig, "What devices talk to.")
