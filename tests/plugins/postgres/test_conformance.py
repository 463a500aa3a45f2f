"""The store postgres on a real PostgreSQL keeps the promise of every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import trio
from dfud_postgres.store import PostgresStore

from dfud.api import Bus
from dfud.testing.store import StoreConformance
from tests.plugins.postgres.server import Server, config_for


@pytest.mark.usefixtures("postgres")
class TestPostgresStore(StoreConformance):
    @pytest.fixture
    async def store(self, postgres: Server, nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[PostgresStore]:
        store = PostgresStore(config_for(tmp_path / "state"))
        await nursery.start(store.run, Bus())
        yield store

    def new_store(self, directory: Path) -> PostgresStore:
        return PostgresStore(config_for(directory))

    def damage(self, directory: Path, kind: str, name: str) -> None:
        config = config_for(directory)
        column = "version" if kind == "firmware" else "name"
        with psycopg.connect(host=config.host, user="admin", dbname=config.database) as database:
            changed = database.execute(f"UPDATE {kind} SET body=%s WHERE {column}=%s", (b"\xc1", name))
            assert changed.rowcount == 1
