"""The whole daemon with parts that misbehave: one's fault is its own, and the store's end is said everywhere."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.lowlevel
from dfud_coap.transport import CoapTransport
from dfud_http.transport import HttpTransport
from dfud_local.store import LocalStore

from dfud.api import Bus, Endpoint, EventSink, PutApp, StoreError, Telemetry, Transport, faults
from dfud.daemon.components import Components, build
from dfud.daemon.service import Service
from dfud.testing.daemon import DaemonProcess
from dfud.testing.store import an_app

IGNORED = trio.TASK_STATUS_IGNORED


class Misbehaving(Transport, EventSink):
    """Raises when it is told to; counts how often it was started."""

    name = "misbehaving"

    def __init__(self) -> None:
        self.started = 0
        self.fall = trio.Event()

    async def run(self, _: Endpoint | Bus, *, task_status: trio.TaskStatus[Any] = IGNORED) -> None:
        self.started += 1
        task_status.started([f"misbehaving://{self.started}"])
        await self.fall.wait()
        self.fall = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.take, None)
            await trio.sleep_forever()

    async def take(self, telemetry: Telemetry | None) -> None:
        raise KeyError("the value of one device")

    async def drain(self) -> None:
        raise RuntimeError("not even this")

    def reload(self) -> None:
        raise RuntimeError("nor this")


class FailingStore(LocalStore):
    """A local store whose run() ends when `fall` is set, by an error or by returning."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fall = trio.Event()
        self.error: Exception | None = None

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(super().run, bus)
            task_status.started()
            await self.fall.wait()
            nursery.cancel_scope.cancel()
        if self.error is not None:
            raise self.error


async def parts_in(directory: Path) -> Components:
    daemon = DaemonProcess(directory)
    await daemon.init()
    return build(daemon.config)


@asynccontextmanager
async def serving(parts: Components, environment: dict[str, str]) -> AsyncIterator[tuple[Service, dict[str, str]]]:
    """Run a service in this process; yield it and the URLs that it has told."""
    urls: dict[str, str] = {}
    service = Service(parts, "0", environment)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, lambda: parts.config)
        with trio.fail_after(120):
            while service._not_ready == "starting":
                await trio.sleep(0.01)
        yield service, urls
        service._stop.set()


async def eventually(what: Any, message: str) -> None:
    with trio.fail_after(120):
        while not what():
            await trio.sleep(0.01)
    assert what(), message


async def test_a_transport_and_a_sink_that_raise_are_started_again_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    transport, sink = Misbehaving(), Misbehaving()
    parts = await parts_in(tmp_path)
    parts = msgspec.structs.replace(parts, transports=[*parts.transports, transport], sinks=[sink])
    before = faults()
    async with serving(parts, {}) as (service, _):
        registry = next(r.url for r in caplog.records if r.getMessage() == "users are served")  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=registry, timeout=60) as client:
            for number in (1, 2):
                transport.fall.set()
                sink.fall.set()
                await eventually(lambda: min(transport.started, sink.started) > number, "started again")  # noqa: B023
                assert (await client.get("/readyz")).status_code == 200
            service._reload(lambda: parts.config)
            assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert service.failure is None
    after = faults()
    expected = {"transport.run": 2, "sink.run": 2, "daemon.reload": 1, "transport.drain": 1}
    assert {where: after[where] - before.get(where, 0) for where in expected} == expected
    told = [getattr(r, "url", "") for r in caplog.records if r.getMessage() == "devices are served"]
    assert "misbehaving://3" in told


@pytest.mark.parametrize(
    ("kind", "where"), [(HttpTransport, "_accept"), (CoapTransport, "_receive"), (CoapTransport, "_run_timers")]
)
async def test_dfuds_own_transports_serve_again_after_what_nobody_foresaw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: type[Any], where: str
) -> None:
    caplog.set_level("INFO")
    real = getattr(kind, where)
    falls = 2

    async def falling(*arguments: Any) -> None:
        nonlocal falls
        if falls:
            falls -= 1
            raise ZeroDivisionError("once in a blue moon")
        await real(*arguments)

    monkeypatch.setattr(kind, where, falling)
    daemon = DaemonProcess(tmp_path, plugins=("local", "http", "coap"))
    await daemon.init()

    def served() -> list[str]:
        told = [r for r in caplog.records if r.getMessage() == "devices are served"]
        return [r.url for r in told if r.transport == kind.name]  # type: ignore[attr-defined]

    async with serving(build(daemon.config), {}) as (service, _):
        await eventually(lambda: not falls and len(served()) == 3, "started again")
        port = int(served()[-1].rpartition(":")[2])
        if kind is HttpTransport:
            async with httpx.AsyncClient(timeout=60) as client:
                answer = await client.post(f"http://127.0.0.1:{port}/v1/telemetry", content=b"x", auth=("d@a", "guess"))
            assert 400 <= answer.status_code < 500
        else:
            sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock, trio.fail_after(120):
                await sock.sendto(b"\x40\x00\x12\x34", ("127.0.0.1", port))  # an empty CON, "CoAP ping"
                assert (await sock.recv(100))[:4] == b"\x70\x00\x12\x34"  # RFC 7252 section 4.3: it is reset
        assert service.failure is None


