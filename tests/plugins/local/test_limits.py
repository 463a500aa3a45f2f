"""What the local store keeps of one device, and what a store from before these limits becomes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import trio
from dfud_local.limits import Limits
from dfud_local.schema import MIGRATIONS, migrate
from dfud_local.store import LocalStore

from dfud.api import Bus, DeleteDevice, HistoryEntry, PutApp, PutDeployment, PutDevice, State
from dfud.testing.store import a_deployment, a_device, an_app


async def open_store(nursery: trio.Nursery, path: Path, limits: Limits) -> LocalStore:
    store = LocalStore(path, limits=limits)
    await nursery.start(store.run, Bus())
    await store.commit([PutApp(an_app()), PutDevice(a_device("dev1")), PutDevice(a_device("dev2"))])
    return store


def entry(device: str, number: int) -> HistoryEntry:
    return HistoryEntry("00" * 16, "app1", device, 0.0, State.PENDING, "1.0", code=number)


async def test_one_device_writes_its_own_history_away_only(nursery: trio.Nursery, tmp_path: Path) -> None:
    store = await open_store(nursery, tmp_path, Limits(history_per_device=5))
    await store.commit([PutDeployment(a_deployment(device="dev2"), entry("dev2", n)) for n in range(3)])
    for number in range(40):
        await store.commit([PutDeployment(a_deployment(device="dev1"), entry("dev1", number))])
    assert [e.code for e in await store.history("app1", "dev1")] == [39, 38, 37, 36, 35]
    assert [e.code for e in await store.history("app1", "dev2")] == [2, 1, 0]
    database = sqlite3.connect(tmp_path / "dfud.sqlite3")
    assert database.execute("SELECT count(*) FROM history").fetchone() == (8,)
    await store.commit([DeleteDevice("app1", "dev1"), PutDevice(a_device("dev1"))])
    await store.commit([PutDeployment(a_deployment(device="dev1"), entry("dev1", 0))])
    assert [e.code for e in await store.history("app1", "dev1")] == [0]


async def test_a_lower_limit_takes_effect_at_the_next_entry(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with trio.open_nursery() as before:
        store = await open_store(before, tmp_path, Limits())
        await store.commit([PutDeployment(a_deployment(), entry("dev1", n)) for n in range(50)])
        before.cancel_scope.cancel()
    store = await open_store(nursery, tmp_path, Limits(history_per_device=2))
    assert len(await store.history("app1", "dev1")) == 50
    await store.commit([PutDeployment(a_deployment(), entry("dev1", 50))])
    assert [e.code for e in await store.history("app1", "dev1")] == [50, 49]


async def test_the_oldest_finished_deployments_go_and_open_ones_stay(nursery: trio.Nursery, tmp_path: Path) -> None:
    store = await open_store(nursery, tmp_path, Limits(deployments_per_device=3))
    open_one = msgspec.structs.replace(a_deployment(1), number=1)
    await store.commit([PutDeployment(open_one)])
    for number in range(2, 20):
        made = a_deployment(number, State.DONE)
        # The clock runs backwards: what is old goes by the number.
        await store.commit([PutDeployment(msgspec.structs.replace(made, number=number, created_s=1e6 - number))])
    kept = await store.deployments("app1", "dev1", limit=100)
    assert [d.number for d in kept] == [19, 18, 17, 1]
    await store.commit([PutDeployment(a_deployment(30, State.DONE, device="dev2"))])
    assert len(await store.deployments("app1", "dev2")) == 1


def test_histories_from_before_are_counted_in_their_order(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "db", isolation_level=None)
    for migration in MIGRATIONS[:2]:
        database.executescript(migration)
    database.execute("PRAGMA user_version=2")
    for device, body in (("d1", b"a"), ("d2", b"b"), ("d1", b"c"), ("d1", b"d")):
        database.execute("INSERT INTO history (app, device, body) VALUES ('app1', ?, ?)", (device, body))
    database.execute("INSERT INTO deployment VALUES ('old', 'app1', 'd1', '1.0', 5.0, 1, x'80')")
    migrate(database)
    rows = database.execute("SELECT device, number, body FROM history ORDER BY device, number").fetchall()
    assert rows == [("d1", 1, b"a"), ("d1", 2, b"c"), ("d1", 3, b"d"), ("d2", 1, b"b")]
    assert database.execute("SELECT id, number, created FROM deployment").fetchall() == [("old", 0, 5.0)]
