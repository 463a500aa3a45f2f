"""What an unchanged poll costs with 256 and with 100,000 different devices, beside nginx, which gets the same requests.


`python -m bench.many`. CPU of the server over the number of requests, in turns; nginx answers with 61 bytes of its configuration.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.fleet_load import Daemon, Load, prepare, read_result, status
from bench.http import cpu_s, pin

FEW, MANY = 256, 100_000
REQUESTS = 100_000


def start_nginx(root: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """Return the master, the worker's id and the port."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise SystemExit("there is no nginx: expected it in PATH or /usr/sbin")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    root.mkdir()
    paths = " ".join(f"{name}_temp_path {root};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (root / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 2048; }}
http {{ access_log off; keepalive_requests 100000000; {paths}
server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{"x" * 61}"; }} }} }}"""
    )
    os.chmod(root.parent, 0o755)
    process = subprocess.Popen([program, "-c", str(root / "nginx.conf"), "-p", str(root)], stderr=subprocess.DEVNULL)
    time.sleep(1)
    worker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    return process, worker, port


@click.command()
@click.option("--kept", default="build/bench-fleet", type=click.Path(path_type=Path), show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(kept: Path, rounds: int) -> None:
    """Print what a poll of few and of many different devices costs."""
    kept.mkdir(parents=True, exist_ok=True)
    made = prepare(kept.absolute(), MANY)
    table = Table("devices", "CPU us a poll", "nginx", "x nginx", "goal")
    found: dict[int, list[tuple[float, float]]] = {FEW: [], MANY: []}
    with tempfile.TemporaryDirectory(dir=kept.absolute()) as temporary:
        directory = Path(temporary) / "fleet"
        shutil.copytree(made, directory)
        load, daemon = Load(Path(temporary)), Daemon(directory)
        daemon.start()
        nginx, worker, port = start_nginx(Path(temporary) / "nginx")
        try:
            for pid in (daemon.pid, worker):
                pin(pid, 0)
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
            load(daemon, devices=MANY)  # everybody is known
            for _ in range(rounds):
                for devices, pairs in found.items():
                    ours = load(daemon, devices=devices, total=REQUESTS)["us"]
                    command = [
                        str(load.program),
                        "127.0.0.1",
                        str(port),
                        "keep",
                        "64",
                        "0",
                        str(devices),
                        str(REQUESTS),
                    ]
                    before = cpu_s(worker)
                    run = subprocess.run(command, input=status(), capture_output=True, check=True)
                    theirs = (cpu_s(worker) - before) / REQUESTS * 1e6
                    if read_result(run.stdout)["good"] != REQUESTS:
                        raise SystemExit(f"nginx refused: {run.stdout!r}")
                    pairs.append((ours, theirs))
        finally:
            nginx.terminate()
            nginx.wait()
            daemon.stop()
    for devices, pairs in found.items():
        ratios = sorted(a / b for a, b in pairs)
        own, theirs_us = sorted(a for a, _ in pairs), sorted(b for _, b in pairs)
        cells = (
            f"{own[0]:.1f}-{own[-1]:.1f}",
            f"{theirs_us[0]:.1f}-{theirs_us[-1]:.1f}",
            f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
        )
        table.add_row(f"{devices:,}", *cells, "2")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
