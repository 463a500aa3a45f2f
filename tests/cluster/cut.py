"""A leader whose network is cut, as the kernel does it: run in a network name space of its own, which holds a loopback alone.

    unshare --net python -m tests.cluster.cut

Two stores have one database: one over TCP, which leads, and one over the Unix socket, which waits. Then the loopback is switched off:
no byte and no end of a connection goes through any more. Prints how many seconds later the first stopped leading, and the other led.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import trio
from dfud_postgres.store import PostgresStore

from dfud.api import Bus
from tests.plugins.postgres.server import Server, config_for, running

LATEST_S = 60.0


async def cut(server: Server, directory: Path) -> tuple[float, float]:
    beside = config_for(directory, str(server.directory))
    far = msgspec.structs.replace(beside, host="127.0.0.1", tls="off")
    stopped_s = led_s = cut_s = 0.0
    leads = trio.Event()
    async with trio.open_nursery() as nursery:
        one, other = PostgresStore(far), PostgresStore(beside)
        for store in (one, other):
            await nursery.start(store.run, Bus())

        async def first() -> None:
            nonlocal stopped_s
            async with one.lead("w"):
                leads.set()
                try:
                    await trio.sleep_forever()
                finally:
                    stopped_s = time.monotonic()

        async def second() -> None:
            nonlocal led_s
            async with other.lead("w"):
                led_s = time.monotonic()
                nursery.cancel_scope.cancel()

        nursery.start_soon(first)
        await leads.wait()
        nursery.start_soon(second)
        await trio.sleep(1.0)
        cut_s = time.monotonic()
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
        nursery.cancel_scope.deadline = trio.current_time() + LATEST_S
        await trio.sleep_forever()
    return stopped_s - cut_s, led_s - cut_s


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with running("listen_addresses = '127.0.0.1'") as server, tempfile.TemporaryDirectory() as directory:
        stopped_s, led_s = trio.run(cut, server, Path(directory))
    print(f"stopped {stopped_s:.2f} led {led_s:.2f}")


if __name__ == "__main__":
    main()
