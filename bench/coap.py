"""What devices cost dfud over CoAP: a poll and a block of 1 KB; beside libcoap's coap-server and aiocoap with resources of the
same sizes, in one run.

The server has core 0 for itself, the load (bench/coapload.c, 64 sockets with one request each under way) core 1. CPU is the
server process's own time over the number of answers. dfud authenticates each request, decides, and remembers messages to
recognise them when they come twice; the others send a fixed resource.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import click
import httpx
import trio
from dfud_coap.message import Code, Option, Options, encode_tail, uint
from rich.console import Console
from rich.table import Table

from bench.coap_oscore import Context, greet
from bench.coap_oscore import lines as oscore_lines
from bench.http import Bench, cpu_s, pin
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from dfud.wire.messages import Command

SOCKETS = 64
PROTECTED = 32_768  # requests under OSCORE, each good for one time
SECONDS = 4.0
PAYLOAD = 16640
POLL_BYTES = 61
AIOCOAP = """
import asyncio, sys, aiocoap, aiocoap.resource
class Bytes(aiocoap.resource.Resource):
    def __init__(self, size):
        super().__init__()
        self.data = bytes(size)
    async def render_get(self, request):
        return aiocoap.Message(payload=self.data)
async def main():
    site = aiocoap.resource.Site()
    site.add_resource(["poll"], Bytes(61))
    site.add_resource(["block"], Bytes(1024))
    await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", int(sys.argv[1])), transports=["simplesocketserver"])
    await asyncio.get_running_loop().create_future()
