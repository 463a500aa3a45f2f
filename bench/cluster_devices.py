"""What devices cost several dfud: whole processes, the compiled load generator, all on this machine.

Called by bench.cluster. Every operation is measured at one, two and three processes at once, each with its own share of the devices;
CPU is dfud's own for each operation, beside it PostgreSQL's. With few cores they share these with the load, so rates say little; the
CPU of an operation is what capacity follows from.
"""

from __future__ import annotations

import base64
import http.client
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio
from dfud_local.store import LocalStore
from dfud_postgres.store import PostgresStore

from bench.fleet_load import APP, NEW, OLD, PAGE, Daemon, Load, device, parked, read_result, status
from bench.http import cpu_s, rss_bytes
from dfud.api import Bus, PutDevice, Store
from dfud.wire.messages import decode_command_untrusted
from tests.plugins.postgres.server import Server, config_for

PARKED = 1000
TAKE_OVERS = 5
CHUNKS = 4000
FIRST = "Basic " + base64.b64encode(f"d0000000@{APP}:p0000000".encode()).decode()
ROWS = (
    ("fill", "register, in the store", "us"),
    ("first", "first poll of a device at a process", "us"),
    ("again", "poll that is known", "us"),
    ("report", "report stored", "us"),
    ("chunk", "chunk of 16 KB", "us"),
    ("group", "group update, each device", "us"),
    ("told", "told by its next poll (decided, stored, sent)", "us"),
)


class Process(Daemon):
    """One of several: on the same store, with the same key. A store of its own where `section` is ""."""

    def __init__(self, directory: Path, shared: Path, section: str) -> None:
        super().__init__(directory)
        if not section:
            return
        path = directory / "dfud.toml"
        text = path.read_text()
        for old, new in (
            ('[daemon]\n', '[daemon]\nstore = "postgres"\n'),
            ('enabled = ["local", "http"]', 'enabled = ["postgres", "http"]'),
            (f'[store.local]\npath = "{directory}/state"', section),
            (f"{directory}/credential.key", f"{shared}/credential.key"),
        ):
            if text.count(old) != 1:
                raise SystemExit(f"bench.fleet_load's configuration has {old!r} {text.count(old)} times")
            text = text.replace(old, new)
        path.write_text(text)


