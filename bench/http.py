"""What devices cost dfud over HTTP: poll, chunk, durable report; beside nginx with static files and goosebit. Parked: bench.fleet.

The server has core 0 for itself, the load (wrk) core 1. CPU is the server process's own time over the number of requests.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import httpx
import trio
import trio.lowlevel
from rich.console import Console
from rich.table import Table

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from dfud.wire.messages import Status, encode_status

DEVICES = 256
CONNECTIONS = 64
IMAGE = random.Random(1).randbytes(600_000)
OLD = b"old" * 1000
POLL_SECONDS = 4


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, from the scheduler's own clock."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def rss_bytes(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def pin(pid: int, core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cores[core % len(cores)]})


async def wrk(pids: list[int], url: str, script: str, directory: Path) -> dict[str, float]:
    """Run wrk for a few seconds; return CPU us per request, requests per second, and latencies in ms."""
    path = directory / "wrk.lua"
    path.write_text(script)
    core = sorted(os.sched_getaffinity(0))[-1]
    command = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{POLL_SECONDS}s",
        "--latency",
        "-s",
        str(path),
        url,
    ]
    before = sum(map(cpu_s, pids))
    run = await trio.run_process(command, capture_stdout=True)
    used = sum(map(cpu_s, pids)) - before
    text = run.stdout.decode()
    requests = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if refused is not None:
        raise SystemExit(f"{refused[1]} of {requests} requests were refused:\n{text}")

    def latency(percent: str) -> float:
        number, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
        return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]

    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    return {"us": used / requests * 1e6, "rate": rate, "p50": latency("50"), "p99": latency("99")}


def header(device: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{device}@bench:{secret}".encode()).decode()


def lua_bytes(data: bytes) -> str:
    return '"' + "".join(f"\\{b:03d}" for b in data) + '"'


class Bench:
    def __init__(self, daemon: DaemonProcess, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        self.secrets: dict[str, str] = {}

    async def prepare(self) -> None:
        async with self.daemon.client() as client:
            spec = {"signing": {"mode": "optional"}}
            (
                await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "bench"}, "spec": spec})
            ).raise_for_status()
            for number in range(DEVICES):
                name = f"d{number}"
                secret = f"secret-{number:04}"
                body = {
                    "metadata": {"name": name, "application": "bench"},
                    "spec": {"authentication": {"credentials": [{"pass": secret}]}},
                }
                (await client.post("/api/registry/v1alpha1/apps/bench/devices", json=body)).raise_for_status()
                self.secrets[name] = secret
            for version, image in (("1.0", OLD), ("1.1", IMAGE)):
                parameters = {"version": version, "hardware": "esp32c3", "kind": "raw"}
                path = "/api/dfu/v1/apps/bench/firmware"
                (await client.post(path, params=parameters, content=image)).raise_for_status()

    def status(self, **changes: object) -> bytes:
        digest = hashlib.sha256(OLD).digest()
        return encode_status(Status("1.0", digest, "esp32c3", 2, 16640, 1 << 22, **changes))  # type: ignore[arg-type]

    async def poll(self, pid: int) -> dict[str, float]:
        body = self.status()
        script = f"""
local auth = {{{", ".join('"' + header(d, s) + '"' for d, s in self.secrets.items())}}}
local n = 0
request = function()
  n = n % {DEVICES} + 1
  return wrk.format("POST", "/v1/dfu", {{["Authorization"] = auth[n]}}, {lua_bytes(body)})
end"""
        return await wrk([pid], self.daemon.urls["http"], script, self.directory)

    async def report(self, pid: int) -> dict[str, float]:
        """Every report says something new, so every one is stored before it is answered."""
        body = self.status(attributes={"n": "12345678"})
        head, tail = body.split(b"12345678")
        script = f"""
local auth = {{{", ".join('"' + header(d, s) + '"' for d, s in self.secrets.items())}}}
local n = 0
request = function()
  n = n + 1
  local body = {lua_bytes(head)} .. string.format("%08d", n) .. {lua_bytes(tail)}
  return wrk.format("POST", "/v1/dfu", {{["Authorization"] = auth[n % {DEVICES} + 1]}}, body)
end"""
        return await wrk([pid], self.daemon.urls["http"], script, self.directory)

    async def chunk(self, pid: int) -> dict[str, float]:
        async with self.daemon.client() as client:
            body = {"device": "d0", "firmware": {"version": "1.1"}}
            (await client.post("/api/dfu/v1/apps/bench/update", json=body)).raise_for_status()
        auth = ("d0@bench", self.secrets["d0"])
        async with httpx.AsyncClient(base_url=self.daemon.urls["http"], auth=auth, timeout=60) as client:
            device = HttpDevice(client, OLD, "1.0", payload=16640)
            command = None
            while command is None or not command.package:
                command = await device.poll()
            size = len(await device._fetch(command.package.hex(), 1))
        script = f"""
request = function()
  return wrk.format("GET", "/v1/dfu/{command.package.hex()}/1", {{["Authorization"] = "{header("d0", self.secrets["d0"])}"}})
