"""What the local store keeps of one device, and what a store from before these limits becomes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import trio
from dfud_local.limits import Limits
from dfud_local.schema import MIGRATIONS
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
    database.close()
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


async def test_a_history_from_before_keeps_its_order_and_goes_first(nursery: trio.Nursery, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "dfud.sqlite3", isolation_level=None)
    for migration in MIGRATIONS[:2]:
        database.executescript(migration)
    database.execute("PRAGMA user_version=2")
    old = [msgspec.msgpack.encode(entry("dev1", n)) for n in range(200)]
    database.executemany("INSERT INTO history (app, device, body) VALUES ('app1', 'dev1', ?)", [(body,) for body in old])
    before = msgspec.msgpack.encode(a_deployment(7))
    database.execute("INSERT INTO deployment VALUES (?, 'app1', 'dev1', '1.0', 5.0, 1, ?)", (a_deployment(7).id, before))
    database.close()
    store = await open_store(nursery, tmp_path, Limits(history_per_device=3))
    assert [e.code for e in await store.history("app1", "dev1", limit=4)] == [199, 198, 197, 196]
    assert await store.deployments("app1", "dev1") == [a_deployment(7)]
    left = []
    for number in range(200, 208):
        await store.commit([PutDeployment(a_deployment(7), entry("dev1", number))])
        history = [e.code for e in await store.history("app1", "dev1", limit=1000)]
        assert history == list(range(number, number - len(history), -1))
        left.append(len(history))
    # The first three have a place; then a bounded number goes with each commit, down to the limit.
    assert left == [201, 202, 139, 76, 13, 3, 3, 3]
