"""A selector's statements are planned for what it says, however often another one was asked for."""

from __future__ import annotations

import json
from pathlib import Path

from dfud_postgres import queries
from dfud_postgres.wire import Query

from dfud.api import PutApp, PutDevice, parse_selector_untrusted
from dfud.testing.store import a_device, an_app
from tests.plugins.postgres.server import Server, config_for
from tests.plugins.postgres.test_registering import opened

SELECTORS = ("site=a", "site", "site!=a", "!site", "site in (a,b),nobody=x", "nobody")
PREPARED = Query("SELECT statement FROM pg_prepared_statements")
DEVICES = 4000
MORE_THAN_PLANNED_ANEW = 8  # the server keeps a plan for all values after five


async def test_what_a_selector_finds_is_never_planned_for_all_values_alike(postgres: Server, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"d{n}", site="ab"[n % 2])) for n in range(20))])
        for _ in range(MORE_THAN_PLANNED_ANEW):
            for text in SELECTORS:
                selector = parse_selector_untrusted(text)
                page = await store.devices("app1", selector, limit=5)
                assert len(await store.wishes("app1", selector, limit=5)) == len(page)
                assert await store.count("app1", selector) == len(await store.devices("app1", selector))
            assert len(await store.devices("app1", limit=5)) == 5
        prepared = [row[0] for row in await store._pool.rows(PREPARED)]
        assert any("FROM device d" in statement for statement in prepared), "what says no labels is prepared"
        assert not [
            statement for statement in prepared if "label" in statement and statement.startswith(("WITH", "SELECT"))
        ]


def explained(query: Query) -> Query:
    """Return the statement that carries out another one and tells what it read."""
    found = Query("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + query.text, by_values=query.by_values)
    found.oids, found.formats, found._encoders = query.oids, query.formats, query._encoders
    return found


async def test_few_pages_are_read_of_what_few_devices_have(postgres: Server, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([PutApp(an_app())])
        for first in range(0, DEVICES, 500):
            page = range(first, first + 500)
            await store.commit([PutDevice(a_device(f"d{n:05}", site=f"s{n % 4}", own=str(n))) for n in page])
        postgres.run("ANALYZE", config_for(tmp_path).database)
        for text in (
            "nobody",
            "nobody=x",
            "own=7",
            "own in (7,8)",
            "site in (s1,s2),own=7",
            "site=s1,nobody",
            "own=7,!nobody",
        ):
            selector = parse_selector_untrusted(text)
            for query, values, more in (
                (*queries.devices(queries.VIEW, selector), ("app1", "", [], 20, 0)),
                (*queries.count(selector), ("app1",)),
            ):
                ((told,),) = await store._pool.rows(explained(query), *more, *values)
                plan = json.loads(told)[0]["Plan"]
                read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
                assert read < 60, f"{text}: {read} pages of {DEVICES} devices, {plan}"
