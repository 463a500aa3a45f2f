"""Where the time goes when a change concerns many parked devices: `python -m bench.wake` profiles the endpoint without sockets."""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import click
import trio

from bench.inside import APP, body, fill, inside, request
from dfud.api import App, AppChanged, Metadata, PutApp, Reply, Waiting
from dfud.controller.sending import Order


async def main(count: int, profiled: bool, known: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with inside(Path(directory)) as one:
            await fill(one.store, count)
            said = body()
            woken: list[Reply] = []
            all_woken = trio.Event()

            def heard(reply: Reply) -> None:
                woken.append(reply)
                if len(woken) == count:
                    all_woken.set()

            if known:
                # What is stored of a device first is not kept in memory: it is read by its next status.
                for other in (body(attributes={"n": "1"}), body(attributes={"n": "2"}), said):
                    for number in range(count):
                        await one.endpoint.post(request(number, other))
            for number in range(count):
                found = await one.endpoint.post(request(number, said, 250.0))
                assert isinstance(found, Waiting)
                found.listen(heard)
            target = await one.store.firmware(APP, "1.1")
            assert target is not None
            await one.packages.get(Order(target, None, 2, 16384), (APP, "d0"))
            spec = {"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}}
            await one.store.commit([PutApp(App(Metadata(APP), spec))])
            profile = cProfile.Profile(time.thread_time)
            start, cpu, all_s = time.perf_counter(), time.thread_time(), time.process_time()
            if profiled:
                profile.enable()
            one.bus.publish(AppChanged(APP))
            await all_woken.wait()
            profile.disable()
            took, cpu, all_s = time.perf_counter() - start, time.thread_time() - cpu, time.process_time() - all_s
    each, here = all_s / count * 1e6, cpu / count * 1e6
    print(f"{count} woken, decided and stored in {took:.2f} s; CPU each: {each:.0f} us, of this thread {here:.0f}")
    if profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats("dfud|trio|sqlite|msgspec|hashlib", 40)


@click.command()
@click.option("--devices", default=9000, show_default=True)
@click.option("--profile/--no-profile", default=True, show_default=True)
@click.option(
    "--known/--read",
    default=False,
    show_default=True,
    help="Whether the devices are in memory, or read from the store.",
)
def command(devices: int, profile: bool, known: bool) -> None:
    """Profile the waking of parked devices."""
    trio.run(main, devices, profile, known)


if __name__ == "__main__":
    command()
