"""Three dfud on a real PostgreSQL and a real S3 service while parts of them fail, and what must hold after each fault."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from dfud.wire.messages import encode_status
from tests.cluster import faults
from tests.cluster.balancer import KINDS, Balancer
from tests.cluster.checker import check
from tests.cluster.day import Day, Fault, a_day
from tests.cluster.fleet import LivingDevice
from tests.cluster.whole import Whole, running
from tests.plugins.postgres.cluster import LATEST_S
from tests.plugins.postgres.server import Server
from tests.plugins.postgres.server import running as server_running
from tests.plugins.postgres.server import standby as standby_of
from tests.plugins.s3.gateway import Gateway

IMPATIENT = "connect_s = 5.0\nwait_s = 3.0\nstatement_s = 3.0"  # still enough for a machine with much else to do
ROUNDS = 8  # of the long tests


@pytest.fixture
def primary() -> Iterator[Server]:
    """A server that a test may kill."""
    with server_running() as server:
        yield server


@pytest.fixture
def standby(primary: Server) -> Iterator[Server]:
    with standby_of(primary) as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "gateway")
    made.start()
    yield made
    made.stop()


async def test_a_day_on_which_everything_fails_once(
    primary: Server, standby: Server, gateway: Gateway, tmp_path: Path
) -> None:
    """The third process' clock is a minute ahead all day."""
    cluster = Whole(tmp_path / "cluster", [primary, standby], gateway, skews_s=(0, 0, 60), database=IMPATIENT)
    async with running(cluster), a_day(cluster, 6) as day:
        await day.round(faults.kill_one, faults.slow(0.02))
        await day.round(faults.cut_off("cut", images=True, everybody=True))
        assert faults.reasons(day), "nobody was told that a package cannot be made"
        await day.round(faults.wrong_bytes(gateway), faults.cut_off("cut"))
        await day.round(faults.cut_off("silence"))
        await what_is_known_goes_on_without_the_database(day)
        await balancers_pass_over_who_has_lost_the_database(day, tmp_path)
        await day.round(faults.fail_over(primary, standby))
        standby.run("DELETE FROM history WHERE device = 'dev3' AND number = 7", cluster.config.database)
        with pytest.raises(AssertionError, match="dev3, 3.0: history has"):
            await check(cluster, day.fleet, day.wanted)


def says(device: LivingDevice, **more: Any) -> bytes:
    """Return what a device says that runs what it should; more: what it adds, which has to be stored."""
    digest = hashlib.sha256(device.image).digest()
    return encode_status(msgspec.structs.replace(device.status, version=device.version, digest=digest, **more))


async def what_is_known_goes_on_without_the_database(day: Day) -> None:
    """A poll that says nothing new is answered from memory; a report is refused, and stored when the device says it again."""
    device = day.fleet.devices[0]
    url = day.cluster.daemons[0].urls["http"]
    async with day.fleet.paused(), httpx.AsyncClient(base_url=url, auth=device.auth, timeout=LATEST_S) as client:
        (await client.post("/v1/dfu", content=says(device))).raise_for_status()
        for wire in day.cluster.wires[0]:
            wire.cut()
        for _ in range(3):
            assert (await client.post("/v1/dfu", content=says(device))).is_success
        report = says(device, attributes={"note": "said without a database"})
        refused = await client.post("/v1/dfu", content=report)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0, refused.text
        for wire in day.cluster.wires[0]:
            wire.mend()
        with trio.fail_after(LATEST_S):
            while not (await client.post("/v1/dfu", content=report)).is_success:
                await trio.sleep(0.1)
        for number in (0, 1, 2):
            actual = (await day.cluster.firmware_of(device.name, number))["actual"]
            assert actual["attributes"] == {"note": "said without a database"}, actual
        await client.post("/v1/dfu", content=says(device))


async def balancers_pass_over_who_has_lost_the_database(day: Day, directory: Path) -> None:
    """Each of the documented configurations: no device sees a 503 while one of three processes has no database."""
    device = day.fleet.devices[0]
    async with day.fleet.paused():
        for kind in KINDS:
            balancer = Balancer(kind, directory / kind)
            await trio.to_thread.run_sync(balancer.start, day.cluster.ports)
            try:
                for wire in day.cluster.wires[1]:
                    wire.cut()
                async with httpx.AsyncClient(base_url=balancer.url, auth=device.auth, timeout=LATEST_S) as client:
                    for number in range(9):
                        report = says(device, attributes={"number": f"{kind} {number}"})
                        answer = await client.post("/v1/dfu", content=report)
                        assert answer.is_success, f"{kind}: {answer.status_code} {answer.text}"
            finally:
                for wire in day.cluster.wires[1]:
                    wire.mend()
                balancer.stop()
        await day.all_are_ready()


LONG: dict[str, Callable[[Server, Gateway], list[Fault]]] = {
    "processes killed": lambda server, gateway: [faults.kill_one],
    "the database killed": lambda server, gateway: [faults.kill_database(server)],
    "the database restarted": lambda server, gateway: [faults.restart_database(server)],
    "all of it killed": lambda server, gateway: [faults.kill_one, faults.kill_database(server)],
    "a slow database": lambda server, gateway: [faults.slow(0.1)],
    "a cut network": lambda server, gateway: [faults.cut_off("cut")],
    "a silent network": lambda server, gateway: [faults.cut_off("silence")],
    "a silent network of all": lambda server, gateway: [faults.cut_off("silence", everybody=True)],
    "no images": lambda server, gateway: [faults.cut_off("cut", images=True, everybody=True)],
    "silent images": lambda server, gateway: [faults.cut_off("silence", images=True, everybody=True)],
    "slow images": lambda server, gateway: [faults.slow(0.5, images=True)],
    "wrong images": lambda server, gateway: [faults.wrong_bytes(gateway)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
async def test_a_day_of_one_fault(name: str, primary: Server, gateway: Gateway, tmp_path: Path) -> None:
    cluster = Whole(tmp_path / "cluster", [primary], gateway, skews_s=(-60, 0, 60), database=IMPATIENT)
    async with running(cluster), a_day(cluster, 12) as day:
        for _ in range(ROUNDS):
            await day.round(*LONG[name](primary, gateway))


@pytest.mark.slow
async def test_a_fail_over_of_many_and_what_comes_behind_it(primary: Server, tmp_path: Path) -> None:
    with standby_of(primary) as second:
        cluster = Whole(tmp_path / "cluster", [primary, second], database=IMPATIENT)
        async with running(cluster), a_day(cluster, 12) as day:
            await day.round(faults.fail_over(primary, second))
            await day.round(faults.kill_one)
