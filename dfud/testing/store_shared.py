"""What a store promises that several processes share. Part of StoreConformance; for those that declare `shared`.

Two Store objects on the same records stand for two processes where it does not matter; where it does, one is a process, run as
`python -m dfud.testing.store_shared MODULE CLASS DIRECTORY lead`: it leads the work "w" and counts, until it is killed. With
another word at the end it changes what the other processes change, STEPS times, and ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import trio

from dfud.api import (
    Actual,
    AddCounts,
    AppChanged,
    Bus,
    Capability,
    ConflictError,
    DeleteApp,
    DeleteDocument,
    DeleteFirmware,
    DeviceChanged,
    DeviceStateChanged,
    DocumentChanged,
    ExpectDevice,
    FirmwareChanged,
    HistoryEntry,
    Missed,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    Store,
    Told,
)
from dfud.testing.store_values import a_blob, a_deployment, a_device, a_firmware, an_app, image_of

LATEST_S = 120.0  # for a test to fail, not what a store has
COUNTED_BEFORE_KILL = 20
ROUNDS = 3
STEPS = 30
E = TypeVar("E")


class Heard:
    """The events of one store's bus."""

    def __init__(self, bus: Bus) -> None:
        self.events: list[Any] = []
        self._news = trio.Event()
        for kind in (AppChanged, DeviceChanged, DeviceStateChanged, FirmwareChanged, DocumentChanged, Told, Missed):
            bus.subscribe(kind, self._hear)

    def _hear(self, event: Any) -> None:
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    async def wait(self, fits: Callable[[Any], bool]) -> Any:
        """Return the first event that fits, heard before or not yet."""
        with trio.fail_after(LATEST_S):
            while True:
                for event in self.events:
                    if fits(event):
                        return event
                await self._news.wait()


