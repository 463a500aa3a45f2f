"""Where the time of a first poll and of a report goes: `python -m bench.first` measures the endpoint without sockets.

Each round has memory of its own, as after a restart. 64 devices ask at a time, as many as a load generator has connections.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import trio

from bench.inside import Inside, body, fill, inside, request
from dfud.api import Request

TOGETHER = 64


async def ask(one: Inside, count: int, together: int, of: Callable[[int], Request]) -> float:
    """Have each device ask once, `together` of them at a time; return the CPU seconds that it took of all threads."""
    number = iter(range(count))

    async def device() -> None:
        for n in number:
            found = await one.endpoint.post(of(n))
            assert found.code.name in ("COMMAND", "ACCEPTED"), found  # type: ignore[union-attr]

    before = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(together):
            nursery.start_soon(device)
    return time.process_time() - before


async def rounds(count: int, together: int, profiled: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        for name, said in (("first ever", False), ("after a restart", False), ("after a restart", False), ("report", True)):
            async with inside(path) as one:
                if name == "first ever":
                    await fill(one.store, count)
                    await ask(one, 1, 1, lambda n: request(n, body()))
                bodies = [body(attributes={"n": f"{n:08d}"}) if said else body() for n in range(count)]
                requests = [request(n, bodies[n]) for n in range(count)]
                if said:
                    await ask(one, count, together, lambda n: request(n, body()))
                profile = cProfile.Profile(time.thread_time)
                if profiled and profiled in name:
                    profile.enable()
                took = await ask(one, count, together * 4 if said else together, requests.__getitem__)
                profile.disable()
            print(f"{name}: {took / count * 1e6:.1f} us each")
            if profiled and profiled in name:
                pstats.Stats(profile).sort_stats("tottime").print_stats(45)
                return


@click.command()
@click.option("--devices", default=20_000, show_default=True)
@click.option("--together", default=TOGETHER, show_default=True)
@click.option("--profile", default="", help="The round to profile: first, restart or report.")
def command(devices: int, together: int, profile: str) -> None:
    """Print what a first poll, ever and after a restart, and a report that is new cost without HTTP."""
    trio.run(rounds, devices, together, profile)


if __name__ == "__main__":
    command()
