"""What registering a device costs: in batches and one by one against the same daemon, in turns, and `dfuctl device import`.

CPU is the daemon's own time for a device, all threads; what else the machine does hardly moves it, while rates it does.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import httpx
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from dfud.testing.daemon import DaemonProcess

APPS = "/api/registry/v1alpha1/apps"
ROUNDS = 5
SINGLE = 200  # devices made one by one in each round
CONNECTIONS = 8


class Run(msgspec.Struct):
    """One kind of registration: devices a second and CPU us a device, one number for each round."""

    rates: list[float]
    cpu_us: list[float]


def cpu_s(daemon: DaemonProcess) -> float:
    process = daemon._process
    assert process is not None
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def children_s() -> float:
    """CPU time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def device(name: str) -> dict[str, object]:
    """A device as fleets have them: two labels, a secret."""
    return {
        "metadata": {"name": name, "labels": {"site": f"site-{len(name)}", "batch": "7"}},
        "spec": {"authentication": {"credentials": [{"pass": f"a secret of {name}"}]}},
    }


async def in_batches(client: httpx.AsyncClient, prefix: str, count: int, size: int) -> None:
    for first in range(0, count, size):
        batch = {"devices": [device(f"{prefix}-{n}") for n in range(first, min(count, first + size))]}
        answer = await client.post(f"{APPS}/bench/devices:batch", content=msgspec.json.encode(batch))
        assert answer.json()["created"] == len(batch["devices"]), answer.text[:500]


async def one_by_one(client: httpx.AsyncClient, prefix: str, count: int) -> None:
    """With several connections, as a script that hurries does it."""
    names = iter([f"{prefix}-{n}" for n in range(count)])

    async def some() -> None:
        for name in names:
            answer = await client.post(f"{APPS}/bench/devices", content=msgspec.json.encode(device(name)))
            assert answer.status_code == 201, answer.text

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(some)


async def imported(daemon: DaemonProcess, directory: Path, count: int) -> tuple[float, float, float]:
    """Import a CSV with `dfuctl`, secrets made and written; return devices a second of the whole command, CPU us a device of the
    daemon and of dfuctl, its start included.
    """
    file = directory / "fleet.csv"
    file.write_text("name,label.site,label.batch\n" + "".join(f"csv-{n},site-1,7\n" for n in range(count)))
    dfuctl = [sys.executable, "-m", "dfud.cli", "--config", str(directory / "dfuctl.toml"), "-o", "json"]
    await trio.run_process([*dfuctl, "login", daemon.urls["registry"], "--token", daemon.token], capture_stdout=True)
    began_s, cpu, mine = time.perf_counter(), cpu_s(daemon), children_s()
    arguments = ["--app", "bench", "device", "import", str(file), "--secrets", str(directory / "secrets.csv")]
    run = await trio.run_process([*dfuctl, *arguments], capture_stdout=True)
    took_s = time.perf_counter() - began_s
    assert json.loads(run.stdout)["created"] == count
    return count / took_s, (cpu_s(daemon) - cpu) / count * 1e6, (children_s() - mine) / count * 1e6


async def main(devices: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        daemon = DaemonProcess(directory / "dfud")
        await daemon.init()
        write_config = daemon.write_config

        def without_debug() -> None:
            write_config()
            text = daemon.config.read_text().replace('"debug"', '"info"')
            registry = f"[registry]\nrequests_per_minute = 10000000\nbatch_max = {size}"
            daemon.config.write_text(re.sub(r"\[registry\]", registry, text))

        daemon.write_config = without_debug  # type: ignore[method-assign]
        batch, single = Run([], []), Run([], [])
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            async with daemon.client() as client:
                assert (await client.post(APPS, json={"metadata": {"name": "bench"}})).status_code == 201
                await in_batches(client, "warm", size, size)
                for number in range(ROUNDS):
                    for run, count in ((single, SINGLE), (batch, devices // ROUNDS)):
                        cpu, began_s = cpu_s(daemon), time.perf_counter()
                        if run is single:
                            await one_by_one(client, f"one-{number}", count)
                        else:
                            await in_batches(client, f"many-{number}", count, size)
                        run.rates.append(count / (time.perf_counter() - began_s))
                        run.cpu_us.append((cpu_s(daemon) - cpu) / count * 1e6)
                whole = await imported(daemon, directory, devices)
                counted = (await client.get(f"{APPS}/bench/devices:count")).json()["count"]
                assert counted == size + ROUNDS * SINGLE + devices // ROUNDS * ROUNDS + devices, counted
            nursery.cancel_scope.cancel()
    _print(batch, single, whole, size)


def _print(batch: Run, single: Run, whole: tuple[float, float, float], size: int) -> None:
    table = Table("", "CPU us a device", "devices/s", box=None)
    for name, run in ((f"batches of {size}", batch), ("one by one", single)):
        spread = (f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})" for values in (run.cpu_us, run.rates))
        table.add_row(name, *spread)
    rate, daemon_us, dfuctl_us = whole
    table.add_row("dfuctl device import --secrets", f"{daemon_us:,.0f}, and {dfuctl_us:,.0f} of dfuctl", f"{rate:,.0f}")
    Console(width=100).print(table)
    cpu = statistics.median(single.cpu_us) / statistics.median(batch.cpu_us)
    ratio = statistics.median(batch.rates) / statistics.median(single.rates)
    print(f"a batch registers {ratio:.1f} x as many devices a second, at 1/{cpu:.1f} of the CPU")


@click.command()
@click.option("--devices", default=20_000, show_default=True, help="How many are registered in batches, and again by dfuctl.")
@click.option("--size", default=500, show_default=True, help="Devices in a batch.")
def command(devices: int, size: int) -> None:
    """Print devices/s of batches beside single creation."""
    trio.run(main, devices, size)


if __name__ == "__main__":
    command()
