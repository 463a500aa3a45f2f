"""What can fail around a cluster; each begins when a round is under way, and ends by itself."""

from __future__ import annotations

import hashlib
import signal

import trio

from tests.cluster.day import Day, Fault, image_of
from tests.cluster.wire import Wire
from tests.plugins.postgres.server import Server
from tests.plugins.s3.gateway import Gateway

LATE_S = 3.0  # a device that waits for so long has felt it
FELT_S = 20.0  # a fault that nobody has felt by then has been long enough


async def kill_one(day: Day) -> None:
    """kill -9 of one of the processes, which is started again."""
    await day.some_have_it()
    number = day.random.choice(sorted(day.cluster.alive))
    await day.cluster.kill(number)
    await trio.sleep(day.random.random() * 0.5)
    await day.cluster.start(number)


def kill_database(server: Server) -> Fault:
    async def fault(day: Day) -> None:
        await day.some_have_it()
        await trio.to_thread.run_sync(server.stop, signal.SIGKILL)
        await trio.sleep(day.random.random() * 0.5)
        await trio.to_thread.run_sync(server.start)

    return fault


def restart_database(server: Server) -> Fault:
    async def fault(day: Day) -> None:
        await day.some_have_it()
        await trio.to_thread.run_sync(server.stop)
        await trio.to_thread.run_sync(server.start)

    return fault


def _of_one(day: Day, images: bool) -> list[Wire]:
    """Of a process that a device still needs, if there is one."""
    needed = {device.at for device in day.fleet.devices if not device.has_said(day.version)}
    number = day.random.choice(sorted(day.cluster.alive & needed or day.cluster.alive))
    return [day.cluster.images[number]] if images else day.cluster.wires[number]


def slow(delay_s: float, *, images: bool = False) -> Fault:
    """All that goes to the database (or the images' service) and back takes longer, for every process, until everybody is done."""

    async def fault(day: Day) -> None:
        ways = day.cluster.images if images else [wire for ways in day.cluster.wires for wire in ways]
        for wire in ways:
            wire.delay_s = delay_s
        try:
            await day.fleet.reach(day.version)
        finally:
            for wire in ways:
                wire.delay_s = 0.0

    return fault


def cut_off(how: str, *, images: bool = False, everybody: bool = False) -> Fault:
    """One process (or every one) loses the database (or the images' service): how is cut or silence. Mended once it was felt."""

    async def fault(day: Day) -> None:
        if images:
            everyone = day.cluster.images
        else:
            everyone = [wire for ways in day.cluster.wires for wire in ways]
            await day.some_have_it()
        ways = everyone if everybody else _of_one(day, images)
        if images:
            nobody_has_it(day)
        for wire in ways:
            getattr(wire, how)()
        await until_felt(day, images)
        for wire in ways:
            wire.mend()

    return fault


def nobody_has_it(day: Day) -> None:
    """Empty the processes' own places of images, as on a machine that has started anew."""
    for number in range(len(day.cluster.daemons)):
        for path in (day.cluster.directory / f"cache{number}").glob("*"):
            path.unlink(missing_ok=True)


def wrong_bytes(gateway: Gateway) -> Fault:
    """The images' service has other bytes under the name of what is to be fetched, until that was felt."""

    async def fault(day: Day) -> None:
        image = image_of(day.version)
        path = gateway.object(hashlib.sha256(image).hexdigest())
        path.write_bytes(bytes(len(image)))
        nobody_has_it(day)
        await until_felt(day, images=True)
        path.write_bytes(image)

    return fault


def fail_over(primary: Server, standby: Server) -> Fault:
    """The primary is lost for good, and its standby promoted."""

    async def fault(day: Day) -> None:
        await day.some_have_it()
        await trio.to_thread.run_sync(primary.stop, signal.SIGKILL)
        await trio.sleep(day.random.random() * 0.5)
        await trio.to_thread.run_sync(standby.promote)

    return fault


def felt(day: Day, begun: int, images: bool) -> bool:
    """Whether a device was refused since, or waits; of images: was told to wait, and why."""
    if images:
        return reasons(day) > begun
    return day.fleet.codes[503] > begun or any(device.late_s > LATE_S for device in day.fleet.devices)


def reasons(day: Day) -> int:
    """How often devices were told that their package cannot be made."""
    return sum(told is not None and "cannot be made" in told.reason for device in day.fleet.devices for told in device.answers.told)


async def until_felt(day: Day, images: bool) -> None:
    begun = reasons(day) if images else day.fleet.codes[503]
    with trio.move_on_after(FELT_S):
        while not felt(day, begun, images) and day.fleet.count(day.version) < len(day.fleet.devices):
            await trio.sleep(0.05)