asyncio.run(main())
"""


def path(*segments: str) -> Options:
    return [(int(Option.URI_PATH), s.encode()) for s in segments]


def line(code: Code, options: Options, payload: bytes = b"") -> str:
    return (bytes([code]) + encode_tail(options, payload)).hex()


def free_port() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Load:
    """The compiled generator."""

    def __init__(self, directory: Path) -> None:
        self.program = directory / "coapload"
        source = Path(__file__).with_name("coapload.c")
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(self.program), str(source)], check=True)

    async def __call__(self, pid: int, port: int, lines: list[str], *, once: bool = False) -> dict[str, float]:
        """Return CPU us an answer, answers a second, latencies in ms, repetitions. once: each request is sent one time."""
        core = sorted(os.sched_getaffinity(0))[-1]
        command = ["taskset", "-c", str(core), str(self.program), "127.0.0.1", str(port), str(SECONDS), str(SOCKETS)]
        command += ["once"] if once else []
        before = cpu_s(pid)
        run = await trio.run_process(command, stdin="\n".join(lines).encode() + b"\n", capture_stdout=True)
        used = cpu_s(pid) - before
        answers, good, repeated, p50, p99, took_us = map(int, run.stdout.split())
        if not answers or good != answers:
            raise SystemExit(f"{answers - good} of {answers} answers were no success")
        return {
            "us": used / answers * 1e6,
            "rate": answers / took_us * 1e6,
            "p50": p50 / 1000,
            "p99": p99 / 1000,
            "repeated": repeated,
        }


Results = dict[str, dict[str, float]]


async def dfud(load: Load, directory: Path) -> Results:
    """A whole daemon: registry, store, controller, endpoint, transport."""
    daemon = DaemonProcess(directory / "dfud", plugins=("local", "http", "coap"), coap="plain = true\n")
    await daemon.init()
    results: Results = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        assert daemon._process is not None
        pid = daemon._process.pid
        bench = Bench(daemon, directory)
        await bench.prepare()
        pin(pid, 0)
        port = int(daemon.urls["coap"].rpartition(":")[2])

        def auth(device: str) -> tuple[int, bytes]:
            basic = base64.b64encode(f"{device}@bench:{bench.secrets[device]}".encode())
            return int(Option.AUTHORIZATION), b"Basic " + basic

        polls = [line(Code.POST, [*path("v1", "dfu"), auth(d)], bench.status()) for d in bench.secrets]
        await load(pid, port, polls)  # everybody is known from here on
        results["poll"] = await load(pid, port, polls)
        fetching = list(bench.secrets)[:SOCKETS]  # one for each socket
        command, chunk_bytes = await update(bench, fetching)
        package, size = command.package.hex(), command.chunks
        # As devices do it: each fetches one block after the other of a chunk, then of the next.
        whole = chunk_bytes // 1024
        places = [(n, b) for n in range(1, size - 1) for b in range(whole)]
        blocks = [
            line(
                Code.GET,
                [*path("v1", "dfu", package, str(n)), auth(device), (int(Option.BLOCK2), uint(b << 4 | 6))],
            )
            for step in range(len(places))
            for s, device in enumerate(fetching)
            for n, b in (places[(step + whole * s) % len(places)],)
        ]
        results["block"] = await load(pid, port, blocks)
        contexts = [await context_of(bench, device) for device in list(bench.secrets)[SOCKETS : 2 * SOCKETS]]
        status = (Code.POST, path("v1", "dfu"), bench.status())
        greet(port, contexts, *status)
        results["poll, OSCORE"] = await load(pid, port, oscore_lines(contexts, [status] * PROTECTED), once=True)
        contexts = [await context_of(bench, device) for device in fetching]
        greet(port, contexts, Code.GET, [*path("v1", "dfu", package, "1"), (int(Option.BLOCK2), uint(6))], b"")
        fetches = [
            (Code.GET, [*path("v1", "dfu", package, str(n)), (int(Option.BLOCK2), uint(b << 4 | 6))], b"")
            for step in range(PROTECTED // SOCKETS)
            for n, b in (places[(step + whole * s) % len(places)] for s in range(SOCKETS))
        ]
        results["block, OSCORE"] = await load(pid, port, oscore_lines(contexts, fetches), once=True)
        nursery.cancel_scope.cancel()
    return results


async def context_of(bench: Bench, device: str) -> Context:
    """Have a new pre-shared key made for a device."""
    async with bench.daemon.client() as client:
        answer = await client.post(f"/api/dfu/v1/apps/bench/psk/{device}")
        return Context(f"{device}@bench", bytes.fromhex(answer.raise_for_status().json()["psk"]))


async def update(bench: Bench, names: list[str]) -> tuple[Command, int]:
    """Have devices told of an update, which is the same for all; return its command and the size of its second chunk."""
    command, chunk = None, b""
    for name in names:
        async with bench.daemon.client() as client:
            body = {"device": name, "firmware": {"version": "1.1"}}
            (await client.post("/api/dfu/v1/apps/bench/update", json=body)).raise_for_status()
        auth = (f"{name}@bench", bench.secrets[name])
        async with httpx.AsyncClient(base_url=bench.daemon.urls["http"], auth=auth, timeout=60) as client:
            device = HttpDevice(client, b"old" * 1000, "1.0", payload=PAYLOAD)
            command = None
            while command is None or not command.package:
                command = await device.poll()
            chunk = await device._fetch(command.package.hex(), 1)
    assert command is not None
    return command, len(chunk)


@contextlib.asynccontextmanager
async def running(command: list[str]) -> AsyncIterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await trio.sleep(1.5)
        pin(process.pid, 0)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def libcoap(load: Load, directory: Path) -> Results | None:
    program = shutil.which("coap-server-notls")
    if program is None:
        return None
    port = free_port()
    results: Results = {}
    async with running([program, "-A", "127.0.0.1", "-p", str(port), "-d", "4"]) as pid:
        for name, size in (("poll", POLL_BYTES), ("block", 1024)):
            (directory / name).write_bytes(b"x" * size)
            client = ["coap-client-notls", "-m", "put", "-f", str(directory / name), f"coap://127.0.0.1:{port}/{name}"]
            await trio.run_process(client, capture_stdout=True, capture_stderr=True)
            results[name] = await load(pid, port, [line(Code.GET, path(name))])
    return results


async def aiocoap(load: Load, directory: Path) -> Results | None:
    port = free_port()
    results: Results = {}
    async with running([sys.executable, "-c", AIOCOAP, str(port)]) as pid:
        for name in ("poll", "block"):
            results[name] = await load(pid, port, [line(Code.GET, path(name))])
    return results


async def run(rounds: int) -> None:
    peers: list[tuple[str, Callable[[Load, Path], object]]] = [
        ("dfud", dfud),
        ("libcoap", libcoap),
        ("aiocoap", aiocoap),
    ]
    best: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        load = Load(Path(name))
        for number in range(rounds):
            for peer, measure in peers:
                directory = Path(name) / f"{peer}{number}"
                directory.mkdir()
                found: Results | None = await measure(load, directory)  # type: ignore[misc]
                for what, values in (found or {}).items():
                    held = best.get((peer, what))
                    if held is None or values["us"] < held["us"]:
                        best[(peer, what)] = values
    table = Table("", "CPU us a request", "requests/s on a core", "p50 ms", "p99 ms", "x", "of", "goal")
    for what, title in (("poll", "poll"), ("block", "1 KB block")):
        ours = best[("dfud", what)]
        shown = [(f"{peer}, {title}", best.get((peer, what)), "libcoap", best.get(("libcoap", what))) for peer, _ in peers]
        shown.insert(1, (f"dfud, {title}, OSCORE", best.get(("dfud", f"{what}, OSCORE")), "plain", ours))
        for name, numbers, of, base in shown:
            if numbers is None:
                continue
            factor = f"{numbers['us'] / base['us']:.2f}" if base else "?"
            goal = {("dfud", "libcoap"): "1", ("dfud", "plain"): "3"}.get((name.partition(",")[0], of), "")
            row = (f"{numbers['us']:.1f}", f"{numbers['rate']:,.0f}", f"{numbers['p50']:.2f}", f"{numbers['p99']:.2f}")
            table.add_row(name, *row, factor, of, goal)
    Console(width=120).print(table)


@click.command()
@click.option("--rounds", default=2, show_default=True, help="The quietest of so many is shown.")
def main(rounds: int) -> None:
    trio.run(run, rounds)


if __name__ == "__main__":
    main()
