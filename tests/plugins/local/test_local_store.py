"""The local store: the conformance suite, migration, a full disk, and being killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dfud_local.writer as writer_module
import pytest
import trio
from dfud_local.reader import Reader
from dfud_local.schema import MIGRATIONS, migrate
from dfud_local.store import LocalStore

from dfud.api import (
    Bus,
    DeleteDevice,
    PutApp,
    PutDevice,
    PutDocument,
    StoreError,
)
from dfud.testing.store import StoreConformance, a_device, an_app, image_of


def damage_row(directory: Path, kind: str, name: str) -> None:
    """Overwrite the body of a record of the local store, which does not run."""
    column = "version" if kind == "firmware" else "name"
    with contextlib.closing(sqlite3.connect(directory / "dfud.sqlite3")) as database, database:
        changed = database.execute(f"UPDATE {kind} SET body=? WHERE {column}=?", (b"\xc1", name))
        assert changed.rowcount == 1


class TestLocalStore(StoreConformance):
    @pytest.fixture
    async def store(self, nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[LocalStore]:
        store = LocalStore(tmp_path / "state")
        await nursery.start(store.run, Bus())
        yield store

    def new_store(self, directory: Path) -> LocalStore:
        return LocalStore(directory)

    def damage(self, directory: Path, kind: str, name: str) -> None:
        damage_row(directory, kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
async def test_many_random_walks_end_where_the_model_does(tmp_path: Path, number: int) -> None:
    await TestLocalStore().test_a_random_walk_ends_where_the_model_does(tmp_path)


async def open_store(nursery: trio.Nursery, path: Path, **options: Any) -> LocalStore:
    store = LocalStore(path, **options)
    await nursery.start(store.run, Bus())
    return store


ODD = ("", "a", "a/", "a/1", "a/2", "a0", "b", "\ud7ff", "\ud7ffx", "\ue000", "x\U0010ffff", "x\U0010ffffz", "y", "\U0010ffff", "%")


async def test_documents_by_prefix_are_those_that_begin_with_it(nursery: trio.Nursery, tmp_path: Path) -> None:
    store = await open_store(nursery, tmp_path / "state")
    await store.commit([PutDocument("c", key, key.encode()) for key in ODD if key])
    await store.commit([PutDocument("b", "a/", b""), PutDocument("d", "a/", b"")])
    for prefix in ODD:
        for after in ODD:
            expected = [key for key in sorted(ODD) if key.startswith(prefix) and key > after]
            found = await store.documents("c", prefix=prefix, after=after)
            assert [key for key, _ in found] == expected, (prefix, after)
    assert await store.documents("c", prefix="\ud800") == []  # no text of SQLite's


@pytest.mark.parametrize(
    ("prefix", "after", "bounds"),
    [
        ("app1/", "", "key>? AND key<?"),
        ("app1/", "app1/dev7", "key>? AND key<?"),
        ("", "app1/dev7", "key>?"),
    ],
)
async def test_documents_by_prefix_are_a_range_of_the_primary_key(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, after: str, bounds: str
) -> None:
    async def rows(reader: Reader, query: str, *key: Any) -> list[Any]:
        plans.extend(row[3].decode() for row in reader._rows(f"EXPLAIN QUERY PLAN {query}", key))
        return []

    store = await open_store(nursery, tmp_path / "state")
    plans: list[str] = []
    monkeypatch.setattr(Reader, "rows", rows)
    await store.documents("c", prefix=prefix, after=after)
    assert plans == [f"SEARCH document USING PRIMARY KEY (collection=? AND {bounds})"]


async def test_a_backup_opens_as_a_database(nursery: trio.Nursery, tmp_path: Path) -> None:
    store = await open_store(nursery, tmp_path / "state")
    await store.commit([PutApp(an_app())])
    (tmp_path / "copy").write_bytes(b"".join([block async for block in store.backup()]))
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT name FROM app").fetchall() == [("app1",)]


def test_a_database_of_every_older_version_is_brought_up(tmp_path: Path) -> None:
    for version in range(len(MIGRATIONS) + 1):
        database = sqlite3.connect(tmp_path / f"v{version}", isolation_level=None)
        for migration in MIGRATIONS[:version]:
            database.executescript(migration)
        database.execute(f"PRAGMA user_version={version}")
        if version:
            database.execute("INSERT INTO app VALUES ('kept', '1', x'80')")
        assert migrate(database) == version
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert database.execute("SELECT count(*) FROM document").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM app").fetchone() == (1 if version else 0,)
        database.close()


def test_a_failing_migration_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "db", isolation_level=None)
    database.executescript(MIGRATIONS[0] + "PRAGMA user_version=1; CREATE TABLE document (in_the_way)")
    with pytest.raises(sqlite3.OperationalError):
        migrate(database)
    assert database.execute("PRAGMA user_version").fetchone() == (1,)
    database.close()


async def test_a_database_from_a_newer_dfud_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    database = sqlite3.connect(tmp_path / "state" / "dfud.sqlite3")
    database.execute("PRAGMA user_version=999")
    database.close()
    with pytest.raises(StoreError, match="schema version 999"):
        await LocalStore(tmp_path / "state").run(Bus())


async def test_a_full_database_is_an_error_and_recovers(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "PROBE_S", 0.05)
    store = await open_store(nursery, tmp_path / "state", database_max_bytes=512 * 1024)
    await store.commit([PutApp(an_app())])
    written = 0
    with pytest.raises(StoreError, match="full") as caught:
        for number in range(1000):
            await store.commit([PutDevice(a_device(f"d{number:04}", spec={"text": "x" * 2000}))])
            written += 1
    assert caught.value.retryable
    assert len(await store.devices("app1")) == written > 50
    said: list[str] = []

    async def commit(number: int) -> None:
        with pytest.raises(StoreError) as error:
            await store.commit([PutDevice(a_device(f"e{number}", spec={"text": "x" * 20_000}))])
        said.append(str(error.value))

    async with trio.open_nursery() as together:
        for number in range(20):
            together.start_soon(commit, number)
    assert set(said) == {"the database could not be written: database or disk is full"}, "to all who share a batch"
    await trio.sleep(0.2)
    assert store.problem() == "the database could not be written: database or disk is full"
    await store.commit([PutDevice(a_device("d0000", version="2"))])
    await store.commit([DeleteDevice("app1", f"d{number:04}") for number in range(1, 50)])
    with trio.fail_after(120):
        while store.problem():  # nobody commits anything more: it finds out by itself
            await trio.sleep(0.02)
    assert len(await store.devices("app1")) == written - 49


_FILLER = """
import resource, signal, sys, trio
from pathlib import Path
from typing import Any
from dfud.api import Bus, PutApp, PutFirmware, StoreError
from dfud_local.store import LocalStore
from dfud.testing.store import a_blob, a_firmware, an_app
async def main():
    async with trio.open_nursery() as nursery:
        store = LocalStore(Path(sys.argv[1]))
        await nursery.start(store.run, Bus())
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            async with a_blob(store, bytes(1_000_000)):
                pass
        except StoreError as error:
            print("refused:", error, error.retryable)
        await store.commit([PutApp(an_app())])
        async with a_blob(store, bytes(1000)) as sha256:
            await store.commit([PutFirmware(a_firmware(sha256))])
            print("small:", len(sha256))
        nursery.cancel_scope.cancel()
