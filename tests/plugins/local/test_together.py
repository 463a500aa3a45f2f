"""What devices say at one time is written together: a few statements for many of them, and one that fails costs itself only."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from dfud_local.limits import Limits
from dfud_local.store import LocalStore

from dfud.api import (
    Actual,
    AddCounts,
    App,
    Bus,
    Change,
    ConflictError,
    DeleteDevice,
    Deployment,
    Device,
    ExpectDevice,
    HistoryEntry,
    Metadata,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    State,
)
from dfud.model.ids import ordered_id

DEVICES = 300


@asynccontextmanager
async def opened(
    path: Path, traced: list[str] | None = None, limits: Limits | None = None
) -> AsyncIterator[LocalStore]:
    store = LocalStore(path, limits=limits)
    connect = store._connect

    def follow(*, readonly: bool = False) -> sqlite3.Connection:
        database = connect(readonly=readonly)
        if traced is not None and not readonly:
            database.set_trace_callback(traced.append)
        return database

    store._connect = follow  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        await store.commit([PutApp(App(Metadata("a")))])
        await store.commit([PutDevice(Device(Metadata(name(n), "a"))) for n in range(DEVICES)])
        yield store
        nursery.cancel_scope.cancel()


def name(number: int) -> str:
    return f"d{number}"


def actual(device: str, version: str = "1") -> Actual:
    return Actual("a", device, version, "00" * 32, "esp32c3")


def deployment(device: str, number: int = 1, state: State = State.PENDING) -> tuple[Deployment, HistoryEntry]:
    made = Deployment(
        id=f"{device}-{number}",
        app="a",
        device=device,
        version="2",
        sha256="11" * 32,
        state=state,
        created_s=float(number),
        updated_s=float(number),
        number=number,
    )
    return made, HistoryEntry(
        deployment=made.id, app="a", device=device, at_s=float(number), state=state, version="2", event="created"
    )


async def together(store: LocalStore, path: Path, work: Callable[[trio.Nursery], None]) -> None:
    """Have everything that `work` commits come while the writer waits for the database, so that it is one batch."""
    other = sqlite3.connect(path / "dfud.sqlite3", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit, [PutDevice(Device(Metadata("waiting", "a")))])
        while store._writer is None or not store._writer._began_s:
            await trio.lowlevel.checkpoint()
        work(nursery)
        await trio.testing.wait_all_tasks_blocked()
        other.execute("ROLLBACK")
        other.close()


async def test_one_commit_for_many_devices_is_a_few_statements(tmp_path: Path) -> None:
    traced: list[str] = []
    async with opened(tmp_path, traced) as store:
        traced.clear()
        changes: list[Change] = []
        for number in range(DEVICES - 1):  # no number of rows that a statement has
            made, entry = deployment(name(number))
            changes += [ExpectDevice("a", name(number), 0), PutDeployment(made, entry)]
            changes += [PutActual(actual(name(number))), AddCounts("r", {"told": 1})]
        await store.commit(changes)
        assert len(traced) < 40, f"{len(traced)} statements for {DEVICES - 1} devices"
        assert await store.counts("r") == {"told": DEVICES - 1}
        views = await store.views("a", [name(number) for number in range(DEVICES)])
        assert [view.actual is not None for view in views.values()] == [True] * (DEVICES - 1) + [False]
        for number in (0, DEVICES - 2):
            assert [entry.number for entry in await store.history("a", name(number))] == [1]
        assert await store.history("a", "") == [] and await store.count("a") == DEVICES


async def test_what_waits_for_event_sinks_is_written_with_it(tmp_path: Path) -> None:
    traced: list[str] = []
    async with opened(tmp_path, traced) as store:
        await store.commit([PutDocument("outbox.x", "7", b"old"), AddCounts("r", {"waiting": 5})])
        traced.clear()
        changes: list[Change] = [PutActual(actual(name(number))) for number in range(DEVICES)]
        changes += [PutDocument("outbox.x", str(number), b"%d" % number) for number in range(DEVICES)]
        await store.commit([*changes, AddCounts("r", {"waiting": -5, "told": 1})])
        assert len(traced) < 40, f"{len(traced)} statements for {DEVICES} devices"
        found = await store.documents("outbox.x", limit=DEVICES + 1)
        assert dict(found) == {str(number): b"%d" % number for number in range(DEVICES)}
        assert await store.counts("r") == {"told": 1}
        rows = await store._reader.rows("SELECT name FROM count WHERE scope='r'")
        assert rows == [(b"told",)], "a counter that has come back to 0 takes no room"
        # What asks for a condition is judged by itself.
        with pytest.raises(ConflictError):
            await store.commit([*changes, PutDocument("outbox.x", "7", b"new", create=True)])
        assert await store.document("outbox.x", "7") == b"7"


async def test_what_many_devices_say_is_a_few_statements_in_one_transaction(tmp_path: Path) -> None:
    traced: list[str] = []
    async with opened(tmp_path, traced) as store:

        def work(nursery: trio.Nursery) -> None:
            for number in range(DEVICES):
                first, entry = deployment(name(number))
                after, sent = deployment(name(number), state=State.NOTIFIED)
                told: list[Change] = [PutDeployment(first, entry), PutDeployment(after, sent)]
                said: list[Change] = [PutActual(actual(name(number))), AddCounts("r", {"told": 1})]
                nursery.start_soon(store.commit, [*told, *said])

        await together(store, tmp_path, work)
        begun = [n for n, statement in enumerate(traced) if statement.startswith("BEGIN")]
        batch = traced[begun[-1] :]
        assert sum(statement.startswith("COMMIT") for statement in batch) == 1
        assert len(batch) < DEVICES / 2, f"{len(batch)} statements for {DEVICES} devices"
        for number in range(DEVICES):
            view = await store.device("a", name(number))
            assert view is not None and view.actual is not None and view.deployment is not None
            assert (view.actual.version, view.deployment.state) == ("1", State.NOTIFIED)
            states = [entry.state for entry in await store.history("a", name(number))]
            assert states == [State.NOTIFIED, State.PENDING]
        assert await store.counts("r") == {"told": DEVICES}


async def test_a_device_that_is_gone_fails_its_own_commit_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        failed: list[str] = []

        async def tell(device: str) -> None:
            try:
                await store.commit([PutActual(actual(device)), AddCounts("r", {"said": 1})])
            except NotFoundError:
                failed.append(device)

        def work(nursery: trio.Nursery) -> None:
            for device in ("d1", "gone", "d2"):
                nursery.start_soon(tell, device)

        await together(store, tmp_path, work)
        assert failed == ["gone"]
        assert await store.counts("r") == {"said": 2}
        for device in ("d1", "d2"):
            view = await store.device("a", device)
            assert view is not None and view.actual is not None


@pytest.mark.parametrize("entries", [3, 300])
async def test_limits_hold_for_what_is_written_together(tmp_path: Path, entries: int) -> None:
    async with opened(tmp_path, limits=Limits(history_per_device=2, deployments_per_device=2)) as store:
        for number in range(1, 4):
            await store.commit([PutDeployment(*deployment("d1", number, State.DONE))])

        def work(nursery: trio.Nursery) -> None:
            for number in range(4, 4 + entries):
                nursery.start_soon(store.commit, [PutDeployment(*deployment("d1", number, State.DONE))])
            nursery.start_soon(store.commit, [PutDeployment(*deployment("d2", 1, State.DONE))])

        await together(store, tmp_path, work)
        assert len(await store.deployments("a", "d1", limit=1000)) == 2
        assert len(await store.deployments("a", "d2")) == 1
        # A few go with each commit, so after a burst the next one brings the rest below the limit.
        while len(before := await store.history("a", "d1", limit=1000)) > 2:
            await store.commit([PutDeployment(*deployment("d1", 9999, State.DONE))])
            assert len(await store.history("a", "d1", limit=1000)) < len(before) + 1
        assert len(await store.deployments("a", "d1", limit=1000)) == 2


async def test_of_two_that_expect_the_same_one_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit([PutActual(actual("d1"))])
        view = await store.device("a", "d1")
        assert view is not None
        outcomes: list[str] = []

        async def tell(device: str, sequence: int) -> None:
            try:
                await store.commit([ExpectDevice("a", device, sequence), PutActual(actual(device))])
                outcomes.append(device)
            except ConflictError:
                outcomes.append("conflict")

        def work(nursery: trio.Nursery) -> None:
            nursery.start_soon(tell, "d1", view.sequence)
            nursery.start_soon(tell, "d1", view.sequence)
            for number in range(2, 9):
                nursery.start_soon(tell, name(number), 0)

        await together(store, tmp_path, work)
        assert sorted(outcomes) == sorted(["conflict", *(name(n) for n in range(1, 9))])
        after = await store.device("a", "d1")
        assert after is not None and after.sequence == view.sequence + 1


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "made again"])
async def test_what_is_expected_of_a_device_that_was_deleted_is_not_written(tmp_path: Path, again: bool) -> None:
    async with opened(tmp_path) as store:
        names = [name(n) for n in range(12)]
        await store.commit([PutActual(actual(device)) for device in names])
        views = await store.views("a", names)
        await store.commit([DeleteDevice("a", "d3")])
        if again:
            await store.commit([PutDevice(Device(Metadata("d3", "a")))])
        refused: list[str] = []

        async def tell(device: str) -> None:
            changes: list[Change] = [ExpectDevice("a", device, views[device].sequence), PutActual(actual(device, "2"))]
            try:
                await store.commit([*changes, AddCounts("r", {"said": 1})])
            except (ConflictError, NotFoundError):
                refused.append(device)

        def work(nursery: trio.Nursery) -> None:
            for device in names:
                nursery.start_soon(tell, device)

        await together(store, tmp_path, work)
        assert refused == ["d3"]
        assert await store.counts("r") == {"said": 11}
        for device, before in views.items():
            view = await store.device("a", device)
            if device == "d3":
                assert view is None or (view.actual is None and view.sequence == 0)
            else:
                assert view is not None and view.actual is not None
                assert (view.actual.version, view.sequence) == ("2", before.sequence + 1)


async def test_the_deployments_of_one_commit_are_written_side_by_side(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:

        async def told(number: int) -> int:
            """Return how many bytes the write-ahead log grows when every device is told."""
            before = wal.stat().st_size
            made = [deployment(name(n), number) for n in range(DEVICES)]
            named = [
                (msgspec.structs.replace(d, id=ordered_id(number + n / 1000), text="x" * 400), entry)
                for n, (d, entry) in enumerate(made)
            ]
            await store.commit([PutDeployment(d, entry) for d, entry in named])
            return wal.stat().st_size - before

        wal = tmp_path / "dfud.sqlite3-wal"
        reader = sqlite3.connect(tmp_path / "dfud.sqlite3")  # keeps the log from beginning anew
        reader.execute("BEGIN").execute("SELECT COUNT(*) FROM device").fetchone()
        try:
            grown = [await told(number) for number in range(1, 8)]
        finally:
            reader.close()
        assert grown[-1] < 3 * DEVICES * 1024, grown  # with random names it is more than a page of 4096 bytes for each


async def test_who_is_expected_to_have_said_nothing_has_to_be_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        refused: list[str] = []

        async def expect(device: str) -> None:
            try:
                await store.commit([ExpectDevice("a", device, 0), AddCounts("r", {"silent": 1})])
            except NotFoundError:
                refused.append(device)

        def work(nursery: trio.Nursery) -> None:
            for device in ("gone", *map(name, range(8))):
                nursery.start_soon(expect, device)

        await together(store, tmp_path, work)
        assert refused == ["gone"]
        assert await store.counts("r") == {"silent": 8}
