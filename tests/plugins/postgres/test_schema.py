"""How the tables are made and brought up to date, and how a role logs in to do so."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import trio
from dfud_postgres import schema
from dfud_postgres.config import PostgresConfig
from dfud_postgres.store import PostgresStore

from dfud.api import Bus, ConfigError, PutApp
from dfud.testing.store import an_app
from tests.plugins.postgres.server import Server, config_for

PROCESSES = 5
LATEST_S = 120.0


async def made_at_once(config: PostgresConfig) -> None:
    """Start several stores at once; all of them can lead, store and read then."""
    async with trio.open_nursery() as nursery:
        stores = [PostgresStore(config) for _ in range(PROCESSES)]
        with trio.fail_after(LATEST_S):
            async with trio.open_nursery() as starting:
                for store in stores:
                    starting.start_soon(nursery.start, store.run, Bus())
            await stores[0].commit([PutApp(an_app())])
            for store in stores:
                assert await store.app("app1") == an_app()
                async with store.lead("w"):
                    pass
        nursery.cancel_scope.cancel()


def _version(config: PostgresConfig) -> int:
    with psycopg.connect(f"host={config.host} user=dfud dbname={config.database}") as connection:
        (row,) = connection.execute("SELECT version FROM dfud_schema").fetchall()
        return int(row[0])


@pytest.mark.parametrize("version", range(len(schema.MIGRATIONS)))
async def test_a_database_of_any_version_is_brought_up_once_by_whoever_comes_first(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    config = config_for(tmp_path)
    if version:
        with monkeypatch.context() as before:
            before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:version])
            store = PostgresStore(config)
            async with trio.open_nursery() as nursery:
                await nursery.start(store.run, Bus())
                await store.commit([PutApp(an_app("older"))])
                nursery.cancel_scope.cancel()
        assert _version(config) == version
    await made_at_once(config)
    assert _version(config) == len(schema.MIGRATIONS)
    if version:
        with psycopg.connect(f"host={config.host} user=dfud dbname={config.database}") as connection:
            assert connection.execute("SELECT name FROM app ORDER BY name").fetchall() == [("app1",), ("older",)]


def test_a_password_may_be_a_credential_of_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PostgresConfig(password_file="dfud-database")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="LoadCredential"):
        config.check()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="dfud-database: No such file"):
        config.check()
    (tmp_path / "dfud-database").write_text("over there\n")
    config.check()
    assert config.password() == "over there"
    (tmp_path / "dfud-database").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        config.check()
