"""Three dfud on a real PostgreSQL and a real S3 service while parts of them fail, and what must hold after each fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import faults
from tests.cluster.checker import check
from tests.cluster.day import Fault, a_day
from tests.cluster.whole import Whole, running
from tests.plugins.postgres.server import Server
from tests.plugins.postgres.server import running as server_running
from tests.plugins.postgres.server import standby as standby_of
from tests.plugins.s3.gateway import Gateway

IMPATIENT = "connect_s = 1.0\nwait_s = 1.0\nstatement_s = 1.0"
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
        await day.round(faults.wrong_bytes(gateway), faults.cut_off("cut"))
        await day.round(faults.cut_off("silence"))
        await day.round(faults.fail_over(primary, standby))
        standby.run("DELETE FROM history WHERE device = 'dev3' AND number = 7", cluster.config.database)
        with pytest.raises(AssertionError, match="dev3, 3.0: history has"):
            await check(cluster, day.fleet, day.wanted)


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
async def test_fail_over_again_and_again(primary: Server, tmp_path: Path) -> None:
    """Each time the old primary is lost, a new standby is made of the new one."""
    with standby_of(primary) as second:
        cluster = Whole(tmp_path / "cluster", [primary, second], database=IMPATIENT)
        async with running(cluster), a_day(cluster, 12) as day:
            await day.round(faults.fail_over(primary, second))
            await day.round(faults.kill_one)
