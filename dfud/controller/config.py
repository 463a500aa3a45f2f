"""The section [controller]."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dfud.api import Section

Meta = msgspec.Meta
S = {"unit": "s"}


class ControllerConfig(msgspec.Struct, frozen=True):
    poll_s: Annotated[
        int, Meta(description="how often a device that has nothing to do asks", ge=1, le=604800, extra=S)
    ] = 300
    busy_poll_s: Annotated[
        int, Meta(description="how soon a device asks again while something is being prepared", ge=1, le=3600, extra=S)
    ] = 2
    attempts: Annotated[
        int, Meta(description="transfers that may fail before a deployment has failed", ge=1, le=100)
    ] = 3
    retry_s: Annotated[
        int, Meta(description="wait before the second attempt; doubled each time", ge=0, le=86400, extra=S)
    ] = 30
    retry_max_s: Annotated[int, Meta(description="longest wait between attempts", ge=0, le=604800, extra=S)] = 3600
    progress_s: Annotated[
        float, Meta(description="how often the progress of one transfer is stored", ge=0.1, le=3600, extra=S)
    ] = 5.0
    seen_s: Annotated[
        float,
        Meta(description="how often it is stored that a silent, unchanged device is alive", ge=1, le=86400, extra=S),
    ] = 900.0
    attention_s: Annotated[
        float,
        Meta(description="how long a deployment may stand still before it needs attention", ge=1, le=8640000, extra=S),
    ] = 86400.0
    cache_devices: Annotated[int, Meta(description="devices kept in memory", ge=100, le=10_000_000)] = 100_000
    cache_apps: Annotated[int, Meta(description="apps kept in memory", ge=10, le=10_000_000)] = 10_000
    cache_firmwares: Annotated[
        int, Meta(description="firmwares kept in memory, without their images", ge=10, le=10_000_000)
    ] = 20_000
    rollouts_per_app: Annotated[
        int, Meta(description="rollouts of one app, with those that have ended and are not deleted", ge=1, le=100_000)
    ] = 200
    packages_path: Annotated[str, Meta(description="directory of prepared packages; may be emptied at any time")] = (
        "var/packages"
    )
    packages_max_bytes: Annotated[
        int, Meta(description="prepared packages kept on disk", ge=1 << 20, extra={"unit": "bytes"})
    ] = 4 << 30
    packages_memory_bytes: Annotated[
        int, Meta(description="prepared packages kept in memory", ge=1 << 20, extra={"unit": "bytes"})
    ] = 128 << 20
    packages_known: Annotated[
        int, Meta(description="names of packages kept in memory; others are looked up on disk", ge=16, le=10_000_000)
    ] = 10_000
    packages_waiting: Annotated[
        int, Meta(description="packages that may wait to be prepared; one for each device at most", ge=1, le=100_000)
    ] = 256
    packages_per_hour: Annotated[
        int,
        Meta(
            description="packages that one device may have made in an hour; beyond them it is told to wait",
            ge=4,
            le=100_000,
        ),
    ] = 24
    history_per_hour: Annotated[
        int,
        Meta(
            description="entries of history that one device may cause in an hour; beyond them it is told to wait", ge=20
        ),
    ] = 600
    link_bytes_per_second: Annotated[
        int,
        Meta(
            description="rate of a device's link until a transfer has shown it; of which package is sent it decides",
            ge=100,
            le=10_000_000,
            extra={"unit": "bytes/s"},
        ),
    ] = 20_000
    workers: Annotated[
        int, Meta(description="processes that prepare packages; 0: one less than cores", ge=0, le=256)
    ] = 0


SECTION = Section("controller", ControllerConfig, "When devices are told what.")
