"""One surprise costs itself only: in one change, in one record, in the writer's thread."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from dfud_local import writer as writer_module
from dfud_local.changes import Changes
from dfud_local.many import Many
from dfud_local.store import LocalStore

from dfud.api import (
    Actual,
    Bus,
    DeleteApp,
    DeleteDevice,
    DeleteFirmware,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    State,
    StoreError,
    UnreadableError,
    faults,
)
from dfud.controller.wishes import retried
from dfud.testing.store import a_blob, a_deployment, a_device, a_firmware, an_app, image_of


@pytest.fixture
async def store(nursery: trio.Nursery, tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    await nursery.start(store.run, Bus())
    await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"d{n}", site="a")) for n in range(5))])
    return store


def flip(path: Path, table: str, where: str, change: Callable[[bytes], bytes], column: str = "body") -> None:
    """Change a stored record as a failing disk would, from outside."""
    database = sqlite3.connect(path / "dfud.sqlite3")
    with database:
        (body,) = database.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
        database.execute(f"UPDATE {table} SET {column}=? WHERE {where}", (change(body),))
    database.close()


def torn(body: bytes) -> bytes:
    return b"\xc1" + body[1:]  # 0xc1 is no msgpack


@pytest.mark.parametrize("together", [False, True])
async def test_any_exception_of_one_change_fails_its_commit_only(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Whatever it is: those that share its batch are stored, and so is what comes after. Also of those that share statements."""
    real, add = Changes.apply, Many.add

    def apply(self: Changes, change: Any, bodies: tuple[bytes, ...]) -> None:
        real(self, change, bodies)
        perhaps(change)

    def added(self: Many, changes: Any) -> None:
        add(self, changes)
        for change, _ in changes:
            perhaps(change)

    def perhaps(change: Any) -> None:
        if isinstance(change, PutDocument) and change.key.startswith("bad"):
            raise [ZeroDivisionError("by chance"), sqlite3.ProgrammingError("odd"), MemoryError(), KeyError("x")][int(change.key[-1])]

    monkeypatch.setattr(Changes, "apply", apply)
    monkeypatch.setattr(Many, "add", added)
    outcomes: dict[str, Exception | None] = {}

    async def put(key: str) -> None:
        try:
            await store.commit([PutDocument("c", one, b"", create=not together) for one in (f"with-{key}", key)])
            outcomes[key] = None
        except StoreError as error:
            outcomes[key] = error

    async with trio.open_nursery() as nursery:
        for n in range(40):
            nursery.start_soon(put, f"bad{n // 10}" if n % 10 == 5 else f"good{n}")
    assert {key for key, error in outcomes.items() if error is not None} == {"bad0", "bad1", "bad2", "bad3"}
    kept = [key for key, _ in await store.documents("c")]
    assert len(kept) == 72 and not any("bad" in key for key in kept)
    assert store.problem() == ""


