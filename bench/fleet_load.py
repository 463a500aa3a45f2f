"""A fleet for bench.fleet: a state directory with so many different devices, the daemon on it, the compiled load generator."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio
from dfud_local.store import LocalStore

from bench.http import cpu_s
from dfud.api import Bus, Device, Metadata, PutDevice
from dfud.model.credentials import keyed_hash
from dfud.wire.messages import Status, encode_status

APP = "fleet"
OLD = b"old" * 1000
NEW = random.Random(1).randbytes(20_000)
PAGE = 2000
START_S = 120


def status(**changes: object) -> bytes:
    digest = hashlib.sha256(OLD).digest()
    return encode_status(Status("1.0", digest, "esp32c3", 2, 16384, 1 << 20, **changes))  # type: ignore[arg-type]


def status_mb(pid: int, what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def used_s(pid: int) -> float:
    """CPU of a process with its threads that have ended, and of the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Daemon:
    """dfud as a process of its own, at the log level that people run it with."""

    def __init__(self, directory: Path, *, http: str = "", log_level: str = "info") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ports = {}
        for name in ("http", "registry"):
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                self.ports[name] = sock.getsockname()[1]
        (directory / "dfud.toml").write_text(
            f"""
[daemon]
log_format = "json"
log_level = "{log_level}"
[plugins]
enabled = ["local", "http"]
[store.local]
path = "{directory}/state"
[controller]
packages_path = "{directory}/packages"
[endpoint]
credential_key = "{directory}/credential.key"
failures_per_address = 1000000
[registry]
port = {self.ports["registry"]}
[transport.http]
port = {self.ports["http"]}
connections_per_address = 20000
{http}
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    def _run(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dfud.daemon", *arguments, "--config", str(self.directory / "dfud.toml")]

    def init(self) -> None:
        made = subprocess.run(self._run("init"), capture_output=True, text=True, check=True)
        if made.stdout.strip():
            (self.directory / "token").write_text(made.stdout.strip())

    def start(self) -> dict[str, float]:
        """Return what the start took: seconds and seconds of CPU."""
        began = time.perf_counter()
        log = self.directory / "log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(self._run("run"), stdout=subprocess.DEVNULL, stderr=file)
        while b'"ready"' not in log.read_bytes():
            if self.process.poll() is not None or time.perf_counter() - began > START_S:
                raise SystemExit(f"dfud did not start: {log.read_text()[-2000:]}")
            time.sleep(0.01)
        return {"wall_s": time.perf_counter() - began, "cpu_s": used_s(self.pid)}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> float:
        """Return how many seconds it took to end."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        return time.perf_counter() - began

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        client = http.client.HTTPConnection("127.0.0.1", self.ports["registry"], timeout=3600)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        token = (self.directory / "token").read_text()
        client.request(method, path, data, {"authorization": f"Bearer {token}"})
        answer = client.getresponse()
        text = answer.read()
        client.close()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)", self.ask("GET", "/metrics"), re.MULTILINE)
        return float(found[1]) if found else float("nan")


class Load:
    """The compiled generator; what it measures is the daemon's CPU a request."""

    def __init__(self, directory: Path) -> None:
        self.program = directory / "httpload"
        source = Path(__file__).with_name("httpload.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(self.program), str(source)], check=True)

    def command(self, daemon: Daemon, mode: str, connections: int, first: int, devices: int, total: int) -> list[str]:
        numbers = map(str, (connections, first, devices, total))
        return [str(self.program), "127.0.0.1", str(daemon.ports["http"]), mode, *numbers]

    def __call__(
        self,
        daemon: Daemon,
        *,
        devices: int,
        first: int = 0,
        total: int = 0,
        mode: str = "keep",
        connections: int = 64,
        body: bytes = b"",
    ) -> dict[str, float]:
        total = total or devices
        command = self.command(daemon, mode, connections, first, devices, total)
        before, began = cpu_s(daemon.pid), time.perf_counter()
        run = subprocess.run(command, input=body or status(), capture_output=True, check=True)
        used, took = cpu_s(daemon.pid) - before, time.perf_counter() - began
        found = read_result(run.stdout)
        if found["good"] != total:
            raise SystemExit(f"{total - found['good']:.0f} of {total} answers were no success: {run.stderr.decode()}")
        return {"us": used / total * 1e6, "rate": total / took, **found}


def read_result(text: bytes) -> dict[str, float]:
    answers, good, away, first, last, p50, p99, longest = map(int, text.split()[-8:])
    return {
        "answers": answers,
        "good": good,
        "away": away,
        "first_us": first,
        "last_us": last,
        "p50_ms": p50 / 1000,
        "p99_ms": p99 / 1000,
        "longest_ms": longest / 1000,
    }


def device(number: int, key: bytes) -> Device:
    name = f"d{number:07d}"
    hashed = keyed_hash(f"p{number:07d}", key)
    return Device(
        metadata=Metadata(
            name=name,
            application=APP,
            uid=f"00000000-0000-4000-8000-{number:012d}",
            creation_timestamp="2026-01-01T00:00:00Z",
            generation=1,
            resource_version="1",
            labels={"group": f"g{number % 10}"},
        ),
        spec={"authentication": {"credentials": [{"pass": {"dfud": hashed}}]}},
    )


async def _fill(directory: Path, size: int) -> None:
    key = (directory / "credential.key").read_bytes()
    store = LocalStore(directory / "state")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        for first in range(0, size, PAGE):
            await store.commit([PutDevice(device(n, key)) for n in range(first, min(size, first + PAGE))])
        nursery.cancel_scope.cancel()


def prepare(kept: Path, size: int) -> Path:
    """Return a directory with the state of `size` registered devices, made once and kept."""
    made = kept / f"fleet-{size}"
    if not (made / "whole").exists():
        shutil.rmtree(made, ignore_errors=True)
        daemon = Daemon(made)
        daemon.init()
        daemon.start()
        try:
            spec = {"signing": {"mode": "optional"}}
            daemon.ask("POST", "/api/registry/v1alpha1/apps", {"metadata": {"name": APP}, "spec": spec})
            for version, image in (("1.0", OLD), ("1.1", NEW)):
                path = f"/api/dfu/v1/apps/{APP}/firmware?version={version}&hardware=esp32c3&kind=raw"
                daemon.ask("POST", path, image)
        finally:
            daemon.stop()
        trio.run(_fill, made, size)
        (made / "whole").touch()
    return made


@contextlib.asynccontextmanager
async def parked(load: Load, daemon: Daemon, first: int, count: int) -> AsyncIterator[trio.Process]:
    """Have `count` different devices wait; read what became of them from the process's output."""
    command = load.command(daemon, "park", count, first, count, count)
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    async with process.stdin:
        await process.stdin.send_all(status())
    try:
        with trio.fail_after(300):
            while (waiting := daemon.metric("dfud_devices_waiting")) < count:
                await trio.sleep(0.2)
                if process.poll() is not None:
                    raise SystemExit(f"{waiting:.0f} of {count} wait, and the others do not")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        await process.wait()
