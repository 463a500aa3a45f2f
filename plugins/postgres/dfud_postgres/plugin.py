"""The hooks of the store postgres."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import Config, Section, Store, hookimpl
from dfud_postgres.config import PostgresConfig
from dfud_postgres.store import PostgresStore


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("store.postgres", PostgresConfig, "Records in PostgreSQL, shared by several dfud.")]


@hookimpl
def dfud_stores(config: Config) -> Iterable[Store]:
    return [PostgresStore(config.section("store.postgres", PostgresConfig))]
