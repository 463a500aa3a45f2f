"""What several dfud on PostgreSQL cost beside one on the local store: the store by itself, then whole processes (cluster_devices.py).

make bench-cluster [DEVICES=10000 SECONDS=5]. It starts a PostgreSQL of its own (fsync on) in a temporary directory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import trio
from dfud_local.store import LocalStore
from dfud_postgres.store import PostgresStore

from bench import cluster_devices
from dfud.api import (
    Actual,
    Bus,
    Deployment,
    ExpectDevice,
    HistoryEntry,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    SetFirmware,
    State,
    Store,
)
from dfud.testing.store import a_device, an_app
from tests.plugins.postgres.server import Server, config_for, running

AT_ONCE = 256  # devices that report at a time, per process


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def server_cpu_s(server: Server) -> float:
    """CPU of PostgreSQL's processes so far: of those that live, and of those that ended."""
    assert server._process is not None
    top = psutil.Process(server._process.pid)
    ended = top.cpu_times()
    total = ended.children_user + ended.children_system
    for process in [top, *top.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return float(total)


async def fill(store: Store, devices: int) -> float:
    """Register devices; return CPU us for each."""
    await store.commit([PutApp(an_app())])
    before = cpu_s()
    for first in range(0, devices, 500):
        names = range(first, min(first + 500, devices))
        await store.commit([PutDevice(a_device(f"d{n:07}", site=str(n % 10))) for n in names])
    return (cpu_s() - before) / devices * 1e6


async def reports(store: Store, first: int, last: int, seconds: float) -> tuple[int, float, float]:
    """Have devices report; return how many did, in how many seconds, with how much CPU."""
    done = 0
    end = time.perf_counter() + seconds
    share = max(1, (last - first) // AT_ONCE)

    async def some(number: int) -> None:
        nonlocal done
        known: dict[int, int] = {}
        turn = 0
        while time.perf_counter() < end:
            n = first + (number * share + turn % share) % (last - first)
            turn += 1
            name = f"d{n:07}"
            if n not in known or not known[n]:
                view = await store.device("app1", name)
                assert view is not None
                known[n] = view.sequence
            actual = Actual("app1", name, "1.0", "ab" * 32, "esp32c3", seen_s=float(turn))
            expect = ExpectDevice("app1", name, known[n])
            if turn % 10 == 0:
                made = Deployment(
                    id=f"{n}-{turn}", app="app1", device=name, version="1.0", sha256="00" * 32, state=State.DONE,
                    created_s=1.0, updated_s=1.0, number=turn,
                )  # fmt: skip
                entry = HistoryEntry(made.id, "app1", name, 1.0, State.DONE, "1.0")
                await store.commit([expect, PutDeployment(made, entry), PutActual(actual, tell=True)])
                known[n] += 2 if known[n] else 0
            else:
                await store.commit([expect, PutActual(actual)])
                known[n] += 1 if known[n] else 0
            done += 1

    began, before = time.perf_counter(), cpu_s()
    async with trio.open_nursery() as nursery:
        for number in range(AT_ONCE):
            nursery.start_soon(some, number)
    return done, time.perf_counter() - began, cpu_s() - before


async def reads(store: Store, devices: int) -> float:
    before = cpu_s()
    for n in range(3000):
        await store.device("app1", f"d{n * 7919 % devices:07}")
    return (cpu_s() - before) / 3000 * 1e6


async def group(store: Store, devices: int) -> float:
    began = time.perf_counter()
    after = ""
    while page := await store.wishes("app1", limit=1000, after=after):
        after = page[-1].device
        await store.commit([SetFirmware("app1", tuple(w.device for w in page), {"version": "1.0"}, "next")])
    return (time.perf_counter() - began) / devices * 1e6


def process(socket: str, directory: str, first: int, last: int, seconds: float, out: Any) -> None:
    """One of several: reports for its share of the devices."""

    async def main() -> None:
        store = PostgresStore(config_for(Path(directory), socket))
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run, Bus())
            out.put(await reports(store, first, last, seconds))
            nursery.cancel_scope.cancel()

    trio.run(main)


async def one(name: str, store: Store, devices: int, seconds: float) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        registered = await fill(store, devices)
        read = await reads(store, devices)
        grouped = await group(store, devices)
        done, took, cpu = await reports(store, 0, devices, seconds)
        print(
            f"{name:9} | register {registered:6.0f} us | read a device {read:5.0f} us | group update {grouped:5.0f} us each | "
            f"reports {done / took:6.0f}/s, {cpu / done * 1e6:4.0f} us CPU each",
            flush=True,
        )
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--processes", type=int, nargs="*", default=[0, 1, 2, 3], help="0: one on the local store")
    parser.add_argument("--store", action=argparse.BooleanOptionalAction, default=True, help="the store by itself, too")
    given = parser.parse_args()
    cores, load = psutil.cpu_count(), psutil.getloadavg()[0]
    print(f"{given.devices} devices; {cores} cores, load {load:.1f} when it began; PostgreSQL with fsync on this machine")
    settings = "fsync = on\nfull_page_writes = on\nautovacuum = on\nshared_buffers = 256MB"
    # On a real disk: what a commit costs is mostly its sync.
    with tempfile.TemporaryDirectory(prefix="dfud-bench-") as directory, running(settings, _open_to_all(Path(directory))) as server:
        if given.store:
            of_the_store(Path(directory), server, given.devices, given.seconds)
        for number in given.processes:
            name = f"{number} on postgres" if number else "one on local"
            used = partial(server_cpu_s, server) if number else (lambda: 0.0)
            found = cluster_devices.measure(Path(directory) / f"several{number}", server, used, given.devices, number)
            cluster_devices.show(name, found)


def _open_to_all(directory: Path) -> Path:
    """Return a directory in there that the server's own user may enter."""
    directory.chmod(0o755)
    return directory / "postgres"


def of_the_store(directory: Path, server: Server, devices: int, seconds: float) -> None:
    """Measure the store by itself: one process on either, then one to three on PostgreSQL."""
    trio.run(one, "local", LocalStore(directory / "state"), devices, seconds)
    config = config_for(directory, str(server.directory))
    trio.run(one, "postgres", PostgresStore(config), devices, seconds)
    for number in (1, 2, 3):
        out: Any = multiprocessing.get_context("spawn").Queue()
        share = devices // number
        context = multiprocessing.get_context("spawn")
        before = server_cpu_s(server)
        started = [
            context.Process(
                target=process, args=(str(server.directory), str(directory), n * share, (n + 1) * share, seconds, out)
            )
            for n in range(number)
        ]
        for p in started:
            p.start()
        found = [out.get() for _ in started]
        spent = server_cpu_s(server) - before
        for p in started:
            p.join()
        done = sum(d for d, _, _ in found)
        rate, cpu = sum(d / t for d, t, _ in found), sum(c for _, _, c in found)
        print(
            f"{number} process{'es' if number > 1 else '  '} | reports {rate:6.0f}/s in all, {cpu / done * 1e6:4.0f} us CPU each "
            f"in dfud, about {spent / done * 1e6:4.0f} us in PostgreSQL",
            flush=True,
        )


if __name__ == "__main__":
    main()
