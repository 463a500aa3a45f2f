"""The hooks of the local store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from dfud.api import Config, Section, Store, hookimpl
from dfud_local.limits import Limits
from dfud_local.store import LocalStore


class LocalConfig(
    msgspec.Struct,
    frozen=True,
):
    path: Annotated[
        str, msgspec.Meta(description="directory of the database and the images; made if it is not there")
    ] = "var/dfud"
    database_max_bytes: Annotated[
        int,
        msgspec.Meta(
            description="the database refuses to grow beyond this; 0: no limit", ge=0, extra={"unit": "bytes"}
        ),
    ] = 0
    history_per_device: Annotated[
        int, msgspec.Meta(description="entries of a device's history that are kept", ge=1, le=1_000_000)
    ] = 200
    deployments_per_device: Annotated[
        int, msgspec.Meta(description="finished deployments of a device that are kept", ge=1, le=100_000)
    ] = 20
    stuck_s: Annotated[
        float,
        msgspec.Meta(
            description="time one write may take before dfud takes the disk for dead and ends",
            ge=0.1,
            le=3600,
            extra={"unit": "s"},
        ),
    ] = 30.0


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("store.local", LocalConfig, "Records in SQLite, images as files, on this machine.")]


@hookimpl
def dfud_stores(config: Config) -> Iterable[Store]:
    section = config.section("store.local", LocalConfig)
    limits = Limits(
        history_per_device=section.history_per_device, deployments_per_device=section.deployments_per_device
    )
    return [
        LocalStore(
            Path(section.path),
            database_max_bytes=section.database_max_bytes,
            limits=limits,
            stuck_s=section.stuck_s,
        )
    ]
