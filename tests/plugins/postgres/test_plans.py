"""What is kept of a plan that was made while the tables were empty does not grow dear with them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dfud.api import (
    Actual,
    DeviceView,
    ExpectDevice,
    HistoryEntry,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
)
from dfud.testing.store import a_device, an_app
from dfud.testing.store_values import a_deployment
from tests.plugins.postgres.server import Server, config_for
from tests.plugins.postgres.test_registering import opened

DEVICES = 20_000
MORE_THAN_PLANNED_ANEW = 8  # the server keeps a plan for all values after five
FILL = (
    "SET session_replication_role = replica; "
    "INSERT INTO device (app, name, version, wants, body) "
    f"SELECT 'app1', 'x' || n, '1', '', ''::bytea FROM generate_series(1, {DEVICES}) n; "
    "INSERT INTO actual (app, device) SELECT app, name FROM device ON CONFLICT DO NOTHING; "
    "INSERT INTO device_label (app, key, value, device) SELECT app, 'group', 'g', name FROM device ON CONFLICT DO NOTHING; "
    "INSERT INTO deployment (id, app, device, version, created, open, number, body) "
    "SELECT name, app, name, '1', 1, false, 1, ''::bytea FROM device; "
    "INSERT INTO history (app, device, number, body, at_s) SELECT app, name, 1000, ''::bytea, 0 FROM device"
)


def read(server: Server, database: str) -> dict[str, int]:
    """Return how many rows of each table were read without an index."""
    return {
        str(name): int(str(rows))
        for name, rows in server.run("SELECT relname, seq_tup_read FROM pg_stat_user_tables", database)
    }


async def test_a_plan_of_empty_tables_reads_no_table_whole_once_it_is_filled(postgres: Server, tmp_path: Path) -> None:
    database = config_for(tmp_path).database
    async with opened(tmp_path, deployments_per_device=2, history_per_device=2) as store:
        await store.commit([PutApp(an_app())])
        postgres.run("VACUUM ANALYZE", database)

        async def live(number: int) -> None:
            """Register a device, change it, let it report and be updated, and look at it."""
            name = f"d{number}"
            await store.commit([PutDevice(a_device(name, site="a"), expect="")])
            await store.commit([PutDevice(a_device(name, version="2", site="b"), expect="1")])
            for turn in range(1, 4):
                deployment = msgspec.structs.replace(a_deployment(turn, device=name), id=f"{name}-{turn}", number=turn)
                entry = HistoryEntry(deployment.id, "app1", name, at_s=1.0, state=deployment.state, version="1.0")
                view = await store.device("app1", name)
                assert isinstance(view, DeviceView)
                await store.commit(
                    [
                        ExpectDevice("app1", name, view.sequence),
                        PutActual(Actual("app1", name, "1.0", "00" * 32, "esp32c3")),
                        PutDeployment(deployment, entry),
                    ]
                )
            assert name in await store.views("app1", [name])
            assert await store.history("app1", name)
            assert await store.deployments("app1", name)

        for number in range(MORE_THAN_PLANNED_ANEW):
            await live(number)
        postgres.run(FILL, database)
        before = read(postgres, database)
        for number in range(MORE_THAN_PLANNED_ANEW):
            await live(100 + number)
    after = read(postgres, database)  # what a session has read, the server counts when it ends at the latest
    whole = {name: rows - before[name] for name, rows in after.items() if rows - before[name] >= DEVICES}
    assert not whole, f"tables that were read row by row: {whole}"