class Several:
    """dfud processes and what is measured on them. server_s: CPU of the database so far."""

    def __init__(self, directory: Path, processes: Sequence[Process], key: Path, server_s: Callable[[], float]) -> None:
        self.all = list(processes)
        self._key = key
        self._server_s = server_s
        self._load = Load(directory)

    def start(self) -> None:
        self.all[0].init()
        token = (self.all[0].directory / "token").read_text()
        for process in self.all:
            (process.directory / "token").write_text(token)
            process.start()

    def stop(self) -> None:
        for process in self.all:
            process.stop()

    async def fill(self, store: Store, devices: int) -> dict[str, float]:
        """Register devices in the store itself."""
        spec = {"signing": {"mode": "optional"}}
        first = self.all[0]
        first.ask("POST", "/api/registry/v1alpha1/apps", {"metadata": {"name": APP}, "spec": spec})
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            first.ask("POST", f"/api/dfu/v1/apps/{APP}/firmware?version={version}&hardware=esp32c3&kind=raw", image)
        key = self._key.read_bytes()
        self.stop()  # the local store is one process' own
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run, Bus())
            began, server, own = time.perf_counter(), self._server_s(), time.process_time()
            for number in range(0, devices, PAGE):
                names = range(number, min(devices, number + PAGE))
                await store.commit([PutDevice(device(n, key)) for n in names])
            took = (time.process_time() - own, self._server_s() - server, time.perf_counter() - began)
            nursery.cancel_scope.cancel()
        for process in self.all:
            process.start()
        return _each(*took, devices)

    def polls(self, devices: int, total: int = 0, body: bytes = b"", refused_max: int = 0) -> dict[str, float]:
        """Have each process' share poll at it, all at once. total: requests in all; refused_max: how many of them may be told to
        come again.
        """
        share, count = devices // len(self.all), (total or devices) // len(self.all)
        before, server, began = self._cpu_s(), self._server_s(), time.perf_counter()
        running = []
        for number, process in enumerate(self.all):
            command = self._load.command(process, "keep", 256 // len(self.all), number * share, share, count)
            run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert run.stdin is not None
            run.stdin.write(body or status())
            run.stdin.close()
            running.append(run)
        good = away = 0.0
        for run in running:
            assert run.stdout is not None
            result = read_result(run.stdout.read())
            good, away = good + result["good"], away + result["away"]
            run.wait()
        if (wrong := count * len(self.all) - good - away) or away > refused_max:
            raise SystemExit(f"{away:.0f} answers were 503, {wrong:.0f} were no success or did not come")
        if away:
            print(f"  {away:.0f} of {good + away:.0f} were answered 503", flush=True)
        return _each(self._cpu_s() - before, self._server_s() - server, time.perf_counter() - began, int(good))

    def chunks(self) -> dict[str, float]:
        """Have one device fetch the same chunk from each process again and again."""
        package = self._package()
        path = f"/v1/dfu/{package}/0"
        before, server, began = self._cpu_s(), self._server_s(), time.perf_counter()
        count = CHUNKS // len(self.all)
        for process in self.all:
            connection = http.client.HTTPConnection("127.0.0.1", process.ports["http"])
            for _ in range(count):
                connection.request("GET", path, headers={"Authorization": FIRST})
                answer = connection.getresponse()
                if len(answer.read()) < 10_000 or answer.status != 200:
                    raise SystemExit(f"GET {path}: {answer.status}")
            connection.close()
        return _each(self._cpu_s() - before, self._server_s() - server, time.perf_counter() - began, count * len(self.all))

    def _package(self) -> str:
        """Have the package made, with a device that wants it; return its name."""
        self.ask("POST", f"/api/dfu/v1/apps/{APP}/update", {"device": "d0000000", "firmware": {"version": "1.1"}})
        for _ in range(80):
            connection = http.client.HTTPConnection("127.0.0.1", self.all[0].ports["http"])
            connection.request("POST", "/v1/dfu", status(), headers={"Authorization": FIRST})
            command = decode_command_untrusted(connection.getresponse().read())
            connection.close()
            if command.package:
                return command.package.hex()
            time.sleep(0.25)
        raise SystemExit("the package was not made")

    def group(self, devices: int) -> dict[str, float]:
        """Have every device want the new version, by selectors."""
        before, server, began = self._cpu_s(), self._server_s(), time.perf_counter()
        wish = {"selector": "group", "firmware": {"version": "1.1"}, "allAtOnce": True}
        name = self.ask("POST", f"/api/dfu/v1/apps/{APP}/update", wish)["job"]
        name = name["id"] if isinstance(name, dict) else name
        while (state := self.ask("GET", f"/api/dfu/v1/apps/{APP}/jobs/{name}")["state"]) in ("waiting", "running"):
            time.sleep(0.1)
        if state != "done":
            raise SystemExit(f"the group update ended as {state}")
        return _each(self._cpu_s() - before, self._server_s() - server, time.perf_counter() - began, devices)

    async def woken(self, devices: int) -> dict[str, float]:
        """Park devices at the last process, ask the first for a new version of all; return seconds until they were told."""
        count = min(PARKED, devices // 4)
        async with parked(self._load, self.all[-1], devices - count, count) as process:
            began = time.monotonic()
            self.ask("POST", f"/api/dfu/v1/apps/{APP}/update", {"firmware": {"version": "1.1"}})
            assert process.stdout is not None
            text = b""
            async for data in process.stdout:
                text += data
            result = read_result(text)
        if result["good"] != count:
            raise SystemExit(f"{count - result['good']:.0f} of {count} parked devices were not told")
        return {"first_s": result["first_us"] / 1e6 - began, "last_s": result["last_us"] / 1e6 - began, "count": float(count)}

    def take_over(self) -> list[float]:
        """Kill whoever leads the rollouts, again and again; return the seconds until another leads."""
        found = []
        for _ in range(TAKE_OVERS):
            leader = next(p for p in self.all if _leads(p))
            others = [p for p in self.all if p is not leader]
            began = time.perf_counter()
            assert leader.process is not None
            leader.process.kill()
            leader.process.wait()
            while not any(_leads(p) for p in others):
                time.sleep(0.01)
            found.append(time.perf_counter() - began)
            leader.start()
        return found

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return self.all[0].ask(method, path, body)

    def memory_mb(self) -> float:
        return statistics.mean(rss_bytes(process.pid) / 1e6 for process in self.all)

    def _cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self.all)


def _leads(process: Process) -> bool:
    text = (process.directory / "log").read_text()
    return re.search(r'"event": ?"leads".*"work": ?"rollouts"|"work": ?"rollouts".*"event": ?"leads"', text) is not None


def _each(own_s: float, server_s: float, wall_s: float, number: int) -> dict[str, float]:
    return {"us": own_s / number * 1e6, "server_us": server_s / number * 1e6, "rate": number / wall_s}


async def _measure(several: Several, store: Store, devices: int) -> dict[str, Any]:
    found: dict[str, Any] = {"fill": await several.fill(store, devices)}
    found["first"] = several.polls(devices)
    several.polls(devices)
    found["again"] = several.polls(devices, max(devices, 60_000))
    found["memory_mb"] = several.memory_mb()
    found["report"] = several.polls(devices, 20_000, status(attributes={"n": "########"}))
    several.polls(devices)  # they say again what they said
    found["chunk"] = several.chunks()
    found["woken"] = await several.woken(devices)
    found["group"] = several.group(devices)
    found["told"] = several.polls(min(devices - int(found["woken"]["count"]), 20_000))
    if len(several.all) > 1:
        found["take_over"] = several.take_over()
    return found


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {found['memory_mb']:.0f} MB each once all have polled")
    for key, title, unit in ROWS:
        one = found[key]
        beside = f", {one['server_us']:4.0f} in PostgreSQL" if one["server_us"] else ""
        print(f"  {title:46} {one['us']:5.0f} {unit} of CPU in dfud{beside}; {one['rate']:7.0f}/s in all", flush=True)
    woken = found["woken"]
    where = "at another process" if "take_over" in found else "there"
    print(f"  {woken['count']:.0f} parked {where} are told {woken['first_s']:.2f} to {woken['last_s']:.2f} s after it was wanted")
    if "take_over" in found:
        times = found["take_over"]
        print(f"  another leads after a kill: {statistics.median(times):.2f} s, at most {max(times):.2f} s of {len(times)}")


def measure(directory: Path, server: Server, server_s: Callable[[], float], devices: int, number: int) -> dict[str, Any]:
    """Measure so many processes on PostgreSQL; 0: one on the local store."""
    directory.mkdir()
    section, shared = "", directory / "dfud1"
    if number:
        config = config_for(directory, str(server.directory))
        section = f'[store.postgres]\nhost = "{config.host}"\ndatabase = "{config.database}"\nblobs_path = "{directory}/blobs"'
        shared = directory
    processes = [Process(directory / f"dfud{n + 1}", shared, section) for n in range(max(1, number))]
    several = Several(directory, processes, shared / "credential.key", server_s)

    async def whole() -> dict[str, Any]:
        several.start()
        try:
            if number:
                return await _measure(several, PostgresStore(config_for(directory, str(server.directory))), devices)
            return await _measure(several, LocalStore(directory / "dfud1" / "state"), devices)
        finally:
            several.stop()

    return trio.run(whole)