@pytest.mark.parametrize("error", [StoreError("the disk is gone"), ZeroDivisionError("odd"), None])
async def test_without_its_store_dfud_says_so_starves_the_watchdog_and_ends(
    tmp_path: Path, error: Exception | None
) -> None:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.setblocking(False)
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
    parts = await parts_in(tmp_path / "dfud")
    store = FailingStore(tmp_path / "dfud" / "state")
    store.error = error
    service = Service(msgspec.structs.replace(parts, store=store), "0", environment)

    def heard() -> list[bytes]:
        found = []
        while True:
            try:
                found.append(notify.recv(1000))
            except BlockingIOError:
                return found

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run, lambda: parts.config)
            told: list[bytes] = []
            while b"WATCHDOG=1" not in told:
                told += heard()
                await trio.sleep(0.01)
            assert service._ready() == ""
            store.fall.set()
            while not service._ready():
                await trio.lowlevel.checkpoint()
            assert service._ready() in ("the store has failed", "stopping", "the store is not open")
            # Returns by itself: that is what this waits for.
    assert service.failure is error or (error is None and "ended by itself" in str(service.failure))
    assert heard()[-1] == b"STOPPING=1", "no watchdog after that"
    with pytest.raises(StoreError):
        await store.commit([PutApp(an_app())])
    notify.close()


_DYING = """
import sys
from dfud_local.writer import Writer
from dfud.daemon.main import main
write = Writer._write
def dying(self, database, batch):
    if any("deadly" in repr(change) for job in batch for change, _ in job.changes):
        raise SystemExit("the writer is gone")
    write(self, database, batch)
Writer._write = dying
main(sys.argv[1:])
"""


async def test_a_process_whose_writer_dies_answers_and_ends_with_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = DaemonProcess(tmp_path, may_fail=True)
    await daemon.init()
    command = daemon.command
    monkeypatch.setattr(
        daemon, "command", lambda *a: [sys.executable, "-c", _DYING, *command(*a)[3:]] if a == ("run",) else command(*a)
    )
    answers: dict[str, int] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client, trio.open_nursery() as asking:

            async def post(name: str) -> None:
                try:
                    answer = await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": name}})
                    answers[name] = answer.status_code
                except httpx.TransportError:
                    answers[name] = 0  # it was ending when this came

            await post("alive")
            for name in ("deadly", "a", "b", "c"):
                asking.start_soon(post, name)
        with trio.fail_after(60):
            while daemon.exit_code is None:
                await trio.sleep(0.02)
    assert daemon.exit_code == 1
    assert len(answers) == 5, "nobody waits for ever"
    assert answers["alive"] == 201
    assert answers["deadly"] in (0, 500, 503), answers
    assert any(line.get("event") == "the store has failed, dfud ends" for line in daemon.lines)
    assert os.path.exists(tmp_path / "state" / "dfud.sqlite3")


async def test_a_second_dfud_on_one_state_says_who_has_it(tmp_path: Path) -> None:
    first = DaemonProcess(tmp_path)
    await first.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run)
        assert first._process is not None
        second = DaemonProcess(tmp_path)
        second.started.remove(second)
        async with trio.open_nursery() as trying:
            with pytest.raises(RuntimeError) as caught:
                await trying.start(second.run)
        said = str(caught.value)
        assert "ended with exit code 2 before it was ready; it said:" in said
        assert f"is in use by another dfud (process {first._process.pid}): stop that one first" in said
        async with first.client() as client:
            answer = await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "still"}})
            assert answer.status_code == 201
        for command in ("init", "init --new-admin"):
            run = await trio.run_process(first.command(*command.split()), capture_stderr=True, check=False)
            assert run.returncode == 2 and b"is in use by another dfud" in run.stderr
        run = await trio.run_process(first.command("check-config"), capture_stderr=True, capture_stdout=True, check=False)
        assert run.returncode == 0 and b"note: the local store in" in run.stderr and b"is in use by" in run.stderr
        nursery.cancel_scope.cancel()
