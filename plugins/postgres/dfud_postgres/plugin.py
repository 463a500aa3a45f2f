"""The hooks of the store postgres. It can be enabled without its driver, as long as the store is not asked for."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import Config, PluginError, Section, Store, hookimpl
from dfud_postgres.config import PostgresConfig


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("store.postgres", PostgresConfig, "Records in PostgreSQL, shared by several dfud.")]


@hookimpl
def dfud_stores(config: Config) -> Iterable[Store]:
    try:
        from dfud_postgres.store import PostgresStore
    except ImportError as error:
        raise PluginError(f"the store postgres needs psycopg: pip install 'dfud[postgres]' ({error})") from error
    return [PostgresStore(config.section("store.postgres", PostgresConfig))]