class SharedConformance:
    def new_store(self, directory: Path) -> Store:
        pytest.skip("the class gives no new_store()")

    @asynccontextmanager
    async def two(self, directory: Path) -> AsyncIterator[tuple[Store, Heard, Store, Heard]]:
        """Run two stores on the same records."""
        first, second = self.new_store(directory), self.new_store(directory)
        if Capability.SHARED not in first.capabilities:
            pytest.skip("the store does not declare shared")
        one, other = Bus(), Bus()
        heard, heard_other = Heard(one), Heard(other)
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, one)
            await nursery.start(second.run, other)
            yield first, heard, second, heard_other
            nursery.cancel_scope.cancel()

    async def test_what_one_process_changes_the_other_hears_and_reads(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, own, other, heard):
            await one.commit([PutApp(an_app())])
            await heard.wait(lambda e: e == AppChanged("app1"))
            assert await other.app("app1") == an_app()
            await one.commit([PutDevice(a_device())])
            await heard.wait(lambda e: e == DeviceChanged("app1", "dev1"))
            await one.commit([PutDevice(a_device("dev2"))])
            await one.commit(
                [PutActual(Actual("app1", "dev1", "1", "00" * 32, "esp32c3")), PutDeployment(a_deployment())]
            )
            await heard.wait(lambda e: e == DeviceStateChanged("app1", "dev1"))
            found = await other.device("app1", "dev1")
            assert found is not None and found.deployment == a_deployment()
            async with a_blob(one, b"data") as sha256:
                await one.commit([PutFirmware(a_firmware(sha256))])
            told = await heard.wait(lambda e: isinstance(e, FirmwareChanged))
            assert told.firmware.version == "1.0" and not told.deleted
            assert await image_of(other, sha256) == b"data"
            await one.commit([DeleteFirmware("app1", "1.0")])
            await heard.wait(lambda e: isinstance(e, FirmwareChanged) and e.deleted)
            await one.commit([PutDocument("c", "quiet", b""), PutDocument("c", "k", b"1", tell=True)])
            await heard.wait(lambda e: e == DocumentChanged("c", "k"))
            await one.commit([DeleteDocument("c", "k", tell=True), DeleteApp("app1")])
            await heard.wait(lambda e: e == AppChanged("app1", deleted=True))
            assert [e for e in own.events if not isinstance(e, Missed)] == [], "it told itself"
            assert DocumentChanged("c", "quiet") not in heard.events

    async def test_many_changes_at_once_are_all_heard_or_the_app_is_missed(self, tmp_path: Path) -> None:
        names = [f"dev{n}" for n in range(3000)]
        async with self.two(tmp_path) as (one, _, other, heard):
            await one.commit([PutApp(an_app()), *(PutDevice(a_device(name)) for name in names)])
            await one.commit([PutDocument("c", "last", b"", tell=True)])
            await heard.wait(lambda e: e == DocumentChanged("c", "last"))
            missed = any(isinstance(e, Missed) and e.app in ("", "app1") for e in heard.events)
            assert missed or {e.device for e in heard.events if isinstance(e, DeviceChanged)} == set(names)
            assert await other.count("app1") == len(names)

    async def test_what_is_told_reaches_the_others_and_nobody_else(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, own, other, heard):
            body = bytes(range(256))
            await one.tell("topic", body)
            await heard.wait(lambda e: e == Told("topic", body))
            await other.tell("answer", b"")
            await own.wait(lambda e: e == Told("answer", b""))
            assert Told("topic", body) not in own.events

    async def test_of_two_processes_one_stores_its_step(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, _, other, _):
            await one.commit([PutApp(an_app()), PutDevice(a_device()), PutDeployment(a_deployment())])
            stored = []

            async def step(store: Store) -> None:
                for _ in range(20):
                    found = await store.device("app1", "dev1")
                    assert found is not None and found.deployment is not None
                    after = msgspec.structs.replace(found.deployment, chunks_done=found.deployment.chunks_done + 1)
                    with contextlib.suppress(ConflictError):
                        await store.commit([ExpectDevice("app1", "dev1", found.sequence), PutDeployment(after)])
                        stored.append(store)

            async with trio.open_nursery() as nursery:
                for store in (one, other, one, other):
                    nursery.start_soon(step, store)
            found = await one.device("app1", "dev1")
            assert found is not None and found.deployment is not None and found.deployment.chunks_done == len(stored)

    async def test_two_processes_that_change_the_same_rows_both_get_on(self, tmp_path: Path) -> None:
        """In opposite orders, so that a store that locks has to sort that out."""
        names = [f"dev{n}" for n in range(30)]
        async with self.two(tmp_path) as (one, _, other, _):
            await one.commit([PutApp(an_app()), *(PutDevice(a_device(name)) for name in names)])

            async def report(store: Store, order: list[str]) -> None:
                for _ in range(10):
                    actuals = [PutActual(Actual("app1", name, "1", "00" * 32, "esp32c3")) for name in order]
                    await store.commit([*actuals, AddCounts("s", {"all": 1}), PutDocument("c", "k", b"")])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(report, one, names)
                nursery.start_soon(report, other, names[::-1])
            assert await one.counts("s") == {"all": 20}

    async def test_a_blob_lives_while_a_writer_of_any_process_is_open(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, _, other, _):
            await one.commit([PutApp(an_app())])
            async with a_blob(one, b"whol") as sha256:
                async with a_blob(other, b"whol"):
                    await other.commit([PutFirmware(a_firmware(sha256))])
                await other.commit([DeleteFirmware("app1", "1.0")])
                assert await image_of(one, sha256) == b"whol", "the other's record is gone, this writer is open"
                await one.commit([PutFirmware(a_firmware(sha256, "2.0"))])
            assert await image_of(other, sha256) == b"whol"
            await other.commit([DeleteFirmware("app1", "2.0")])
            assert await image_of(one, sha256) is None and await image_of(other, sha256) is None
            with pytest.raises(NotFoundError):
                await one.commit([PutFirmware(a_firmware(sha256))])

    async def test_what_one_puts_into_the_place_the_other_gets(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, _, other, _):
            mine, theirs = one.place(), other.place()
            if mine is None or theirs is None:
                assert mine is theirs
                pytest.skip("the store has no place in common")
            sha256 = hashlib.sha256(b"prepared").hexdigest()
            for _ in range(2):
                await mine.put(sha256, io.BytesIO(b"prepared"), 8)
            async with theirs.get(sha256) as path:
                assert path is not None and path.read_bytes() == b"prepared"
            await theirs.remove(sha256)
            await theirs.remove(sha256)
            async with theirs.get(sha256) as path:
                assert path is None

    async def test_one_leads_and_another_takes_over(self, tmp_path: Path) -> None:
        leaders: list[str] = []
        async with self.two(tmp_path) as (one, _, other, _):
            leading = trio.Event()

            async def wait_for_it() -> None:
                async with other.lead("w"):
                    leaders.append("other")
                    leading.set()

            with trio.fail_after(LATEST_S):
                async with one.lead("w"), other.lead("another work"):
                    leaders.append("one")
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(wait_for_it)
                        with trio.move_on_after(1):
                            await leading.wait()
                        assert leaders == ["one"]
                        nursery.cancel_scope.cancel()
                await wait_for_it()
        assert leaders == ["one", "other"]

    async def test_the_work_of_a_killed_process_is_taken_over(self, tmp_path: Path) -> None:
        """And what it had counted by then, and no more, is counted."""
        if Capability.SHARED not in self.new_store(tmp_path).capabilities:
            pytest.skip("the store does not declare shared")
        told = 0
        for _ in range(ROUNDS):
            with _program(type(self), tmp_path, "lead") as process:
                assert process.stdout is not None
                for _ in range(COUNTED_BEFORE_KILL):
                    assert await trio.to_thread.run_sync(process.stdout.readline) == "counted\n"
                    told += 1
                process.kill()
        store = self.new_store(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run, Bus())
            with trio.fail_after(LATEST_S):
                async with store.lead("w"):
                    counted = (await store.counts("s"))["n"]
            assert counted >= told and len(await store.documents("c")) == counted
            nursery.cancel_scope.cancel()

    async def test_two_processes_that_write_at_once_lose_nothing(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (store, _, _, _):
            await store.commit([PutApp(an_app()), PutDevice(a_device()), PutDeployment(a_deployment())])
            names = ("one", "other")
            programs = [_program(type(self), tmp_path, name) for name in names]
            for program in programs:
                assert program.stdout is not None
                assert await trio.to_thread.run_sync(program.stdout.readline) == "opened\n"
            for program in programs:  # neither is done before the other begins
                assert program.stdin is not None
                program.stdin.write("go\n")
                program.stdin.flush()
            for program in programs:
                said, _ = await trio.to_thread.run_sync(program.communicate)
                assert (program.returncode, said) == (0, "ended\n")
            assert await store.counts("s") == {"all": 2 * STEPS, **dict.fromkeys(names, STEPS)}
            assert [key for key, _ in await store.documents("c")] == sorted(
                f"{n} {k:06}" for n in names for k in range(STEPS)
            )
            found = await store.device("app1", "dev1")
            assert found is not None and found.deployment is not None and found.deployment.chunks_done == 2 * STEPS
            assert [e.number for e in await store.history("app1", "dev1")] == [*range(2 * STEPS, 0, -1)]


def _program(kind: type[SharedConformance], directory: Path, what: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "dfud.testing.store_shared"),
        *(kind.__module__, kind.__qualname__, str(directory), what),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)


