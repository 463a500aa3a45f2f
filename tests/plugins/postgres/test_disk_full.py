"""The database's disk is full: what cannot be stored is refused, nothing that was answered is lost, with room it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from dfud.api import PutDocument, StoreError
from tests.plugins.postgres.server import START_S, Server, config_for
from tests.plugins.postgres.test_faults import LATEST_S, QUICK, again, opened

DISK = "size=90m,mode=777"
VALUE_BYTES = 100_000


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of its own, in a directory that the server may enter."""
    around = Path(tempfile.mkdtemp(prefix="dfud-disk-"))
    around.chmod(0o755)
    path = around / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        shutil.rmtree(around)
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
        shutil.rmtree(around)


def fill(disk: Path) -> Path:
    """Leave nothing free; return the file that takes it."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file:
        for block in (1 << 20, 4096, 1):
            with suppress(OSError):  # there is no room for one more
                while file.write(os.urandom(block)) == block:
                    pass
    return path


def ended(server: Server) -> bool:
    """Whether the server gives up within a moment: with a full disk it cannot write what it would recover with."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.exit_code is not None:
            return True
        try:
            server.run("SELECT 1")
            return False
        except Exception:
            time.sleep(0.1)
    return True


@pytest.mark.parametrize("part", ["tables", "log"])
async def test_a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room(disk: Path, tmp_path: Path, part: str) -> None:
    """tables: the server refuses statements. log: it ends by itself, and an operator starts it again."""
    directory = (disk.parent if part == "log" else disk) / "server"
    server = Server(directory, "max_wal_size = 32MB\nmin_wal_size = 2MB\nwal_recycle = off\nwal_init_zero = off")
    try:
        if part == "log":
            (disk / "log").mkdir()
            shutil.chown(disk / "log", "nobody", "nogroup")
        server.init("--wal-segsize=1", *(["--waldir", str(disk / "log")] if part == "log" else []))
        server.start()
        answered: list[str] = []
        async with opened(config_for(tmp_path, str(server.directory), **QUICK)) as store:
            await store.commit([PutDocument("c", "first", b"v")])
            ballast = await trio.to_thread.run_sync(fill, disk)
            with trio.fail_after(LATEST_S), pytest.raises(StoreError) as refused:
                while True:
                    key = str(len(answered))
                    await store.commit([PutDocument("c", key, os.urandom(VALUE_BYTES))])
                    answered.append(key)
            assert refused.value.retryable and store.problem()
            if part == "tables":
                assert "53100" in str(refused.value), refused.value
                assert await store.document("c", "first") == b"v", "what is stored is read as ever"
            ballast.unlink()
            if part == "log" and await trio.to_thread.run_sync(ended, server):
                server.stop(signal.SIGKILL)
                await trio.to_thread.run_sync(server.start)
            await again(store)
            assert store.problem() == ""
            stored = {key for key, _ in await store.documents("c", limit=100_000)}
            assert {"first", *answered} <= stored
            await store.commit([PutDocument("c", "last", os.urandom(VALUE_BYTES))])
    finally:
        server.stop(signal.SIGKILL)