end"""
        return {**await wrk([pid], self.daemon.urls["http"], script, self.directory), "bytes": size}


async def nginx(directory: Path, size: int) -> tuple[dict[str, float], dict[str, float]] | None:
    """The same with static files of the same sizes, served by nginx with one worker."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        return None
    root = directory / "nginx"
    root.mkdir()
    (root / "poll").write_bytes(bytes(61))
    (root / "chunk").write_bytes(random.Random(2).randbytes(size))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (root / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 2048; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {root}; proxy_temp_path {root};
fastcgi_temp_path {root}; uwsgi_temp_path {root}; scgi_temp_path {root};
server {{ listen 127.0.0.1:{port}; root {root}; }} }}"""
    )
    # The master would hand its rights down; run as who we are.
    process = subprocess.Popen([program, "-c", str(root / "nginx.conf"), "-p", str(root)], stderr=subprocess.DEVNULL)
    os.chmod(directory, 0o755)
    os.chmod(root, 0o755)
    try:
        await trio.sleep(1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids = [int(p) for p in children]
        for pid in pids:
            pin(pid, 0)
        url = f"http://127.0.0.1:{port}"
        headers = f'{{["Authorization"] = "{header("d0", "secret")}"}}'
        results = []
        for name in ("poll", "chunk"):
            script = f'request = function() return wrk.format("GET", "/{name}", {headers}) end'
            results.append(await wrk(pids, url, script, directory))
        return results[0], results[1]
    finally:
        process.terminate()
        process.wait()


_GOOSEBIT_TABLES = """
import asyncio
from tortoise import Tortoise
from goosebit.db.config import TORTOISE_CONF
async def main():
    await Tortoise.init(config=TORTOISE_CONF)
    await Tortoise.generate_schemas()
    await Tortoise.close_connections()
asyncio.run(main())
"""


async def goosebit(directory: Path) -> dict[str, float] | None:
    """The poll of goosebit, a DDI server in Python: device looked up, last seen stored, decision made."""
    if importlib.util.find_spec("goosebit") is None:
        return None
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "GOOSEBIT_DB_URI": f"sqlite://{directory}/goosebit.sqlite3",
        "GOOSEBIT_ARTIFACTS_DIR": str(directory / "goosebit"),
    }
    subprocess.run([sys.executable, "-c", _GOOSEBIT_TABLES], env=environment, check=True, capture_output=True)
    arguments = ["goosebit:app", "--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "error"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=base) as client:
            with trio.fail_after(60):
                while True:
                    try:
                        if (await client.get("/DEFAULT/controller/v1/d0")).is_success:
                            break
                    except httpx.HTTPError:
                        pass
                    await trio.sleep(0.2)
            for number in range(CONNECTIONS):
                data = {"id": "", "status": {}, "data": {"hw_boardname": "x", "hw_revision": "1", "sw_version": "1.0"}}
                await client.get(f"/DEFAULT/controller/v1/d{number}")
                await client.put(f"/DEFAULT/controller/v1/d{number}/configData", json=data)
        pin(process.pid, 0)
        script = f"""
local n = 0
request = function()
  n = (n + 1) % {CONNECTIONS}
  return wrk.format("GET", "/DEFAULT/controller/v1/d" .. n)
end"""
        return await wrk([process.pid], base, script, directory)
    except trio.TooSlowError:
        return None
    finally:
        process.terminate()
        process.wait()


async def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        extra = "connections_per_address = 20000\n"
        daemon = DaemonProcess(directory / "dfud", extra=extra)
        await daemon.init()
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            assert daemon._process is not None
            pid = daemon._process.pid
            pin(pid, 0)
            bench = Bench(daemon, directory)
            await bench.prepare()
            poll = await bench.poll(pid)
            report = await bench.report(pid)
            chunk = await bench.chunk(pid)
            memory = rss_bytes(pid) / 1e6
            nursery.cancel_scope.cancel()
        beside = await nginx(directory, int(chunk["bytes"]))
        goose = await goosebit(directory)
    show(poll, report, chunk, beside, goose, memory)


def show(
    poll: dict[str, float],
    report: dict[str, float],
    chunk: dict[str, float],
    beside: tuple[dict[str, float], dict[str, float]] | None,
    goose: dict[str, float] | None,
    memory: float,
) -> None:
    console = Console(width=120)
    rows = Table(
        "what",
        "CPU us/request",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "x nginx",
        "goal",
        title="Devices over HTTP, one core",
    )

    def row(name: str, found: dict[str, float], base: dict[str, float] | None, goal: str) -> None:
        ratio = f"{found['us'] / base['us']:.1f}" if base else "-"
        numbers = (f"{found['us']:.1f}", f"{found['rate']:.0f}", f"{found['p50']:.2f}", f"{found['p99']:.2f}")
        rows.add_row(name, *numbers, ratio, goal)

    row("authenticated poll", poll, beside[0] if beside else None, "<= 2 x nginx")
    row(f"chunk of {chunk['bytes']:.0f} bytes", chunk, beside[1] if beside else None, "<= 2 x nginx")
    row("durable status report", report, None, ">= 8000/s")
    if beside:
        row("nginx, 61 bytes", beside[0], beside[0], "")
        row(f"nginx, {chunk['bytes']:.0f} bytes", beside[1], beside[1], "")
    if goose:
        row("goosebit, poll", goose, beside[0] if beside else None, "")
    console.print(rows)
    console.print(f"dfud holds {memory:.0f} MB")


@click.command()
def command() -> None:
    """Print what a device costs dfud, beside nginx."""
    trio.run(main)


if __name__ == "__main__":
    command()
