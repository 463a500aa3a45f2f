"""Three dfud with everything around them that may fail: the way to the database, the images' service, the balancer, the clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from dfud.testing.daemon import DaemonProcess
from tests.cluster.balancer import Balancer
from tests.cluster.wire import Wire
from tests.plugins.postgres.cluster import LATEST_S, Cluster
from tests.plugins.postgres.server import Server
from tests.plugins.s3.gateway import KEY, SECRET, Gateway

LIBRARIES = (*Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), Path("/usr/lib64/faketime/libfaketime.so.1"))


class Skewed(DaemonProcess):
    """A dfud whose clock is wrong by so many seconds; how time passes is as everywhere."""

    skew_s = 0

    def command(self, *arguments: str) -> list[str]:
        library = next((path for path in LIBRARIES if path.exists()), None)
        assert library is not None, "libfaketime is not where Debian has it"
        # `env` becomes the program; `faketime` would stay in front of it, and take the signals.
        wrong = [f"LD_PRELOAD={library}", f"FAKETIME={self.skew_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
        return ["/usr/bin/env", *wrong, *super().command(*arguments)]


def _ways(sockets: Sequence[Path]) -> list[Wire]:
    """Return a wire to each server: addresses of the loopback with one port."""
    found: list[Wire] = []
    for number, path in enumerate(sockets, 1):
        found.append(Wire(path, f"127.0.0.{number}", found[0].port if found else 0))
    return found


class Whole(Cluster):
    """Each process has its own wire to the database; with a gateway, one to that, too. skews_s: of the processes' clocks.

    Files go to `directory`. `alive`: numbers of the processes that are meant to run.
    """

    def __init__(
        self,
        directory: Path,
        servers: Sequence[Server],
        gateway: Gateway | None = None,
        *,
        size: int = 3,
        skews_s: Sequence[int] = (),
        database: str = "",
        extra: str = "",
    ) -> None:
        sockets = [server.directory / f".s.PGSQL.{server.port}" for server in servers]
        self.wires = [_ways(sockets) for _ in range(size)]
        self.images = [Wire(gateway.port) for _ in range(size)] if gateway is not None else []
        self.alive = set(range(size))
        self.nursery: trio.Nursery | None = None
        self._skews_s = skews_s
        self._settings = database
        self._runs: dict[int, trio.Event] = {}
        if gateway is not None:
            self.plugins = (*self.plugins, "s3")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "secret").write_text(SECRET)
        super().__init__(directory, size, str(servers[0].directory), extra)

    def process(self, number: int, directory: Path, **given: Any) -> DaemonProcess:
        given["packages"] = ""  # its own, as on a machine of its own: what others have made comes by the images' place
        skew_s = self._skews_s[number] if self._skews_s else 0
        if not skew_s:
            return super().process(number, directory, **given)
        made = Skewed(directory, **given)
        made.skew_s = skew_s
        return made

    def section(self, number: int) -> str:
        blobs = "s3" if self.images else "directory"
        text = f"""
[store.postgres]
host = "{self.host(number)}"
port = {self.wires[number][0].port}
tls = "off"
database = "{self.config.database}"
blobs = "{blobs}"
blobs_path = "{self.directory}/blobs"
{self._settings}
"""
        if self.images:
            text += f"""
[blobs.s3]
endpoint = "http://127.0.0.1:{self.images[number].port}"
bucket = "images"
access_key = "{KEY}"
secret_file = "{self.directory}/secret"
cache_path = "{self.directory}/cache{number}"
timeout_s = 3.0
"""
        return text

    def host(self, number: int) -> str:
        return ",".join(wire.host for wire in self.wires[number])

    async def open_wires(self, nursery: trio.Nursery) -> None:
        for wire in (*self.images, *(wire for ways in self.wires for wire in ways)):
            await nursery.start(wire.run)

    async def start(self, number: int) -> None:
        """Start a process, again too; return when it is ready."""
        assert self.nursery is not None
        ended = self._runs[number] = trio.Event()

        async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                await self.daemons[number].run(task_status=task_status)
            finally:
                ended.set()

        await self.nursery.start(run)
        self.alive.add(number)

    async def kill(self, number: int) -> None:
        """kill -9; return when it is gone."""
        self.alive.discard(number)
        self.daemons[number].kill()
        await self._runs[number].wait()

    @property
    def ports(self) -> list[tuple[int, int]]:
        """Of devices and of users, of each process."""
        return [(daemon.ports["http"], daemon.ports["registry"]) for daemon in self.daemons]

    @property
    def living(self) -> int:
        return min(self.alive)


@asynccontextmanager
async def running(cluster: Whole, *balancers: Balancer) -> AsyncIterator[Whole]:
    """Start the wires, every process, and the balancers in front of them."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        cluster.nursery = nursery
        await cluster.open_wires(nursery)
        token = await cluster.daemons[0].init()
        for daemon in cluster.daemons:
            daemon.token = token
            daemon.secrets.add(token)
        for number in range(len(cluster.daemons)):
            await cluster.start(number)
        for balancer in balancers:
            stack.callback(balancer.stop)
            await trio.to_thread.run_sync(partial(balancer.start, cluster.ports))
        yield cluster
        nursery.cancel_scope.cancel()


__all__ = ["LATEST_S", "Skewed", "Whole", "running"]
