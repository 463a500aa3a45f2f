"""The misbehaving UDP link does what it says, and the same again with the same seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio

from dfud.testing.link import FaultyUdpLink, UdpFaults

LIMIT_S = 120.0


class Sink:
    """Keeps what reaches the far end, and from where; answers `answers` times each."""

    def __init__(self, answers: int = 0) -> None:
        self.got: list[bytes] = []
        self.addresses: set[tuple[str, int]] = set()
        self.answers = answers

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        with sock:
            await sock.bind(("127.0.0.1", 0))
            task_status.started(sock.getsockname()[1])
            while True:
                data, address = await sock.recvfrom(2048)
                self.got.append(data)
                self.addresses.add(address)
                for _ in range(self.answers):
                    await sock.sendto(b"re " + data, address)


async def until(true: Callable[[], object]) -> None:
    with trio.fail_after(LIMIT_S):
        while not true():
            await trio.sleep(0.0005)


def _has_taken(link: FaultyUdpLink, number: int) -> bool:
    return link.passed > number


async def push(
    nursery: trio.Nursery, faults: UdpFaults, seed: int, count: int = 120
) -> tuple[list[bytes], FaultyUdpLink]:
    """Send `count` datagrams one by one, each only when the link has taken the one before; return what came out."""
    sink = Sink()
    link = FaultyUdpLink(await nursery.start(sink.run), faults, seed=seed)
    port = await nursery.start(link.run)
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    with sock:
        await sock.connect(("127.0.0.1", port))
        for number in range(count):
            await sock.send(b"%d" % number)
            await until(partial(_has_taken, link, number))
        await until(lambda: len(sink.got) == count - link.lost + link.duplicated)
    return sink.got, link


async def test_without_faults_everything_passes_in_order_both_ways(nursery: trio.Nursery) -> None:
    got, link = await push(nursery, UdpFaults(), 1)
    assert got == [b"%d" % n for n in range(120)]
    assert (link.lost, link.duplicated, link.reordered, link.repeated) == (0, 0, 0, 0)
    sink = Sink(answers=2)
    link = FaultyUdpLink(await nursery.start(sink.run), UdpFaults())
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", await nursery.start(link.run)))
        await sock.send(b"x")
        with trio.fail_after(LIMIT_S):
            assert [await sock.recv(100) for _ in range(2)] == [b"re x", b"re x"]
    assert link.repeated == 1


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_same_seed_means_the_same_fate(nursery: trio.Nursery, seed: int) -> None:
    faults = UdpFaults(loss=0.3, duplicate=0.1)
    got, link = await push(nursery, faults, seed)
    again, _ = await push(nursery, faults, seed)
    other, _ = await push(nursery, faults, seed + 10)
    assert got == again != other
    assert 18 <= link.lost <= 60 and 1 <= link.duplicated <= 25


async def test_reordering_changes_the_order_and_loses_nothing(nursery: trio.Nursery) -> None:
    got, link = await push(nursery, UdpFaults(reorder=0.2), 3)
    numbers = [int(d) for d in got]
    assert sorted(numbers) == list(range(120)) and numbers != sorted(numbers)
    assert link.reordered > 5


async def test_a_link_that_is_down_loses_everything_and_a_rebound_one_changes_the_address(
    nursery: trio.Nursery,
) -> None:
    sink = Sink()
    link = FaultyUdpLink(await nursery.start(sink.run), UdpFaults())
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", await nursery.start(link.run)))
        link.down = True
        await sock.send(b"a")
        await until(lambda: link.lost == 1)
        link.down = False
        await sock.send(b"b")
        await until(lambda: sink.got == [b"b"])
        link.rebind()
        await sock.send(b"c")
        await until(lambda: sink.got == [b"b", b"c"])
    assert len(sink.addresses) == 2