trio.run(main)
"""


async def test_an_image_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    run = await trio.run_process([sys.executable, "-c", _FILLER, str(tmp_path)], capture_stdout=True)
    assert run.stdout.decode().startswith("refused: the image could not be stored: File too large True\nsmall: 64")
    files = [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()]
    assert [p.stat().st_size for p in files] == [1000]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300_000


_LOADER = """
import sys, trio
from pathlib import Path
from typing import Any
from dfud.api import Actual, Bus, PutActual, PutApp, PutDevice, PutFirmware
from dfud_local.store import LocalStore
from dfud.testing.store import a_blob, a_device, a_firmware, an_app
async def client(store, who):
    number = 0
    while True:
        number += 1
        await store.commit([PutActual(Actual("app1", f"d{who}", str(number), "00" * 32, "esp32c3"))])
        print(f"report d{who} {number}", flush=True)
async def uploader(store):
    number = 0
    while True:
        number += 1
        async with a_blob(store, b"%d" % number * 1000) as sha256:
            await store.commit([PutFirmware(a_firmware(sha256, str(number)), create=False)])
        print("blob", sha256, flush=True)
async def main():
    async with trio.open_nursery() as nursery:
        store = LocalStore(Path(sys.argv[1]))
        await nursery.start(store.run, Bus())
        if await store.app("app1") is None:
            await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"d{n}")) for n in range(20))])
        for who in range(20):
            nursery.start_soon(client, store, who)
        nursery.start_soon(uploader, store)
