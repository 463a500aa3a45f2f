"""What a durable report costs without sockets: `python -m bench.reports`; as many under way at a time as a load has connections."""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import click
import trio

from bench.inside import body, fill, inside, request
from dfud.api import Reply, Request, Waiting

MARK = b"########"


async def _send(endpoint: object, requests: list[Request], under_way: int) -> None:
    """Post all of them, the next one when an earlier one is answered."""
    done = trio.Event()
    rest = iter(requests)
    left = len(requests)

    def heard(reply: Reply) -> None:
        nonlocal left
        if reply.error:
            raise SystemExit(f"a report was refused: {reply.error}")
        left -= 1
        if not left:
            done.set()
        post()

    def post() -> None:
        one = next(rest, None)
        if one is None:
            return
        found = endpoint.quick(one) or endpoint.soon(one)  # type: ignore[attr-defined]
        if isinstance(found, Waiting):
            found.listen(heard)
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(heard, found)

    for _ in range(under_way):
        post()
    await done.wait()


async def main(devices: int, reports: int, under_way: int, profiled: bool) -> None:
    said = body(attributes={"n": MARK.decode()})
    with tempfile.TemporaryDirectory() as directory:
        async with inside(Path(directory)) as one:
            await fill(one.store, devices)
            await _send(one.endpoint, [request(n, body()) for n in range(devices)], under_way)
            requests = [request(n % devices, said.replace(MARK, b"%08d" % n)) for n in range(reports)]
            profile = cProfile.Profile(time.thread_time)
            start, cpu, all_s = time.perf_counter(), time.thread_time(), time.process_time()
            if profiled:
                profile.enable()
            await _send(one.endpoint, requests, under_way)
            profile.disable()
            took, cpu, all_s = time.perf_counter() - start, time.thread_time() - cpu, time.process_time() - all_s
    each, here = all_s / reports * 1e6, cpu / reports * 1e6
    print(f"{reports} reports in {took:.2f} s; CPU each: {each:.1f} us, of this thread {here:.1f}")
    if profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)


@click.command()
@click.option("--devices", default=10_000, show_default=True)
@click.option("--reports", default=20_000, show_default=True)
@click.option("--under-way", default=256, show_default=True)
@click.option("--profile/--no-profile", default=False, show_default=True)
def command(devices: int, reports: int, under_way: int, profile: bool) -> None:
    """Print what a report costs; with --profile, where."""
    trio.run(main, devices, reports, under_way, profile)


if __name__ == "__main__":
    command()
