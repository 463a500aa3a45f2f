"""What a device costs in fleets of different sizes: `python -m bench.fleet 1000 100000`; all devices are different ones.

Each size has a daemon of its own on a state directory that is made once and kept. CPU is the daemon's own time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.table import Table

from bench.fleet_load import APP, Daemon, Load, parked, prepare, read_result, status, status_mb
from bench.http import cpu_s, rss_bytes

PARKED = 9000
AGAIN = 20_000  # devices that are asked of after a restart, and told
ROWS = (
    ("start_s", "start, s"),
    ("start_mb", "RSS after the start, MB"),
    ("polled_mb", "RSS after all have polled, MB"),
    ("first", "first poll, us"),
    ("again", "unchanged poll, all in turn, us"),
    ("again_p99", "its p99, ms"),
    ("spec", "the same after an unrelated change of the app, us"),
    ("report", "durable report, us"),
    ("report_rate", "durable reports a second"),
    ("restarted", "first poll after a restart, us"),
    ("select", "selector that matches nothing, CPU ms"),
    ("group", "group update, us a device"),
    ("parked_kb", "parked, KB each"),
    ("woken_us", "parked and told, us each"),
    ("woken_s", "parked and told, all of them, s"),
    ("told", "told by its next poll, us"),
    ("pause", "longest pause for garbage collection, ms"),
    ("stop_s", "stop, s"),
)


async def measure(size: int, made: Path, kept: Path, group: bool, polled: int = 0) -> dict[str, float]:
    found: dict[str, float] = {"size": size, "polled": min(size, polled or size)}
    with tempfile.TemporaryDirectory(dir=kept) as temporary:
        directory = Path(temporary) / "fleet"
        shutil.copytree(made, directory)
        load, daemon = Load(Path(temporary)), Daemon(directory)
        try:
            await _measure(size, daemon, load, found, group)
        finally:
            (kept / f"{size}.json").write_text(json.dumps(found, indent=1))  # also what there is of a run that was ended
            daemon.stop()
    return found


async def _measure(size: int, daemon: Daemon, load: Load, found: dict[str, float], group: bool) -> None:
    some, every = min(size, AGAIN), int(found["polled"])
    found["start_s"] = daemon.start()["wall_s"]
    found["start_mb"] = rss_bytes(daemon.pid) / 1e6
    found["first"] = load(daemon, devices=every)["us"]
    load(daemon, devices=every, total=max(every, 20_000))
    found["polled_mb"] = status_mb(daemon.pid, "VmRSS")
    again = load(daemon, devices=every, total=max(every, 60_000))
    found["again"], found["again_p99"] = again["us"], again["p99_ms"]
    labels = {"metadata": {"name": APP, "labels": {"x": "y"}}, "spec": {"signing": {"mode": "optional"}, "note": "n"}}
    daemon.ask("PUT", f"/api/registry/v1alpha1/apps/{APP}", labels)
    found["spec"] = load(daemon, devices=every, total=some)["us"]
    said = status(attributes={"n": "########"})
    report = load(daemon, devices=every, total=20_000, body=said, connections=256)
    found["report"], found["report_rate"] = report["us"], report["rate"]
    found["pause"] = daemon.metric("dfud_gc_longest_pause_seconds") * 1000
    load(daemon, devices=every, total=20_000)  # what they say after the restart is what is stored
    found["stop_s"] = daemon.stop()
    daemon.start()
    found["restarted"] = load(daemon, devices=some)["us"]
    before = cpu_s(daemon.pid)
    daemon.ask("GET", f"/api/registry/v1alpha1/apps/{APP}/devices?labels=nobody%3Dhas")
    found["select"] = (cpu_s(daemon.pid) - before) * 1000
    if group:
        before = cpu_s(daemon.pid)
        for firmware in ({"version": "1.0"}, None):
            wish = {"selector": "group", "firmware": firmware, "allAtOnce": True}
            answer = daemon.ask("POST", f"/api/dfu/v1/apps/{APP}/update", wish)
            await _done(daemon, answer)
        found["group"] = (cpu_s(daemon.pid) - before) / size / 2 * 1e6
    await _warm(daemon, load)
    count = min(PARKED, size // 2)
    await _park(daemon, load, found, size - count, count)
    some = min(some, size - count)
    found["told"] = load(daemon, devices=some)["us"]
    found["pause"] = max(found["pause"], daemon.metric("dfud_gc_longest_pause_seconds") * 1000)


async def _done(daemon: Daemon, answer: object) -> None:
    """Wait for a group update, where it is a job."""
    job = answer.get("job") if isinstance(answer, dict) else None
    name = job.get("id") if isinstance(job, dict) else job
    while name:
        state = daemon.ask("GET", f"/api/dfu/v1/apps/{APP}/jobs/{name}")["state"]
        if state not in ("waiting", "running"):
            return
        await trio.sleep(0.1)


async def _warm(daemon: Daemon, load: Load) -> None:
    """Have the package made, with a device that wants it."""
    daemon.ask("POST", f"/api/dfu/v1/apps/{APP}/update", {"device": "d0000000", "firmware": {"version": "1.1"}})
    for _ in range(40):
        load(daemon, devices=1)
        if daemon.ask("GET", f"/api/dfu/v1/apps/{APP}/deployments/d0000000")[0]["state"] == "notified":
            return
        await trio.sleep(0.25)
    raise SystemExit("the package was not made")


async def _park(daemon: Daemon, load: Load, found: dict[str, float], first: int, count: int) -> None:
    load(daemon, devices=count, first=first)
    before = rss_bytes(daemon.pid)
    async with parked(load, daemon, first, count) as process:
        found["parked_kb"] = (rss_bytes(daemon.pid) - before) / count / 1024
        used, began = cpu_s(daemon.pid), time.monotonic()
        daemon.ask("POST", f"/api/dfu/v1/apps/{APP}/update", {"firmware": {"version": "1.1"}, "allAtOnce": True})
        assert process.stdout is not None
        text = b""
        async for data in process.stdout:
            text += data
        result = read_result(text)
        if result["good"] != count:
            raise SystemExit(f"{count - result['good']:.0f} of {count} parked devices were not told")
        found["woken_us"] = (cpu_s(daemon.pid) - used) / count * 1e6
        found["woken_s"] = result["last_us"] / 1e6 - began


def show(results: list[dict[str, float]]) -> None:
    base = results[0]
    table = Table("", *(f"{found['size']:,.0f}" for found in results))
    for key, title in ROWS:
        cells = []
        for found in results:
            value = found.get(key)
            if value is None:
                cells.append("")
                continue
            ratio = f" ({value / base[key]:.2f})" if found is not base and base.get(key) else ""
            cells.append(f"{value:,.0f}{ratio}" if value >= 100 else f"{value:.2f}{ratio}")
        table.add_row(title, *cells)
    Console(width=120).print(table)


@click.command()
@click.argument("sizes", nargs=-1, type=click.IntRange(100, 10_000_000))
@click.option("--kept", default="build/bench-fleet", type=click.Path(path_type=Path), show_default=True)
@click.option("--group/--no-group", default=True, show_default=True, help="With two group updates of all devices.")
@click.option("--polled", default=0, help="So many of the devices poll; 0: all. Others are registered and say nothing.")
def main(sizes: tuple[int, ...], kept: Path, group: bool, polled: int) -> None:
    """Print what a device costs in fleets of these SIZES; in brackets: times what it costs in the first of them."""
    kept.mkdir(parents=True, exist_ok=True)
    results = []
    for size in sizes or (1000, 10_000, 100_000):
        made = prepare(kept.absolute(), size)
        found = trio.run(measure, size, made, kept.absolute(), group, polled)
        results.append(found)
        print(json.dumps({key: round(value, 2) for key, value in found.items()}), flush=True)
    show(results)


if __name__ == "__main__":
    main()
