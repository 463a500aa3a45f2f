"""What becomes of durable reports when far more come than can be stored: how many are still taken, what memory does.

`python -m bench.overload`: as many connections as keep dfud just busy, then forty times as many, each of which sends the next
report as soon as it is answered, whatever it is told: ruder than any fleet. All devices are different.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.fleet_load import Daemon, Load, prepare, read_result, status
from bench.http import rss_bytes

DEVICES = 20_000
BUSY, TOO_MANY = 256, 10_000


def measure(daemon: Daemon, load: Load, connections: int, total: int) -> dict[str, float]:
    """Reports from now on, until `total` are answered."""
    before = rss_bytes(daemon.pid)
    command = load.command(daemon, "keep", connections, 0, DEVICES, total)
    run = subprocess.run(command, input=status(attributes={"n": "########"}), capture_output=True, check=True)
    found = read_result(run.stdout)
    took = (found["last_us"] - found["first_us"]) / 1e6
    return {**found, "rate": found["good"] / took, "more_mb": (rss_bytes(daemon.pid) - before) / 1e6}


@click.command()
@click.option("--kept", default="build/bench-fleet", type=click.Path(path_type=Path), show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(kept: Path, rounds: int) -> None:
    """Print what is taken of durable reports with enough connections and with far too many, in turns."""
    kept.mkdir(parents=True, exist_ok=True)
    made = prepare(kept.absolute(), DEVICES)
    table = Table("connections", "taken a second", "turned away", "p99 ms", "longest ms", "memory, MB more")
    with tempfile.TemporaryDirectory(dir=kept.absolute()) as temporary:
        directory = Path(temporary) / "fleet"
        shutil.copytree(made, directory)
        load, daemon = Load(Path(temporary)), Daemon(directory)
        daemon.start()
        try:
            load(daemon, devices=DEVICES)  # everybody is known
            for _ in range(rounds):
                for connections, total in ((BUSY, 20_000), (TOO_MANY, 60_000)):
                    found = measure(daemon, load, connections, total)
                    share = f"{found['away'] / found['answers']:.0%}"
                    cells = (f"{found['rate']:,.0f}", share, f"{found['p99_ms']:,.0f}", f"{found['longest_ms']:,.0f}")
                    table.add_row(f"{connections:,}", *cells, f"{found['more_mb']:.0f}")
        finally:
            daemon.stop()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
