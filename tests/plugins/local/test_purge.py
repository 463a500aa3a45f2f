"""An app with many devices is gone at once, is removed a few at a time, and its removal goes on after a restart."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from dfud_local import purge
from dfud_local.store import LocalStore

from dfud.api import (
    Actual,
    Bus,
    ConflictError,
    DeleteApp,
    ExpectDevice,
    HistoryEntry,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    State,
)
from dfud.testing.store import a_deployment, a_device, an_app

DEVICES = 60
TABLES = ("device", "device_label", "alias", "actual", "deployment", "history", "dropped")


async def fill(store: LocalStore) -> None:
    for app in ("app1", "app2"):
        names = [f"d{n:02}" for n in range(DEVICES)]
        await store.commit([PutApp(an_app(app)), *(PutDevice(a_device(n, app, spec={"alias": [f"x{n}"]}, k="v")) for n in names)])
        await store.commit([PutActual(Actual(app, n, "1", "00" * 32, "esp32c3")) for n in names])
    made = [a_deployment(n + 1, State.DONE, f"d{n:02}") for n in range(DEVICES)]
    entries = [HistoryEntry(d.id, "app1", d.device, 0.0, State.DONE, "1.0") for d in made]
    await store.commit([PutDeployment(d, e) for d, e in zip(made, entries, strict=True)])


def rows(path: Path, app: str) -> dict[str, int]:
    with closing(sqlite3.connect(path / "dfud.sqlite3")) as database:
        return {t: database.execute(f"SELECT count(*) FROM {t} WHERE app=?", (app,)).fetchone()[0] for t in TABLES}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Few devices at once, and no step but those that the test lets go: it appends to the list how many."""
    monkeypatch.setattr(purge, "AT_ONCE", 7)
    allowed: list[int] = []
    right = purge.Purge.step

    def step(self: purge.Purge, database: sqlite3.Connection) -> None:
        if allowed and allowed[0]:
            allowed[0] -= 1
            right(self, database)

    monkeypatch.setattr(purge.Purge, "step", step)
    return allowed


async def test_an_app_is_gone_before_its_devices_are(nursery: trio.Nursery, tmp_path: Path, steps: list[int]) -> None:
    store = LocalStore(tmp_path)
    await nursery.start(store.run, Bus())
    await fill(store)
    await store.commit([DeleteApp("app1")])
    assert rows(tmp_path, "app1")["device"] == DEVICES - 7
    assert await store.app("app1") is None and await store.device("app1", "d50") is None
    assert await store.devices("app1") == [] and await store.wishes("app1") == [] and await store.count("app1") == 0
    assert await store.find_alias("app1", "xd50") is None and await store.find_aliases("app1", ["d50"]) == {}
    assert await store.deployments("app1", "d50") == [] and await store.history("app1", "d50") == []
    assert await store.deployment(a_deployment(51).id) is None and await store.users_of("app1", "1.0") == []
    with pytest.raises(ConflictError, match="still being removed: try again"):
        await store.commit([PutApp(an_app())])
    said = PutActual(Actual("app1", "d50", "1", "00" * 32, "esp32c3"))
    for change in (PutDevice(a_device("d50")), said, PutDeployment(a_deployment(device="d50")), ExpectDevice("app1", "d50", 1)):
        with pytest.raises(NotFoundError):
            await store.commit([change])
    # Between two steps others are served.
    for number in range(3):
        steps[:] = [1]
        while steps[0]:
            await trio.sleep(0.001)
        await store.commit([PutDocument("c", str(number), b"")])
        assert DEVICES - rows(tmp_path, "app1")["device"] <= 7 * (number + 2)
    assert await store.count("app2") == DEVICES
    steps[:] = [1000]
    while rows(tmp_path, "app1")["dropped"]:
        await trio.sleep(0.001)
    assert set(rows(tmp_path, "app1").values()) == {0}
    await store.commit([PutApp(an_app()), PutDevice(a_device("d50"))])
    assert [v.device.name for v in await store.devices("app1")] == ["d50"]
    assert rows(tmp_path, "app2")["device_label"] == DEVICES


async def test_it_goes_on_after_a_restart(tmp_path: Path, steps: list[int]) -> None:
    async with trio.open_nursery() as nursery:
        store = LocalStore(tmp_path)
        await nursery.start(store.run, Bus())
        await fill(store)
        await store.commit([DeleteApp("app1")])
        nursery.cancel_scope.cancel()
    assert rows(tmp_path, "app1")["device"] == DEVICES - 7
    async with trio.open_nursery() as nursery:
        store = LocalStore(tmp_path)
        await nursery.start(store.run, Bus())
        assert await store.count("app1") == 0
        steps[:] = [1000]
        while rows(tmp_path, "app1")["dropped"]:
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert set(rows(tmp_path, "app1").values()) == {0} and rows(tmp_path, "app2")["device"] == DEVICES


async def test_a_full_disk_only_delays_it(nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "AT_ONCE", 7)
    monkeypatch.setattr("dfud_local.writer.PROBE_S", 0.01)
    store = LocalStore(tmp_path)
    await nursery.start(store.run, Bus())
    await fill(store)
    right, failures = purge.drop_devices, 3

    def full(database: sqlite3.Connection, app: str) -> bool:
        nonlocal failures
        failures -= 1
        if 0 <= failures < 2:
            raise sqlite3.OperationalError("database or disk is full")
        return right(database, app)

    monkeypatch.setattr(purge, "drop_devices", full)
    await store.commit([DeleteApp("app1")])
    while rows(tmp_path, "app1")["dropped"]:
        await trio.sleep(0.001)
    assert failures < 0 and set(rows(tmp_path, "app1").values()) == {0}
    await store.commit([PutApp(an_app())])
