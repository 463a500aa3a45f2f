"""Hostile strangers beside honest devices: what the daemon's memory does, and how long an honest device waits.

Fails (exit code 1) unless memory is flat and no honest device waited longer than a second for an answer.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import trio
from rich.console import Console
from rich.table import Table

from bench import strangers
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import SimulatedDevice

DEVICES = 50
WAIT_MAX_S = 1.0
# Growth that is no leak: arenas that Python keeps, and pages that SQLite has read.
GROWTH_FACTOR, GROWTH_BYTES = 1.10, 24 << 20
IMAGES = {"1.0": random.Random(1).randbytes(150_000)}
IMAGES["1.1"] = IMAGES["1.0"][:90_000] + random.Random(2).randbytes(9_000) + IMAGES["1.0"][90_000:]


class Sample(msgspec.Struct):
    """at_s since the start; rss and cpu of the daemon; waits of honest devices since the sample before."""

    at_s: float
    rss_bytes: int
    files: int
    cpu: float
    answers: int
    p99_s: float
    max_s: float


class Honest:
    """One device that is what it says: polls, updates, stays connected. `waits` takes how long each answer took."""

    def __init__(self, address: tuple[str, int], name: str, secret: str, waits: list[float]) -> None:
        self._address = address
        self._auth = strangers.basic(f"{name}@soak", secret)
        self._waits = waits
        self._stream: trio.SocketStream | None = None
        self.device = SimulatedDevice(self._status, self._chunk, IMAGES["1.0"], "1.0", payload=4160)
        self.updates = 0

    async def _exchange(self, data: bytes) -> tuple[int, bytes]:
        began_s = time.monotonic()
        for attempt in range(2):
            try:
                if self._stream is None:
                    self._stream = await trio.open_tcp_stream(*self._address)
                await self._stream.send_all(data)
                status, body = await self._read(self._stream)
            except (OSError, trio.BrokenResourceError, EOFError):
                await self.hang_up()
                if attempt:
                    raise
                continue
            self._waits.append(time.monotonic() - began_s)
            return status, body
        raise EOFError

    async def _read(self, stream: trio.SocketStream) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._more(stream)
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n")[1:]:
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(body) < length:
            body += await self._more(stream)
        return int(head.split()[1]), body

    @staticmethod
    async def _more(stream: trio.SocketStream) -> bytes:
        if not (data := bytes(await stream.receive_some(65536))):
            raise EOFError
        return data

    async def hang_up(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
            self._stream = None

    async def _status(self, body: bytes) -> bytes | None:
        status, answer = await self._exchange(strangers.request("/v1/dfu?ct=0", body, auth=self._auth))
        if status not in (200, 202):
            raise OSError(f"status {status}: {answer[:200]!r}")
        return answer if status == 200 else None

    async def _chunk(self, package: str, number: int) -> bytes:
        path = f"/v1/dfu/{package}/{number}"
        status, answer = await self._exchange(strangers.request(path, method="GET", auth=self._auth))
        if status != 200:
            raise OSError(f"chunk {number}: {status}")
        return answer

    async def run(self, rng: random.Random) -> None:
        while True:
            before = self.device.version
            await self.device.update()
            self.updates += self.device.version != before
            if rng.random() < 0.05:
                await self.hang_up()
            await trio.sleep(rng.uniform(0.2, 1.0))


async def prepare(daemon: DaemonProcess) -> dict[str, str]:
    """Register app, devices (one of them a hostile one) and two firmwares; return the honest devices' secrets."""
    secrets = {f"honest{n}": hashlib.sha256(f"soak {n}".encode()).hexdigest() for n in range(DEVICES)}
    async with daemon.client() as client:
        app = {"metadata": {"name": "soak"}, "spec": {"signing": {"mode": "optional"}}}
        (await client.post("/api/registry/v1alpha1/apps", json=app)).raise_for_status()
        for name, secret in {**secrets, "hostile": strangers.SECRET}.items():
            spec = {"authentication": {"credentials": [{"pass": secret}]}}
            body = {"metadata": {"name": name, "application": "soak"}, "spec": spec}
            (await client.post("/api/registry/v1alpha1/apps/soak/devices", json=body)).raise_for_status()
        for version, image in IMAGES.items():
            parameters = {"version": version, "hardware": "esp32c3", "kind": "raw"}
            (await client.post("/api/dfu/v1/apps/soak/firmware", params=parameters, content=image)).raise_for_status()
    return secrets


async def turn(daemon: DaemonProcess, pause_s: float) -> None:
    """Have a few devices at a time run the other version."""
    rng = random.Random(3)
    wanted = dict.fromkeys(range(DEVICES), "1.0")
    async with daemon.client() as client:
        while True:
            for n in rng.sample(range(DEVICES), 5):
                wanted[n] = "1.1" if wanted[n] == "1.0" else "1.0"
                body = {"device": f"honest{n}", "firmware": {"version": wanted[n]}}
                (await client.post("/api/dfu/v1/apps/soak/update", json=body)).raise_for_status()
            await trio.sleep(pause_s)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * share) - 1)] if values else 0.0


