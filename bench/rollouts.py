"""What rollouts cost: making one, and each decision with 20 running ones and 50 rules against none. Different devices, one run."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import trio
from dfud_local.store import LocalStore
from rich.console import Console
from rich.table import Table

from dfud.api import App, AppChanged, Bus, Device, Firmware, Metadata, PutApp, PutDevice, PutFirmware
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.model.rollout_states import State
from dfud.model.schedule import DAYS
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Status

OLD, NEW = b"old" * 1000, b"new" * 1000
ROLLOUTS, RULES, ROUNDS = 20, 50, 5
SITES = 100
SAMPLE = 5000  # devices that ask


def app_with(rules: int) -> App:
    made = [{"selector": f"channel=c{n}", "firmware": {"version": "1.1"}} for n in range(rules)]
    spec = {"signing": {"mode": "optional"}, "firmware": {"version": "1.0"}, "rules": made}
    return App(Metadata("a", uid="u", resource_version=str(rules)), spec)


class Bench:
    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        self.bus = Bus()
        self.store = LocalStore(directory / "store")
        config = ControllerConfig(cache_devices=max(100, count))
        self.packages = Packages(self.store, directory / "packages", disk_bytes=1 << 30, memory_bytes=1 << 28, workers=1)
        self.controller = Controller(self.store, self.bus, self.packages, config, time.time)
        self.status = Status("1.0", hashlib.sha256(OLD).digest(), "esp32c3", 2, 4160, 1 << 20)

    async def fill(self) -> None:
        await self.store.commit([PutApp(app_with(0))])
        created = "2026-01-01T00:00:00.000Z"
        step = max(1, self.count // SAMPLE)
        for first in range(0, self.count, 1000):
            devices = [
                Device(Metadata(f"d{n}", "a", creation_timestamp=created, labels={"site": f"s{n // step % SITES}", "channel": "x"}))
                for n in range(first, min(self.count, first + 1000))
            ]
            await self.store.commit([PutDevice(device) for device in devices])
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            async with a_blob(self.store, image) as sha256:
                manifest = unsigned(Manifest("a", version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
                await self.store.commit(
                    [
                        PutFirmware(
                            Firmware(
                                app="a",
                                version=version,
                                hardware="esp32c3",
                                sequence=1,
                                size_bytes=len(image),
                                sha256=sha256,
                                manifest=manifest,
                                kind="raw",
                            )
                        )
                    ]
                )

    async def decide(self) -> float:
        """Return microseconds of CPU for one unchanged status, all devices in turn (a sample of them where there are many)."""
        step = max(1, self.count // SAMPLE)
        start = time.process_time()
        for n in range(0, self.count, step):
            await self.controller.status("a", f"d{n}", self.status, "http")
        return (time.process_time() - start) / len(range(0, self.count, step)) * 1e6

    async def make(self) -> float:
        """Make the rollouts, each for one site and waiting for its window; return seconds for the slowest."""
        tomorrow = DAYS[(datetime.now(UTC).weekday() + 2) % 7]
        slowest = 0.0
        for n in range(ROLLOUTS):
            spec: dict[str, object] = {
                "firmware": "1.1",
                "devices": {"selector": f"site=s{n}", "running": ["1.0"]},
                "windows": [{"days": [tomorrow], "from": "00:00", "to": "24:00"}],
                "waves": [{"percent": 100}],
                "priority": n,
            }
            start = time.perf_counter()
            await self.controller.rollouts.create("a", Metadata(f"r{n}"), spec, "bench", draft=False)
            slowest = max(slowest, time.perf_counter() - start)
        while any(r.status.state is not State.TELLING for r in self.controller.rollouts.all_of("a")):
            await trio.sleep(0.1)
        return slowest


async def run(count: int, table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), count)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.store.run, bench.bus)
            await nursery.start(bench.packages.run)
            await nursery.start(bench.controller.run)
            await bench.fill()
            await bench.decide()
            before = min([await bench.decide() for _ in range(ROUNDS)])
            made_s = await bench.make()
            await bench.store.commit([PutApp(app_with(RULES))])
            bench.bus.publish(AppChanged("a"))
            await bench.decide()
            after = min([await bench.decide() for _ in range(ROUNDS)])
            table.add_row(f"{count:,}", f"{made_s * 1e3:.1f}", f"{before:.1f}", f"{after:.1f}", f"{after / before:.2f}")
            nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    given = parser.parse_args()
    title = f"{ROLLOUTS} rollouts and {RULES} rules against none; the best of {ROUNDS} rounds"
    table = Table(title=title, box=None, pad_edge=False, header_style="bold")
    for name in ("devices", "slowest creation ms", "decision us, without", "with", "ratio"):
        table.add_column(name, justify="right")
    for size in given.sizes:
        print(f"{size} devices ...", file=sys.stderr)
        trio.run(run, size, table)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
