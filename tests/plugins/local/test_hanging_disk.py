"""A disk that hangs: whatever is asked of it does not come back. dfud says so and ends, and nobody waits for it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from dfud_local.store import LocalStore
from dfud_local.writer import Writer

from dfud.api import Bus, PutApp, StoreError
from dfud.testing.daemon import DaemonProcess
from dfud.testing.store import an_app

# Stands in front of libc in a real process: while the file is there, no sync comes back.
_HANGING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static void hang(void) { const char *path = getenv("DFUD_TEST_HANG"); while (path && !access(path, F_OK)) usleep(20000); }
int fsync(int fd) { static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "fsync"); hang(); return real(fd); }
int fdatasync(int fd) { static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "fdatasync"); hang(); return real(fd); }
"""
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


class Disk:
    """Hangs on demand for processes that are started with `environment`."""

    def __init__(self, directory: Path) -> None:
        assert COMPILER is not None
        source, library = directory / "hang.c", directory / "hang.so"
        source.write_text(_HANGING)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._file = directory / "hangs"
        self.environment = {"LD_PRELOAD": str(library), "DFUD_TEST_HANG": str(self._file)}

    def hang(self) -> None:
        self._file.touch()

    def go_on(self) -> None:
        self._file.unlink(missing_ok=True)


class Running(DaemonProcess):
    """A dfud on such a disk that gives up after `stuck_s`; its supervisor listens on `notify`."""

    stuck_s = 3.0  # no sync of a disk that is busy with others takes so long

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, may_fail=True)
        self.disk = Disk(directory)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(directory / "notify"))
        self.notify.setblocking(False)

    def command(self, *arguments: str) -> list[str]:
        more = {
            **(self.disk.environment if arguments == ("run",) else {}),
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "WATCHDOG_USEC": "100000",
        }
        return ["env", *(f"{name}={value}" for name, value in more.items()), *super().command(*arguments)]

    def write_config(self) -> None:
        super().write_config()
        self.config.write_text(self.config.read_text().replace("[store.local]", f"[store.local]\nstuck_s = {self.stuck_s}"))

    def heard(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.notify.recv(1000))
            except BlockingIOError:
                return found


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    found = Running(tmp_path)
    await found.init()
    yield found
    found.disk.go_on()
    found.notify.close()


async def ended(daemon: Running) -> None:
    with trio.fail_after(120):
        while daemon.exit_code is None:
            await trio.sleep(0.02)


@needs_compiler
async def test_a_disk_that_hangs_ends_dfud_and_answers_everybody_who_waits(daemon: Running) -> None:
    answers: list[int] = []
    ready: set[str] = set()
    told: list[bytes] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)

        async def listen() -> None:
            while daemon.exit_code is None:
                told.extend(daemon.heard())
                await trio.sleep(0.01)

        nursery.start_soon(listen)

        async def watch(client: httpx.AsyncClient) -> None:
            while True:
                try:
                    answer = await client.get("/readyz")
                except httpx.TransportError:
                    return
                ready.add(answer.json()["status"])
                await trio.sleep(0.02)

        async with daemon.client() as client, trio.open_nursery() as asking:

            async def post(number: int) -> None:
                try:
                    answer = await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": f"a{number}"}})
                    answers.append(answer.status_code)
                except httpx.TransportError:
                    answers.append(0)  # it was ending when this came

            asking.start_soon(watch, client)
            await post(0)
            daemon.disk.hang()
            for number in range(1, 9):
                asking.start_soon(post, number)
        await ended(daemon)
    assert daemon.exit_code == 1
    assert answers[0] == 201 and len(answers) == 9 and not {201, 204} & set(answers[1:]), answers
    assert 503 in answers, "who was being stored is told that nobody knows"
    assert "ready" in ready and ready - {"ready"}, ready
    told += daemon.heard()
    assert b"WATCHDOG=1" in told and b"WATCHDOG=1" not in told[told.index(b"STOPPING=1") :]
    assert any("has been writing for" in str(line) for line in daemon.lines)


@needs_compiler
async def test_a_disk_that_hangs_at_the_stop_does_not_hold_it_up(daemon: Running) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client:
            (await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "a"}})).raise_for_status()
        daemon.disk.hang()
        daemon.signal(signal.SIGTERM)
        await ended(daemon)
    assert daemon.exit_code == 1, "what it wrote last may not be in the database file"


@needs_compiler
async def test_a_disk_that_goes_on_in_time_costs_a_wait_only(daemon: Running) -> None:
    daemon.stuck_s = 300.0
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client, trio.open_nursery() as asking:
            answers: list[int] = []

            async def post() -> None:
                answer = await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "late"}})
                answers.append(answer.status_code)

            daemon.disk.hang()
            asking.start_soon(post)
            assert (await client.get("/healthz")).status_code == 200
            daemon.disk.go_on()
        assert answers == [201]
        nursery.cancel_scope.cancel()


async def test_who_was_cancelled_is_let_go_by_a_writer_that_is_stuck(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is shielded from cancellation, so that it is known what is stored; not for longer than that can be known."""
    stuck = _Stuck(Writer._write)
    monkeypatch.setattr(Writer, "_write", lambda *given: stuck.write(*given))
    store = LocalStore(tmp_path, stuck_s=0.2)
    raised: list[StoreError] = []

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with pytest.raises(StoreError, match="has been writing for"):
            await store.run(Bus(), task_status=task_status)

    async with trio.open_nursery() as running:
        await running.start(run)

        async def commit() -> None:
            try:
                await store.commit([PutApp(an_app())])
            except StoreError as error:
                raised.append(error)

        with trio.fail_after(60), trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                for _ in range(3):
                    waiting.start_soon(commit)
                await trio.to_thread.run_sync(stuck.began.wait)
                scope.cancel()
    assert len(raised) == 3
    # The disk goes on after all: nobody is woken a second time.
    writers = [thread for thread in threading.enumerate() if thread.name == "dfud-store"]
    stuck.go_on.set()
    for thread in writers:
        await trio.to_thread.run_sync(thread.join)
    await trio.testing.wait_all_tasks_blocked()


class _Stuck:
    def __init__(self, real: Any) -> None:
        self._real = real
        self.began, self.go_on = threading.Event(), threading.Event()

    def write(self, *arguments: Any) -> None:
        self.began.set()
        self.go_on.wait(60)
        self._real(*arguments)