trio.run(main)
"""


@pytest.mark.parametrize("cuts", [10, pytest.param(100, marks=pytest.mark.slow)])
async def test_being_killed_again_and_again_under_load_loses_nothing_that_was_answered(tmp_path: Path, cuts: int) -> None:
    """Kill -9 at random moments; then everything the process said it had stored must be readable."""
    rng = random.Random(seed := int.from_bytes(os.urandom(4), "big"))
    answered = 0
    for cut in range(cuts):
        command = [sys.executable, "-c", _LOADER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            await trio.to_thread.run_sync(time.sleep, rng.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().split(b"\n")[:-1]
        last: dict[str, int] = {}
        blobs = []
        for line in lines:
            kind, *rest = line.decode().split()
            answered += 1
            if kind == "report":
                last[rest[0]] = int(rest[1])
            else:
                blobs.append(rest[0])
        async with trio.open_nursery() as nursery:
            store = await open_store(nursery, tmp_path)
            for device, number in last.items():
                view = await store.device("app1", device)
                assert view is not None and view.actual is not None, f"seed {seed} cut {cut}"
                assert int(view.actual.version) >= number, f"seed {seed} cut {cut} {device}"
            for sha256 in blobs:
                image = await image_of(store, sha256)
                assert image is not None, f"seed {seed} cut {cut}"
                assert hashlib.sha256(image).hexdigest() == sha256, f"seed {seed} cut {cut}"
            nursery.cancel_scope.cancel()
    with closing(sqlite3.connect(tmp_path / "dfud.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert answered > 10 * cuts


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match="not open"):
        await store.commit([PutApp(an_app())])


async def test_many_names_are_looked_up_by_their_keys(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The planner walked every device for each name of a batch: 160 us a device in an app of some thousands, and growing."""
    store = await open_store(nursery, tmp_path)
    await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"d{n}", site=str(n % 3))) for n in range(300))])
    asked: list[tuple[str, tuple[Any, ...]]] = []
    rows = store._reader.rows

    async def watched(query: str, *key: Any) -> list[Any]:
        asked.append((query, key))
        return await rows(query, *key)

    store._reader.rows = watched  # type: ignore[method-assign]
    assert await store.find_aliases("app1", ["d7", "d8", "missing"]) == {"d7": "d7", "d8": "d8"}
    with closing(sqlite3.connect(tmp_path / "dfud.sqlite3")) as database:
        plans = [[row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", key)] for query, key in asked]
    (names,) = plans
    assert [step for step in names if step.startswith("SCAN")] == ["SCAN v VIRTUAL TABLE INDEX 1:"] * 2, names
    assert sum(step.startswith("SEARCH") for step in names) == 2, names
    nursery.cancel_scope.cancel()
