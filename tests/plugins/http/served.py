"""The listener in a process of its own, so that a test can measure what peers make it hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import trio
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from dfud.testing.transport import FakeEndpoint


class Process:
    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self._process = psutil.Process(pid)

    @property
    def rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)


@asynccontextmanager
async def listening(**options: object) -> AsyncIterator[Process]:
    """Yield a listener with these options of [transport.http]; stopped at the end."""
    command = [sys.executable, "-m", __name__, json.dumps(options)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with process.stdout:
            line = b""
            while not line.endswith(b"\n"):
                data = await process.stdout.receive_some(100)
                assert data, "the listener did not start"
                line += data
            yield Process(int(line), process.pid)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def _main() -> None:
    transport = HttpTransport(HttpConfig(port=0, **json.loads(sys.argv[1])))
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(transport.run, FakeEndpoint(kept_max=10))
        os.write(1, url.rpartition(":")[2].encode() + b"\n")


if __name__ == "__main__":
    trio.run(_main)