async def test_a_writer_that_dies_fails_every_commit_and_the_store(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    raised: list[StoreError] = []
    died = trio.Event()

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with pytest.raises(StoreError, match="the writer of the database has ended"):
            await store.run(Bus(), task_status=task_status)
        died.set()

    await nursery.start(run)
    await store.commit([PutApp(an_app())])

    def broken(*arguments: Any) -> None:
        raise SystemExit("no exception of one job")

    monkeypatch.setattr(writer_module.Writer, "_write", broken)

    async def commit() -> None:
        with pytest.raises(StoreError) as caught:
            await store.commit([PutApp(an_app("app2"))])
        raised.append(caught.value)

    with trio.fail_after(120):
        async with trio.open_nursery() as committing:
            for _ in range(20):
                committing.start_soon(commit)
        await died.wait()
        await commit()
    assert len(raised) == 21
    assert store.problem() != ""
    monkeypatch.undo()
    await nursery.start(store.run, Bus())
    assert await store.app("app2") is None
    await store.commit([PutApp(an_app("app2"))])
    assert store.problem() == ""


async def test_a_writer_that_is_stuck_is_a_problem_until_it_goes_on(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs: /readyz has to say so, although nothing has failed."""
    store = LocalStore(tmp_path, stuck_s=0.0)
    monkeypatch.setattr(writer_module.Writer, "_watch", lambda self: None)
    await nursery.start(store.run, Bus())
    real, stuck, go_on = writer_module.Writer._write, threading.Event(), threading.Event()

    def hanging(*arguments: Any) -> None:
        stuck.set()
        go_on.wait(30)
        real(*arguments)

    monkeypatch.setattr(writer_module.Writer, "_write", hanging)

    async def nothing() -> None:
        with trio.fail_after(120):
            while store.problem():  # the thread says so after it has answered
                await trio.lowlevel.checkpoint()

    await nothing()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit, [PutApp(an_app("slow"))])
        await trio.to_thread.run_sync(stuck.wait)
        with trio.fail_after(120):
            while "has been writing for" not in store.problem():
                await trio.lowlevel.checkpoint()
        go_on.set()
    assert await store.app("slow") is not None
    await nothing()


async def test_a_device_that_cannot_be_read_costs_itself_until_it_is_put_again(
    store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(tmp_path, "device", "name='d2'", torn)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(UnreadableError, match="device d2 of app app1"):
                await store.device("app1", "d2")
        assert [v.device.name for v in await store.devices("app1")] == ["d0", "d1", "d3", "d4"]
    assert len([r for r in caplog.records if r.getMessage() == "a stored record cannot be read"]) == 1
    assert store.counters()["dfud_store_unreadable_records"] == 1
    assert (await store.app("app1")) is not None
    await store.commit([PutDevice(a_device("d2", version="9"), expect="1")])
    found = await store.device("app1", "d2")
    assert found is not None and found.device.metadata.resource_version == "9"
    assert [v.device.name for v in await store.devices("app1")] == ["d0", "d1", "d2", "d3", "d4"]
    assert store.counters()["dfud_store_unreadable_records"] == 0


async def test_a_list_with_unreadable_records_has_its_pages_full(store: LocalStore, tmp_path: Path) -> None:
    """A short page would end the walk of whoever reads page by page."""
    for name in ("d0", "d1", "d3"):
        flip(tmp_path, "device", f"name='{name}'", torn)
    assert [v.device.name for v in await store.devices("app1", limit=1)] == ["d2"]
    assert [v.device.name for v in await store.devices("app1", limit=1, offset=1)] == ["d4"]
    assert [v.device.name for v in await store.devices("app1", limit=2, after="d2")] == ["d4"]
    await store.commit([DeleteDevice("app1", "d0"), DeleteDevice("app1", "d1"), DeleteDevice("app1", "d3")])
    assert store.counters()["dfud_store_unreadable_records"] == 0
    with pytest.raises(NotFoundError):
        await store.commit([DeleteDevice("app1", "d0")])


async def test_a_record_that_was_repaired_by_hand_is_in_the_list_once_it_was_read(
    store: LocalStore, tmp_path: Path
) -> None:
    flip(tmp_path, "device", "name='d2'", lambda body: bytes([body[0] ^ 0xFF]) + body[1:])
    assert len(await store.devices("app1")) == 4
    flip(tmp_path, "device", "name='d2'", lambda body: bytes([body[0] ^ 0xFF]) + body[1:])
    assert await store.device("app1", "d2") is not None
    assert len(await store.devices("app1")) == 5


async def test_a_record_that_speaks_of_another_device_is_not_taken_for_it(store: LocalStore, tmp_path: Path) -> None:
    flip(tmp_path, "device", "name='d2'", lambda body: body.replace(b"\xa2d2", b"\xa2d3"))
    with pytest.raises(UnreadableError, match="another name"):
        await store.device("app1", "d2")
    assert [v.device.name for v in await store.devices("app1")] == ["d0", "d1", "d3", "d4"]


async def test_what_a_device_said_and_did_is_not_taken_for_anothers(store: LocalStore, tmp_path: Path) -> None:
    actual = Actual("app1", "d0", "1.0", "ab" * 32, "esp32c3")
    made = [msgspec.structs.replace(a_deployment(n, device="d0"), number=n) for n in (1, 2)]
    await store.commit([PutActual(actual), *map(PutDeployment, made)])
    for table, where in (("actual", "device='d0'"), ("deployment", "number=2")):
        flip(tmp_path, table, where, lambda body: body.replace(b"\xa2d0", b"\xa2d1"))
    found = await store.device("app1", "d0")
    assert found is not None and (found.actual, found.deployment) == (None, made[0])
    assert await store.deployments("app1", "d0") == [made[0]]
    with pytest.raises(UnreadableError, match="another name"):
        await store.deployment(made[1].id)


async def test_every_kind_of_record_that_was_repaired_by_hand_counts_no_longer(store: LocalStore, tmp_path: Path) -> None:
    made = msgspec.structs.replace(a_deployment(1, device="d0"), number=1)
    await store.commit([PutActual(Actual("app1", "d0", "1.0", "ab" * 32, "esp32c3")), PutDeployment(made)])
    async with a_blob(store, b"imag") as sha256:
        await store.commit([PutFirmware(a_firmware(sha256, "1.0"))])
    places = (("app", "name='app1'"), ("device", "name='d0'"), ("actual", "1"), ("deployment", "1"), ("firmware", "1"))

    async def read() -> float:
        for reading in (store.app("app1"), store.device("app1", "d0"), store.firmware("app1", "1.0"), store.deployment(made.id)):
            with contextlib.suppress(UnreadableError):
                await reading
        return store.counters()["dfud_store_unreadable_records"]

    for table, where in places:
        flip(tmp_path, table, where, lambda body: bytes([body[0] ^ 0xFF]) + body[1:])
        assert await read() == 1, table
        flip(tmp_path, table, where, lambda body: bytes([body[0] ^ 0xFF]) + body[1:])
        assert await read() == 0, table


async def test_what_a_device_said_and_did_costs_itself_only(store: LocalStore, tmp_path: Path) -> None:
    actual = Actual("app1", "d0", "1.0", "ab" * 32, "esp32c3")
    made = [msgspec.structs.replace(a_deployment(n, device="d0"), number=n) for n in range(1, 5)]
    await store.commit([PutActual(actual), *map(PutDeployment, made)])
    flip(tmp_path, "actual", "device='d0'", torn)
    for number in (3, 4):
        flip(tmp_path, "deployment", f"number={number}", torn)
    found = await store.device("app1", "d0")
    assert found is not None
    assert (found.actual, found.deployment) == (None, made[1])
    assert await store.devices("app1", limit=1) == [found]
    assert await store.deployments("app1", "d0", limit=2) == [made[1], made[0]]
    with pytest.raises(UnreadableError, match=made[3].id):
        await store.deployment(made[3].id)
    await store.commit([PutActual(actual), PutDeployment(made[3])])
    found = await store.device("app1", "d0")
    assert found is not None
    assert (found.actual, found.deployment) == (actual, made[3])


async def test_a_verdict_that_cannot_be_read_keeps_the_image_off_until_somebody_says_retry(
    store: LocalStore, tmp_path: Path
) -> None:
    """The deployment behind it was taken for the newest, which blocks nothing: the image went out again."""
    async with a_blob(store, b"imag") as sha256:
        await store.commit([PutFirmware(a_firmware(sha256))])
    rows = [(1, State.DONE, False), (2, State.CANCELLED, True)]
    made = [
        msgspec.structs.replace(a_deployment(n, state, "d0"), number=n, blocks=blocks, sha256=sha256)
        for n, state, blocks in rows
    ]
    await store.commit([*map(PutDeployment, made)])
    flip(tmp_path, "deployment", "number=2", torn)
    found = await store.device("app1", "d0")
    assert found is not None and found.deployment is not None
    shown = found.deployment
    assert (shown.id, shown.number, shown.sha256) == (made[1].id, 2, sha256)
    assert shown.final and shown.blocks and "cannot be read" in shown.text and "retry" in shown.text
    assert await store.devices("app1", limit=1) == [found]
    again = retried(shown, 2000.0)
    assert again is not None
    await store.commit([PutDeployment(again)])
    found = await store.device("app1", "d0")
    assert found is not None and found.deployment == again and not again.blocks
    assert store.counters()["dfud_store_unreadable_records"] == 0
    # One that had not ended blocks nothing: its device begins anew.
    await store.commit([PutDeployment(msgspec.structs.replace(a_deployment(3, device="d0"), number=3, sha256=sha256))])
    flip(tmp_path, "deployment", "number=3", torn)
    found = await store.device("app1", "d0")
    assert found is not None and found.deployment == again


async def test_an_app_and_a_firmware_cost_themselves_only(store: LocalStore, tmp_path: Path) -> None:
    await store.commit([PutApp(an_app("app0"))])
    async with a_blob(store, b"imag") as sha256:
        await store.commit([PutFirmware(a_firmware(sha256, v, sequence=n)) for n, v in enumerate(("1.0", "2.0"))])
    flip(tmp_path, "firmware", "version='2.0'", torn)
    flip(tmp_path, "app", "name='app0'", torn)
    assert [f.version for f in await store.firmwares("app1")] == ["1.0"]
    assert [a.name for a in await store.apps(limit=1)] == ["app1"]
    found = await store.firmware_by_digest("app1", sha256)
    assert found is not None and found.version == "1.0", "the one that can be read, although the other is newer"
    with pytest.raises(UnreadableError, match="firmware 2.0 of app app1"):
        await store.firmware("app1", "2.0")
    with pytest.raises(UnreadableError, match="app app0"):
        await store.app("app0")
    await store.commit([DeleteFirmware("app1", "1.0")])
    assert await image_of(store, sha256) is not None, "its other record names it, although nobody can read that"
    await store.commit([DeleteFirmware("app1", "2.0"), DeleteApp("app0")])
    assert await image_of(store, sha256) is None
    assert store.counters()["dfud_store_unreadable_records"] == 0


async def test_every_byte_of_a_record_may_be_wrong(store: LocalStore, tmp_path: Path) -> None:
    """The record is read or it is not; nothing else is raised, and the others are there."""
    before = faults()
    path = tmp_path / "dfud.sqlite3"
    with closing(sqlite3.connect(path)) as database:
        (good,) = database.execute("SELECT body FROM device WHERE name='d1'").fetchone()
    for position in range(len(good)):
        for wrong in (0xC1, good[position] ^ 0x80):
            bad = good[:position] + bytes([wrong]) + good[position + 1 :]
            flip(tmp_path, "device", "name='d1'", lambda body, bad=bad: bad)  # type: ignore[misc]
            names = [v.device.name for v in await store.devices("app1")]
            assert [n for n in names if n != "d1"] == ["d0", "d2", "d3", "d4"], f"{position} {wrong:#x}"
            try:
                await store.device("app1", "d1")
            except UnreadableError:
                assert "d1" not in names
            await store.commit([PutDevice(a_device("d1", site="a"))])
    assert faults() == before
