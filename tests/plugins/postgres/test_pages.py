"""A page of many devices costs the same wherever it is: nothing before it is read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from dfud_postgres import queries
from dfud_postgres.store import PostgresStore

from dfud.api import Bus, PutApp, parse_selector_untrusted
from dfud.testing.store import an_app
from tests.plugins.postgres.server import Server, config_for

DEVICES = 60_000
LIMIT = 100
FILL = (
    "SET session_replication_role = replica",
    "INSERT INTO device (app, name, version, wants, body) "
    f"SELECT 'app1', 'd' || to_char(n, 'FM0000000'), '1', '', repeat('x', 300)::bytea FROM generate_series(1, {DEVICES}) n",
    "INSERT INTO actual (app, device) SELECT app, name FROM device",
    "INSERT INTO device_label (app, key, value, device) SELECT app, 'group', 'g' || right(name, 1), name FROM device",
    "INSERT INTO deployment (id, app, device, version, created, open, number, body) "
    "SELECT name, app, name, '1', 1, right(name, 1) = '3', 1, ''::bytea FROM device",
    "VACUUM ANALYZE",
)


@pytest.fixture
def database(postgres: Server, tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    config = config_for(tmp_path)

    async def make() -> None:
        store = PostgresStore(config)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run, Bus())
            await store.commit([PutApp(an_app())])
            nursery.cancel_scope.cancel()

    trio.run(make)
    with postgres.admin(config.database) as connection:
        for statement in FILL:
            connection.execute(statement.encode())
        yield connection


def blocks(database: psycopg.Connection[Any], text: str, values: list[object]) -> tuple[int, int]:
    """Return how many blocks a statement reads, and how many rows it finds."""
    literals = [psycopg.sql.Literal(value).as_string(database) for value in values]
    for number in range(len(values), 0, -1):
        text = text.replace(f"${number}", literals[number - 1])
    found = database.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}".encode()).fetchone()
    assert found is not None
    plan = (found[0] if isinstance(found[0], list) else json.loads(found[0]))[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], plan["Actual Rows"]


def test_a_page_costs_the_same_at_the_end(database: psycopg.Connection[Any]) -> None:
    wrong = []
    for selector in ("", "group", "group=g3", "group!=g3", "!site", "updating"):
        costs = []
        for after in ("", f"d{DEVICES - 5000:07}"):
            if selector == "updating":
                costs.append(blocks(database, queries.UPDATING.text, ["app1", after, [], LIMIT]))
            else:
                query, values = queries.devices("d.name, d.firmware FROM device d", parse_selector_untrusted(selector))
                costs.append(blocks(database, query.text, ["app1", after, [], LIMIT, 0, *values]))
        (first, found), (last, rows) = costs
        assert found == rows == LIMIT
        if last > 2 * first + 100:
            wrong.append(f"{selector or 'all'}: {first} blocks at the beginning, {last} at the end")
    assert not wrong, "\n".join(wrong)
