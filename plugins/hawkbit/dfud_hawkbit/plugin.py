"""The hooks of the hawkBit store."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import Config, Section, Store, UserRoutes, hookimpl
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.routes import HawkbitRoutes
from dfud_hawkbit.store import HawkbitStore


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("store.hawkbit", HawkbitConfig, "Eclipse hawkBit holds firmware, desired state and progress.")]


@hookimpl
def dfud_stores(config: Config) -> Iterable[Store]:
    return [HawkbitStore(config.section("store.hawkbit", HawkbitConfig))]


@hookimpl
def dfud_user_routes(config: Config) -> Iterable[UserRoutes]:
    return [HawkbitRoutes()]
