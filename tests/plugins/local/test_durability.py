"""What is on the disk: the database file alone after a clean stop, one process at a time, no image without a record."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import trio
from dfud_local.store import LocalStore

from dfud.api import Actual, Bus, PutActual, PutApp, PutDevice, PutFirmware, StoreError
from dfud.testing.store import a_blob, a_device, a_firmware, an_app, image_of

REPORTS = 200


async def test_after_a_clean_stop_the_database_file_alone_has_everything(tmp_path: Path) -> None:
    """Also while somebody reads until the end: whoever copies `dfud.sqlite3` copies what was answered."""
    async with trio.open_nursery() as nursery:
        store = LocalStore(tmp_path / "state")
        await nursery.start(store.run, Bus())
        await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"d{n}")) for n in range(REPORTS))])

        async def report(number: int) -> None:
            await store.commit([PutActual(Actual("app1", f"d{number}", "2.0", "00" * 32, "esp32c3"))])
            await store.devices("app1")

        async with trio.open_nursery() as reporting:
            for number in range(REPORTS):
                reporting.start_soon(report, number)
        nursery.cancel_scope.cancel()
    shutil.copy(tmp_path / "state" / "dfud.sqlite3", tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy")) as copied:
        assert copied.execute("SELECT count(*) FROM actual").fetchone() == (REPORTS,)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["blobs", "dfud.lock", "dfud.sqlite3"]


async def test_a_clean_stop_brings_all_into_the_file_while_another_program_has_it_open(tmp_path: Path) -> None:
    """The last connection that is closed does that by itself, but an operator's `sqlite3` may be the last."""
    state = tmp_path / "state"
    async with trio.open_nursery() as nursery:
        store = LocalStore(state)
        await nursery.start(store.run, Bus())
        other = sqlite3.connect(state / "dfud.sqlite3")
        other.execute("SELECT * FROM sqlite_master").fetchall()
        await store.commit([PutApp(an_app())])
        nursery.cancel_scope.cancel()
    with closing(other):
        shutil.copy(state / "dfud.sqlite3", tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy")) as copied:
        assert copied.execute("SELECT count(*) FROM app").fetchone() == (1,)


_HOLDER = """
import sys, trio
from pathlib import Path
from dfud.api import Bus
from dfud_local.store import LocalStore
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(LocalStore(Path(sys.argv[1])).run, Bus())
        print("open", flush=True)
trio.run(main)
"""


async def test_a_second_process_is_refused_and_told_who_has_it(nursery: trio.Nursery, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert await trio.to_thread.run_sync(holder.stdout.readline) == b"open\n"
        for attempt in (LocalStore(tmp_path).check, lambda: LocalStore(tmp_path).run(Bus())):
            with pytest.raises(StoreError, match=rf"in use by another dfud \(process {holder.pid}\): stop that one first"):
                await attempt()
        holder.send_signal(signal.SIGKILL)
    # A lock ends with its process; what the file says of it does not count.
    await LocalStore(tmp_path).check()
    store = LocalStore(tmp_path)
    await nursery.start(store.run, Bus())
    await store.commit([PutApp(an_app())])
    assert (tmp_path / "dfud.lock").read_text() == f"{os.getpid()}\n"


_CHECKER = """
import os, sys, trio
from pathlib import Path
from dfud.api import StoreError
from dfud_local.store import LocalStore
if os.getuid() == 0:
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        trio.run(LocalStore(Path(path)).check)
    except StoreError as error:
        print(error)
"""


async def test_check_says_what_is_not_writable() -> None:
    """As the user that asks: in a process of its own, for root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        closed, hidden = Path(name) / "closed", Path(name) / "hidden"
        for path, mode in ((Path(name), 0o755), (closed, 0o555), (hidden, 0o000)):
            path.mkdir(exist_ok=True)
            path.chmod(mode)
        command = [sys.executable, "-c", _CHECKER, str(closed / "state"), str(hidden / "state" / "deep")]
        run = await trio.run_process(command, capture_stdout=True)
        told = run.stdout.decode().splitlines()
    assert len(told) == 2, told
    assert told[0].startswith(f"[store.local] path {closed}/state: {closed} is not writable for user ")
    assert told[1].startswith(f"[store.local] path {hidden}/state/deep: Permission denied for user ")


async def test_check_says_what_is_no_directory_and_no_database_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is no directory"):
        await LocalStore(tmp_path / "file" / "state").check()
    await LocalStore(tmp_path / "new" / "state").check()
    assert not (tmp_path / "new").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dfud.sqlite3").write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(StoreError, match="is no database of dfud's"):
        await LocalStore(tmp_path / "other").check()
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["dfud.sqlite3"]


def put_stray(path: Path, data: bytes) -> Path:
    sha256 = hashlib.sha256(data).hexdigest()
    stray = path / "blobs" / sha256[:2] / sha256
    stray.parent.mkdir(exist_ok=True, parents=True)
    stray.write_bytes(data)
    return stray


async def test_images_without_a_record_go_at_start(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        store = LocalStore(tmp_path)
        await nursery.start(store.run, Bus())
        await store.commit([PutApp(an_app())])
        async with a_blob(store, b"kept") as sha256:
            await store.commit([PutFirmware(a_firmware(sha256))])
        nursery.cancel_scope.cancel()
    stray = put_stray(tmp_path, b"stray")
    (tmp_path / "blobs" / "notes.txt").write_text("somebody's")
    async with trio.open_nursery() as nursery:
        store = LocalStore(tmp_path)
        await nursery.start(store.run, Bus())
        assert not stray.exists()
        assert await image_of(store, sha256) is not None
        assert (tmp_path / "blobs" / "notes.txt").exists()
        nursery.cancel_scope.cancel()


async def test_a_database_that_knows_no_firmware_lets_no_image_go(nursery: trio.Nursery, tmp_path: Path) -> None:
    """It is more likely that the database is missing than that every image is a stray."""
    stray = put_stray(tmp_path, b"image")
    store = LocalStore(tmp_path)
    await nursery.start(store.run, Bus())
    assert stray.read_bytes() == b"image"
