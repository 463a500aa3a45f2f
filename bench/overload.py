"""What becomes of durable reports when far more come than can be stored: how many are still taken, how late, what memory does.

`python -m bench.overload`: what dfud takes of reports of 256 connections that keep it just busy; then 10,000 devices that together
send three times as much and keep to `Retry-After`; then 10,000 that send the next report as soon as they are answered, whatever they
are told: ruder than any fleet. Last, dfud is restarted and all of them come at once. All devices are different.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.fleet_load import Daemon, Load, prepare, read_result, status
from bench.http import cpu_s, rss_bytes
from dfud.endpoint.returning import QUIET_S

DEVICES = 20_000
BUSY, TOO_MANY = 256, 10_000
TIMES = 3
SECONDS = 40
RAMP_SECONDS = 120


def measure(daemon: Daemon, load: Load, mode: str, connections: int, total: int, *more: int) -> dict[str, float]:
    """Reports from now on, until `total` are answered; or, with period in ms and seconds as `more`, as long as that."""
    before, used = rss_bytes(daemon.pid), cpu_s(daemon.pid)
    command = [*load.command(daemon, mode, connections, 0, DEVICES, total), *map(str, more)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin is not None and run.stdout is not None
        run.stdin.write(status(attributes={"n": "########"}))
        run.stdin.close()
        line = run.stdout.readline()
        if line == b"connected\n":
            used = cpu_s(daemon.pid)
            line = run.stdout.readline()
        used = cpu_s(daemon.pid) - used
        found = read_result(line)
        more_mb = (rss_bytes(daemon.pid) - before) / 1e6
    took = (found["last_us"] - found["first_us"]) / 1e6
    return {
        **found,
        "took": took,
        "rate": found["good"] / took,
        "per_cpu": found["good"] / used,
        "more_mb": more_mb,
    }


def ramp_line(daemon: Daemon) -> str:
    """Return what the log says of how the fleet came back."""
    for line in (daemon.directory / "log").read_text().splitlines():
        if '"the fleet is back"' in line:
            found = json.loads(line)
            return ", ".join(f"{key} {found[key]}" for key in ("devices", "took_s", "turned_away"))
    return "nothing yet"


@click.command()
@click.option("--kept", default="build/bench-fleet", type=click.Path(path_type=Path), show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(kept: Path, rounds: int) -> None:
    """Print what is taken of durable reports with enough connections and with far too many, in turns."""
    kept.mkdir(parents=True, exist_ok=True)
    made = prepare(kept.absolute(), DEVICES)
    table = Table("who", "taken a second", "a CPU second", "turned away", "taken, p99 ms", "longest ms", "memory, MB more")
    shares: list[float] = []
    with tempfile.TemporaryDirectory(dir=kept.absolute()) as temporary:
        directory = Path(temporary) / "fleet"
        shutil.copytree(made, directory)
        load, daemon = Load(Path(temporary)), Daemon(directory)

        def row(name: str, found: dict[str, float]) -> None:
            share = f"{found['away'] / found['answers']:.0%}"
            rates = (f"{found['rate']:,.0f}", f"{found['per_cpu']:,.0f}")
            late = (f"{found['p99_ms']:,.0f}", f"{found['longest_ms']:,.0f}")
            table.add_row(name, *rates, share, *late, f"{found['more_mb']:.0f}")

        daemon.start()
        try:
            load(daemon, devices=DEVICES)  # everybody is known
            for _ in range(rounds):
                busy = measure(daemon, load, "mixed", BUSY, 20_000)
                row(f"{BUSY} busy", busy)
                period_ms = max(1, int(TOO_MANY / (TIMES * busy["rate"]) * 1000))
                fleet = measure(daemon, load, "fleet", TOO_MANY, 1, period_ms, SECONDS)
                row(f"{TOO_MANY:,} offer {TIMES} x", fleet)
                shares.append(fleet["per_cpu"] / busy["per_cpu"])
                row(f"{TOO_MANY:,} rude", measure(daemon, load, "mixed", TOO_MANY, 60_000))
            daemon.stop()
            daemon.start()
            back = measure(daemon, load, "fleet", TOO_MANY, 1, 0, RAMP_SECONDS)
            row("after a restart", back)
            time.sleep(QUIET_S + 2)  # the log tells when it is over
        finally:
            daemon.stop()
        line = ramp_line(daemon)
    console = Console(width=110)
    console.print(table)
    console.print(f"goodput at {TIMES} x, by CPU: {statistics.median(shares):.0%} of what it takes when it is just busy")
    console.print(f"after a restart {back['good']:,.0f} of {TOO_MANY:,} were in after {back['took']:.1f} s; the log: {line}")


if __name__ == "__main__":
    main()
