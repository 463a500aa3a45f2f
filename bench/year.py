"""A simulated year of a fleet on the local store: what it weighs month by month, with retention and without.

Every month each device is updated twice (six history entries each), its report changes 30 times, a tenth of the fleet enrols with
new claim codes and a thousandth is deleted and made again, and users leave audit entries. The clock is simulated; what is written,
removed and weighed is real. To see where a bound is reached within a year, the limits of age are a quarter of the defaults.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from pathlib import Path

import msgspec
import trio
from dfud_local.limits import Limits
from dfud_local.store import LocalStore
from rich.console import Console
from rich.table import Table

from dfud.api import (
    Actual,
    App,
    Bus,
    Change,
    DeleteDevice,
    Deployment,
    Device,
    HistoryEntry,
    Metadata,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    State,
)
from dfud.daemon import retention
from dfud.daemon.retention import DAY_S, Retention, RetentionConfig
from dfud.registry import audit
from dfud.registry.claims import Claims
from dfud.registry.registry import Registry
from dfud.registry.rules import RecordLimits

START_S = 1_800_000_000.0
MONTH_S = 365.25 / 12 * DAY_S
AT_ONCE = 200
STATES = (State.PENDING, State.NOTIFIED, State.FETCHING, State.WRITTEN, State.TRIAL, State.DONE)
CONFIG = RetentionConfig(history_days=100, audit_days=100, audit_max=1_000_000, claims_days=30)
TABLES = ("history", "deployment", "actual", "document")


class Year:
    def __init__(self, store: LocalStore, devices: int) -> None:
        self.store = store
        self.names = [f"lamp{n:06}" for n in range(devices)]
        self.now_s = START_S
        self.number = 0
        self.claims = Claims(Registry(store, Bus(), bytes(32), self.now, RecordLimits()), store, bytes(32), self.now)

    def now(self) -> float:
        return self.now_s

    async def begin(self) -> None:
        await self.store.commit([PutApp(App(Metadata("lamps", uid="lamps", resource_version="1")))])
        for piece in self._pieces(self.names):
            await self.store.commit([PutDevice(self._device(name)) for name in piece])

    def _device(self, name: str) -> Device:
        secret = {"authentication": {"credentials": [{"pass": {"hmac": "x" * 64}}]}}
        return Device(Metadata(name, "lamps", uid=name, resource_version="1", labels={"site": name[-1]}), secret)

    def _pieces(self, names: list[str]) -> list[list[str]]:
        return [names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)]

    async def month(self) -> None:
        for half in range(2):
            begun_s = self.now_s
            self.number += 1
            for piece in self._pieces(self.names):
                await self._update(piece, begun_s)
                self.now_s += MONTH_S / 2 / len(self._pieces(self.names))
            if half:
                await self._changes()

    async def _update(self, piece: list[str], begun_s: float) -> None:
        version = f"1.{self.number}"
        changes: list[Change] = []
        for name in piece:
            made = Deployment(
                id=f"{hash((name, self.number)) & (1 << 127) - 1:032x}",
                app="lamps",
                device=name,
                version=version,
                sha256=f"{self.number:064x}",
                state=State.PENDING,
                created_s=begun_s,
                updated_s=begun_s,
                number=self.number,
            )
            for state in STATES:
                made = msgspec.structs.replace(made, state=state, updated_s=self.now_s)
                changes.append(
                    PutDeployment(
                        made,
                        HistoryEntry(
                            deployment=made.id,
                            app="lamps",
                            device=name,
                            at_s=self.now_s,
                            state=state,
                            version=version,
                            event="x",
                        ),
                    )
                )
            for _ in range(15):
                changes.append(PutActual(Actual("lamps", name, version, made.sha256, "esp32c3", seen_s=self.now_s)))
        await self.store.commit([*changes, audit.entry(self.now_s, "ann", "update-group", "lamps", "x" * 100)])

    async def _changes(self) -> None:
        for _ in range(max(1, len(self.names) // 1000)):
            await self.claims.create("lamps", "ann", uses=100, hours=24)
        for name in self.names[:: max(1000, len(self.names) // 1000)]:
            await self.store.commit([DeleteDevice("lamps", name), PutDevice(self._device(name))])

    async def sweep(self, swept: bool) -> int:
        return await Retention(self.store, CONFIG, self.now, claims=self.claims.forget).sweep() if swept else 0


async def year(devices: int, months: int, swept: bool, console: Console) -> list[tuple[int, ...]]:
    """Return for each month (rows of TABLES ..., megabytes of pages in use, megabytes of the file)."""
    found = []
    retention.PAUSE_S = 0.0
    with tempfile.TemporaryDirectory() as directory:
        limits = Limits() if swept else Limits(history_per_device=10**6, deployments_per_device=10**5)
        async with trio.open_nursery() as nursery:
            store = LocalStore(Path(directory), limits=limits)
            await nursery.start(store.run, Bus())
            one = Year(store, devices)
            with console.status("registering"):
                await one.begin()
            for month in range(1, months + 1):
                with console.status(f"{'with' if swept else 'without'} retention: month {month} of {months}"):
                    await one.month()
                    await one.sweep(swept)
                found.append(weigh(Path(directory)))
            nursery.cancel_scope.cancel()
    return found


def weigh(directory: Path) -> tuple[int, ...]:
    database = sqlite3.connect(f"file:{directory / 'dfud.sqlite3'}?mode=ro", uri=True)
    rows = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES]
    size, pages, free = (database.execute(f"PRAGMA {p}").fetchone()[0] for p in ("page_size", "page_count", "freelist_count"))
    database.close()
    return (*rows, (pages - free) * size >> 20, pages * size >> 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--months", type=int, default=12)
    arguments = parser.parse_args()
    console = Console(width=140)
    runs = [trio.run(year, arguments.devices, arguments.months, swept, console) for swept in (True, False)]
    table = Table(title=f"{arguments.devices} devices; at the end of each month, in brackets without any limit")
    for name in ("month", *TABLES, "MB in use", "MB of file"):
        table.add_column(name, justify="right")
    for month, (kept, all_) in enumerate(zip(*runs, strict=True), start=1):
        table.add_row(str(month), *(f"{a} ({b})" for a, b in zip(kept, all_, strict=True)))
    console.print(table)


if __name__ == "__main__":
    main()
