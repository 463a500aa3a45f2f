"""The sections [drogue], [events.log] and [events.webhook]."""

from __future__ import annotations

from typing import Annotated

import msgspec

Meta = msgspec.Meta
S = {"unit": "s"}
BYTES = {"unit": "bytes"}


class DrogueConfig(msgspec.Struct, frozen=True):
    block_max: Annotated[
        int,
        Meta(description="largest block of an image in one answer; clients hold it in 2048 bytes with all headers",
             ge=64, le=65536, extra=BYTES),
    ] = 1024  # fmt: skip
    instance: Annotated[str, Meta(description="name of this dfud in events")] = "dfud"


TELEMETRY = Meta(description="take what devices publish")
CHANGES = Meta(description="take changes of deployments and rollouts")


class EventLogConfig(msgspec.Struct, frozen=True):
    path: Annotated[str, Meta(description="file that events are appended to, a CloudEvent a line; empty: none")] = ""
    telemetry: Annotated[bool, TELEMETRY] = True
    changes: Annotated[bool, CHANGES] = True
    max_bytes: Annotated[
        int, Meta(description="size at which the file is put aside as .1, .2, ...", ge=4096, le=1 << 40, extra=BYTES)
    ] = 64 << 20
    waiting_max: Annotated[
        int,
        Meta(description="events that wait for the disk before devices are told to try again", ge=1, le=1_000_000),
    ] = 10_000
    keep: Annotated[int, Meta(description="files put aside that are kept", ge=0, le=1000)] = 4


class WebhookConfig(msgspec.Struct, frozen=True):
    url: Annotated[str, Meta(description="where each event is sent as a CloudEvent; empty: nowhere")] = ""
    secret_file: Annotated[str, Meta(description="file with the key that events are signed with; needed with url")] = ""
    telemetry: Annotated[bool, TELEMETRY] = True
    changes: Annotated[bool, CHANGES] = True
    timeout_s: Annotated[float, Meta(description="time for one attempt", ge=0.1, le=600, extra=S)] = 10.0
    answer_max: Annotated[
        int,
        Meta(description="of an answer that is read before its connection is closed", ge=0, le=1 << 30, extra=BYTES),
    ] = 65536
    attempts: Annotated[int, Meta(description="attempts before the device is told to try again", ge=1, le=20)] = 3
    retry_s: Annotated[
        float, Meta(description="pause before the second attempt, doubled each time", ge=0.0, le=60, extra=S)
    ] = 0.5
    concurrent: Annotated[int, Meta(description="events on their way at a time", ge=1, le=1000)] = 16
    waiting_max: Annotated[
        int, Meta(description="events that wait for their turn before devices are told to try again", ge=0, le=100_000)
    ] = 1000