def verdict(samples: list[Sample]) -> list[str]:
    """Return what is wrong, as sentences. The first quarter is warming up."""
    wrong = []
    if not any(s.answers for s in samples):
        wrong.append("no honest device got an answer")
    if (longest := max((s.max_s for s in samples), default=0.0)) > WAIT_MAX_S:
        wrong.append(f"an honest device waited {longest:.2f} s, expected at most {WAIT_MAX_S} s")
    quarter = max(1, len(samples) // 4)
    early = statistics.median(s.rss_bytes for s in samples[quarter : 2 * quarter] or samples)
    late = statistics.median(s.rss_bytes for s in samples[-quarter:])
    if late > early * GROWTH_FACTOR + GROWTH_BYTES:
        wrong.append(f"memory grew from {early / 2**20:.0f} MB in the second quarter to {late / 2**20:.0f} MB in the last")
    files = [s.files for s in samples]
    if files[-1] > 2 * statistics.median(files) + 100:
        wrong.append(f"open files grew to {files[-1]}")
    return wrong


async def soak(minutes: float, console: Console, directory: Path) -> list[str]:
    daemon = DaemonProcess(directory, plugins=("local", "http", "coap", "drogue"))
    await daemon.init()
    waits: list[float] = []
    samples: list[Sample] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        assert daemon._process is not None
        process = psutil.Process(daemon._process.pid)
        secrets = await prepare(daemon)
        honest = [Honest(("127.0.0.1", daemon.ports["http"]), n, s, waits) for n, s in secrets.items()]
        arguments = [
            *(sys.executable, "-m", "bench.strangers", "--minutes", str(minutes)),
            *("--device", f"127.0.0.1:{daemon.ports['http']}", "--user", f"127.0.0.1:{daemon.ports['registry']}"),
            *("--coap", f"127.0.0.1:{daemon.ports['coap']}"),
        ]
        began_s = trio.current_time()
        async with trio.open_nursery() as load:
            load.start_soon(trio.lowlevel.checkpoint)
            strange = subprocess.Popen(arguments)
            try:
                for number, one in enumerate(honest):
                    load.start_soon(one.run, random.Random(number))
                load.start_soon(turn, daemon, 5.0)
                await watch(process, waits, samples, began_s, minutes, console)
            finally:
                strange.terminate()
                strange.wait()
            load.cancel_scope.cancel()
        async with daemon.client() as client:
            metrics = (await client.get("/metrics")).text
            contained = [line for line in metrics.splitlines() if line.startswith("dfud_contained_errors_total{")]
        console.print(f"{sum(one.updates for one in honest)} updates; {sum(s.answers for s in samples)} answers to honest devices")
        console.print("\n".join(contained) or "no exception was contained")
        nursery.cancel_scope.cancel()
    wrong = verdict(samples)
    if daemon.exit_code not in (0, None):
        wrong.append(f"dfud ended with exit code {daemon.exit_code}")
    return wrong


async def watch(
    process: psutil.Process, waits: list[float], samples: list[Sample], began_s: float, minutes: float, console: Console
) -> None:
    every_s = min(30.0, minutes * 60 / 20)
    process.cpu_percent()
    while trio.current_time() - began_s < minutes * 60:
        await trio.sleep(every_s)
        taken, waits[:] = list(waits), []
        one = Sample(
            at_s=trio.current_time() - began_s,
            rss_bytes=process.memory_info().rss,
            files=process.num_fds(),
            cpu=process.cpu_percent(),
            answers=len(taken),
            p99_s=percentile(taken, 0.99),
            max_s=max(taken, default=0.0),
        )
        samples.append(one)
        console.print(
            f"{one.at_s:7.0f} s  RSS {one.rss_bytes / 2**20:6.1f} MB  {one.files:5} files  {one.cpu:5.1f} % CPU  "
            f"{one.answers:6} answers  p99 {one.p99_s * 1e3:6.1f} ms  longest {one.max_s * 1e3:6.1f} ms"
        )
    table = Table(title=f"soak of {minutes:g} minutes, by quarters", box=None, pad_edge=False, header_style="bold")
    for name in ("until s", "RSS MB", "files", "answers", "p99 ms", "longest ms"):
        table.add_column(name, justify="right")
    quarter = max(1, len(samples) // 4)
    for start in range(0, len(samples), quarter):
        part = samples[start : start + quarter]
        table.add_row(
            f"{part[-1].at_s:.0f}",
            f"{statistics.median(s.rss_bytes for s in part) / 2**20:.0f}",
            str(max(s.files for s in part)),
            str(sum(s.answers for s in part)),
            f"{max(s.p99_s for s in part) * 1e3:.1f}",
            f"{max(s.max_s for s in part) * 1e3:.1f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    given = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as directory:
        wrong = trio.run(soak, given.minutes, console, Path(directory))
    for sentence in wrong:
        console.print(f"soak: {sentence}")
    console.print("soak: passed" if not wrong else "soak: FAILED")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
