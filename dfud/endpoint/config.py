"""The section [endpoint]."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dfud.api import Section

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


SECTION = Section("endpoint", EndpointConfig, "What devices talk to.")
