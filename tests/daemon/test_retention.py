"""What has ended long ago is removed, the newest stays, and a part that fails does not keep the others from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio
from dfud_local.store import LocalStore

from dfud.api import App, HistoryEntry, Metadata, PutApp, PutDeployment, PutDevice, State, StoreError, faults
from dfud.daemon import retention
from dfud.daemon.retention import DAY_S, Retention, RetentionConfig
from dfud.registry import audit
from dfud.registry.claims import CLAIMS, USES
from dfud.registry.writing import Precondition
from dfud.testing.store import a_deployment, a_device, an_app
from tests.registry.desk import T0, Desk, desk

CONFIG = RetentionConfig(history_days=30, audit_days=60, audit_max=5000, claims_days=10)


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)
    async with desk(tmp_path) as found:
        yield found


def made(at: Desk) -> Retention:
    return Retention(at.store, CONFIG, at.now, claims=at.claims.forget)


async def test_history_and_ended_deployments_go_with_their_age(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP", 3)
    await at.store.commit([PutApp(an_app()), PutDevice(a_device())])
    for month in range(6):
        at.now_s = T0 + month * 31 * DAY_S
        one = msgspec.structs.replace(a_deployment(month + 1, State.DONE), number=month + 1, created_s=at.now_s)
        entries = [HistoryEntry(one.id, "app1", "dev1", at.now_s, State.DONE, "1.0") for _ in range(4)]
        await at.store.commit([PutDeployment(one, e) for e in entries])
        await made(at).sweep()
        assert [d.number for d in await at.store.deployments("app1", "dev1")] == [month + 1]
        assert len(await at.store.history("app1", "dev1")) == 4
    at.now_s += 365 * DAY_S
    assert await made(at).sweep() == 4
    assert [d.number for d in await at.store.deployments("app1", "dev1")] == [6], "it says what became of the device"
    assert await made(at).sweep() == 0


async def test_the_audit_goes_with_its_age(at: Desk) -> None:
    entries = [audit.entry(T0 + day * DAY_S, "x", "create", str(day)) for day in range(100)]
    await at.store.commit(entries)
    at.now_s = T0 + 100 * DAY_S
    await made(at).sweep()
    assert [e.target for _, e in await audit.read(at.store)] == [str(day) for day in range(40, 100)]


async def test_claims_go_when_they_have_expired_or_their_app_is_gone(at: Desk) -> None:
    for app in ("a", "b"):
        await at.registry.create_app(App(Metadata(app)), "admin")
        await at.claims.create(app, "admin", uses=3, hours=24)
        await at.claims.create(app, "admin", uses=2, hours=24 * 300)
    await at.registry.delete_app("b", Precondition(), "admin")
    assert await made(at).sweep() == 2, "those of b"
    at.now_s += 10.9 * DAY_S
    assert await made(at).sweep() == 0
    at.now_s += 0.2 * DAY_S
    assert await made(at).sweep() == 1
    assert len(await at.store.documents(CLAIMS)) == 1 and len(await at.store.documents(USES)) == 2
    await at.registry.create_app(App(Metadata("b")), "admin")
    assert await at.claims.all_of("b") == []


async def test_a_part_that_fails_costs_itself_only(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*args: object, **more: object) -> object:
        raise StoreError("the disk is full", retryable=True)

    at.now_s += 1000 * DAY_S  # behind every key that other tests of this process have made
    await at.store.commit([audit.entry(at.now_s, "x", "create", "old")])
    await at.registry.create_app(App(Metadata("a")), "admin")
    await at.claims.create("a", "admin", hours=1)
    at.now_s += 100 * DAY_S
    before = faults().get("daemon.retention", 0)
    monkeypatch.setattr(at.store, "prune", fails)
    assert await made(at).sweep() == 1
    assert [e.target for _, e in await audit.read(at.store) if e.target == "old"] == []
    assert faults()["daemon.retention"] == before + 1


async def test_it_sweeps_at_the_start_and_every_hour(tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[float] = []

    async def sweep(self: Retention) -> int:
        swept.append(trio.current_time())
        return 0

    monkeypatch.setattr(Retention, "sweep", sweep)
    async with trio.open_nursery() as nursery:
        await nursery.start(Retention(LocalStore(tmp_path), CONFIG).run)
        await trio.sleep(2.5 * retention.SWEEP_S)
        nursery.cancel_scope.cancel()
    assert len(swept) == 3