async def _lead_and_count(store: Store) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        async with store.lead("w"):
            number = len(await store.documents("c", limit=1_000_000))
            while True:
                number += 1
                await store.commit([AddCounts("s", {"n": 1}), PutDocument("c", f"{number:06}", b"", create=True)])
                print("counted", flush=True)


async def _write(store: Store, name: str) -> None:
    """Change what others change: counters, and a device's deployment by compare and set, each until it was stored."""
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        print("opened", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        for step in range(STEPS):
            stored = False
            while not stored:
                found = await store.device("app1", "dev1")
                assert found is not None and found.deployment is not None
                after = msgspec.structs.replace(found.deployment, chunks_done=found.deployment.chunks_done + 1)
                entry = HistoryEntry(after.id, "app1", "dev1", float(step), after.state, after.version, text=name)
                with contextlib.suppress(ConflictError):
                    await store.commit(
                        [
                            ExpectDevice("app1", "dev1", found.sequence),
                            PutDeployment(after, entry),
                            AddCounts("s", {"all": 1, name: 1}),
                            PutDocument("c", f"{name} {step:06}", b"", create=True),
                        ]
                    )
                    stored = True
        nursery.cancel_scope.cancel()
    print("ended", flush=True)


def main(module: str, kind: str, directory: str, what: str) -> None:
    found: Any = importlib.import_module(module)
    for part in kind.split("."):
        found = getattr(found, part)
    store = found().new_store(Path(directory))
    if what == "lead":
        trio.run(_lead_and_count, store)
    else:
        trio.run(_write, store, what)


if __name__ == "__main__":
    main(*sys.argv[1:])
