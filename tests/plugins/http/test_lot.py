"""Connections whose device waits: no task each, and whatever happens next to one, it is what happens to any connection."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from dfud_http.config import HttpConfig
from dfud_http.lot import Left, Lot, Place
from dfud_http.quick import Quick

from dfud.api import Code, Reply
from dfud.testing.fake_endpoint import FakeEndpoint, FakeWaiting
from tests.plugins.http.test_listener import Served, post, read_all, read_answer, serve, wait_for

DEVICES = 60
BIG = bytes(16 << 20)  # more than a socket takes at one time


@pytest.fixture
async def served(nursery: trio.Nursery) -> AsyncIterator[Served]:
    yield await serve(nursery)
    nursery.cancel_scope.cancel()


async def parked(served: Served, count: int) -> list[trio.SocketStream]:
    streams = []
    for number in range(count):
        stream = await served.connect()
        await stream.send_all(post("/v1/dfu?ct=60", b"%d" % number))
        streams.append(stream)
    await wait_for(lambda: len(served.endpoint.parked) == count and not served.transport._connections)
    return streams


async def test_a_device_that_waits_has_no_task(served: Served) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    streams = await parked(served, DEVICES)
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert not served.transport._connections and served.transport._open == DEVICES
    assert served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"new")) == DEVICES
    assert trio.lowlevel.current_statistics().tasks_living == before, "nor to be told"
    for stream in streams:
        assert (await read_answer(stream))[1] == b"new"
        await stream.aclose()
    await wait_for(lambda: served.transport._open == 0)
    assert not served.transport._addresses


async def test_it_goes_on_with_its_next_request_and_waits_again(served: Served) -> None:
    (stream,) = await parked(served, 1)
    for body in (b"one", b"two"):
        served.endpoint.wake(Reply(Code.COMMAND, "dfu", body))
        assert (await read_answer(stream))[1] == body
        await stream.send_all(post("/v1/dfu?ct=0"))
        assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 2")
        await stream.send_all(post("/v1/dfu?ct=60"))
        await wait_for(lambda: len(served.endpoint.parked) == 1)


async def test_what_it_says_meanwhile_is_answered_behind_what_it_waits_for(served: Served) -> None:
    (stream,) = await parked(served, 1)
    head, tail = post("/v1/dfu?ct=0", b"second")[:20], post("/v1/dfu?ct=0", b"second")[20:]
    await stream.send_all(head)
    await wait_for(lambda: len(served.transport._connections) == 1)
    served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"one"))
    assert (await read_answer(stream))[1] == b"one"
    await stream.send_all(tail)
    assert (await read_answer(stream))[1] == b"second"


async def test_a_peer_that_takes_its_answer_slowly_gets_all_of_it(served: Served) -> None:
    (stream,) = await parked(served, 1)
    served.endpoint.wake(Reply(Code.COMMAND, "dfu", BIG))
    assert (await read_answer(stream))[1] == BIG
    await stream.send_all(post("/v1/dfu?ct=0", close=True))
    assert (await read_all(stream)).startswith(b"HTTP/1.1 2")


async def test_one_that_was_answered_and_is_silent_is_closed(nursery: trio.Nursery) -> None:
    served = await serve(nursery, idle_s=0.3)
    (stream,) = await parked(served, 1)
    served.endpoint.wake(Reply(Code.ACCEPTED))
    assert (await read_all(stream)).startswith(b"HTTP/1.1 202")
    await wait_for(lambda: served.transport._open == 0)


async def test_an_answer_that_comes_while_it_becomes_a_task_is_not_lost() -> None:
    resumed: list[Place] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    lot = Lot(Quick(FakeEndpoint(), HttpConfig()), 60.0, resumed.append, lambda place: None)
    waiting = FakeWaiting(FakeEndpoint(), 60.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lot.run)
        lot.park(Place(lot, ours, "127.0.0.1", "127.0.0.1"), Left(waiting, keep_alive=True))
        theirs.send(b"P")
        while not resumed:
            await trio.lowlevel.checkpoint()
        waiting.answer(Reply(Code.COMMAND, "dfu", b"new"))
        assert len(lot) == 0 and resumed[0].reply == Reply(Code.COMMAND, "dfu", b"new")
        nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_who_comes_when_the_lot_is_closed_is_let_go() -> None:
    closed: list[Place] = []
    lot = Lot(Quick(FakeEndpoint(), HttpConfig()), 60.0, lambda place: None, closed.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lot.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    ours, theirs = socket.socketpair()
    waiting = FakeWaiting(FakeEndpoint(), 60.0)
    lot.park(Place(lot, ours, "127.0.0.1", "127.0.0.1"), Left(waiting, keep_alive=True))
    assert waiting.ended == "cancelled" and len(closed) == 1 and theirs.recv(1) == b""
    theirs.close()


class Failing:
    """The lot's epoll, of which one call fails once."""

    def __init__(self, epoll: Any, name: str) -> None:
        self._epoll = epoll
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            self._name = ""
            return self._fail
        return getattr(self._epoll, name)

    @staticmethod
    def _fail(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # more sockets than the kernel watches for one user


async def test_a_connection_that_cannot_be_watched_is_closed_and_costs_nobody_else(served: Served) -> None:
    (other,) = await parked(served, 1)
    lot = served.transport._lot
    assert lot is not None
    lot._epoll = Failing(lot._epoll, "register")  # type: ignore[assignment]
    async with await served.connect() as new:
        assert await read_all(new) == b""
    async with await served.connect() as stream:
        await stream.send_all(post("/v1/dfu?ct=0")[:20])
        await wait_for(lambda: len(served.transport._connections) == 1)
        lot._epoll = Failing(lot._epoll, "register")  # type: ignore[assignment]
        await stream.send_all(post("/v1/dfu?ct=0")[20:])
        await read_all(stream)
    await wait_for(lambda: served.transport._open == 1)
    assert served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"new")) == 1
    assert (await read_answer(other))[1] == b"new"


@pytest.mark.parametrize("where", ["_remind", "_resume"])
async def test_what_fails_on_the_way_ends_that_connection_and_leaves_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (other,) = await parked(served, 1)
    lot = served.transport._lot
    assert lot is not None

    async with await served.connect() as stream:
        await stream.send_all(post("/v1/dfu?ct=0"))
        await read_answer(stream)
        with monkeypatch.context() as patch:

            def fail(place: Place) -> None:
                patch.undo()
                raise RuntimeError("nobody foresaw this")

            patch.setattr(lot, where, fail)
            await stream.send_all(post("/v1/dfu?ct=60") if where == "_remind" else post("/v1/dfu")[:9])
            with trio.fail_after(60):
                if where == "_remind":
                    assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 500")
                else:
                    assert await read_all(stream) == b""
    await wait_for(lambda: served.transport._open == 1)
    assert len(served.endpoint.parked) == 1, "nobody waits for what nobody hears"
    assert served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"new")) == 1
    assert (await read_answer(other))[1] == b"new"
