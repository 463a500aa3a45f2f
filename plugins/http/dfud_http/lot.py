"""Connections whose device waits: a socket in an epoll of the lot and a few fields; no task, no parser, no stream.

What a parked connection does next is one of four: it is answered (by the endpoint, or when its time has passed), and then stays for
its next request; it says something, and goes on as a task; it closes; it is silent for too long, and is closed.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
from collections.abc import Callable

import trio

from dfud.api import Reply, Waiting, contained
from dfud_http.answer import encode_reply

TICK_S = 0.25  # how late the end of a time may be noticed
READ_AT_ONCE = 256  # connections that go on as tasks between two looks at the rest of the world
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP


class Left:
    """What a connection leaves behind that is to be parked: what it waits for, and whether it stays after the answer.

    sock: set by the connection's owner.
    """

    __slots__ = ("keep_alive", "sock", "waiting")

    def __init__(self, waiting: Waiting, *, keep_alive: bool) -> None:
        self.sock: socket.socket | None = None
        self.waiting = waiting
        self.keep_alive = keep_alive


class Place:
    """One connection in the lot. waiting: None once it is answered. until_s: when its time has passed, on trio's clock.

    reply: an answer that came while it was on its way to being a task; rest: of an answer, what the socket did not take yet.
    """

    __slots__ = ("_lot", "address", "keep_alive", "peer", "reply", "rest", "sock", "until_s", "waiting", "woken")

    def __init__(self, lot: Lot, sock: socket.socket, peer: str, address: str, left: Left) -> None:
        self._lot = lot
        self.sock = sock
        self.peer = peer
        self.address = address
        self.waiting: Waiting | None = left.waiting
        self.keep_alive = left.keep_alive
        self.until_s = trio.current_time() + min(left.waiting.timeout_s, 1e9)
        self.reply: Reply | None = None
        self.rest = b""
        self.woken: Callable[[Reply], None] | None = None

    def wake(self, reply: Reply) -> None:
        """Take the reply; the one call that was promised to `waiting`, wherever the connection is by then."""
        if self.woken is not None:
            self.woken(reply)
        elif self._lot.holds(self):
            self._lot.answer(self, reply)
        else:
            self.reply = reply


class Lot:
    """resume: has a connection that says something, or could not take its whole answer, go on as a task; closed: told of each that is
    closed here. idle_s: how long a connection may be silent after its answer.
    """

    def __init__(self, idle_s: float, resume: Callable[[Place], None], closed: Callable[[Place], None]) -> None:
        self._idle_s = idle_s
        self._resume = resume
        self._closed = closed
        self._epoll = select.epoll()
        self._places: dict[int, Place] = {}
        self._due: dict[int, list[Place]] = {}
        self._waiting = 0
        self._emptied = trio.Event()
        self._draining = False

    def __len__(self) -> int:
        return len(self._places)

    def holds(self, place: Place) -> bool:
        return self._places.get(place.sock.fileno()) is place

    def park(self, sock: socket.socket, peer: str, address: str, left: Left) -> None:
        """Take a connection; from now on it is the lot's, and its answer is sent."""
        place = Place(self, sock, peer, address, left)
        if self._epoll.closed:
            sock.close()
            left.waiting.cancel()
            self._closed(place)
            return
        self._places[sock.fileno()] = place
        self._waiting += 1
        self._epoll.register(sock.fileno(), _EVENTS)
        self._remind(place)
        left.waiting.listen(place.wake)

    def answer(self, place: Place, reply: Reply) -> None:
        keep_alive = place.keep_alive and not self._draining
        self._waits_no_more(place)
        data = encode_reply(reply, keep_alive)
        try:
            sent = place.sock.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError:
            self._close(place)
            return
        if sent < len(data):
            place.keep_alive = keep_alive
            place.rest = data[sent:]
            self._let_go(place)
            self._resume(place)
        elif keep_alive:
            place.until_s = trio.current_time() + self._idle_s
            self._remind(place)
        else:
            self._close(place)

    async def run(self) -> None:
        """Watch the sockets and the clock, until cancelled; then close all of them."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._tick)
        finally:
            for place in tuple(self._places.values()):
                self._cancel(place)
            self._epoll.close()

    async def drain(self) -> None:
        """Close what is idle; return when everybody who waits is answered."""
        self._draining = True
        for place in tuple(self._places.values()):
            if place.waiting is None:
                self._close(place)
        while self._waiting:
            self._emptied = trio.Event()
            await self._emptied.wait()

    async def _watch(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0, READ_AT_ONCE):
                place = self._places.get(number)
                if place is not None:
                    with contained("http.lot", peer=place.peer):
                        self._readable(place)

    def _readable(self, place: Place) -> None:
        try:
            # Only OpenSSL can say what has come over TLS; a task asks it.
            gone = not isinstance(place.sock, ssl.SSLSocket) and not place.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            gone = True
        if gone:
            self._cancel(place)
            return
        self._let_go(place)
        waiting = self._waits_no_more(place)
        place.waiting = waiting
        self._resume(place)

    async def _tick(self) -> None:
        second = math.floor(trio.current_time() / TICK_S)
        while True:
            await trio.sleep_until((second + 1) * TICK_S)
            for place in self._due.pop(second, ()):
                if not self.holds(place):
                    continue
                if place.until_s > trio.current_time():
                    self._remind(place)
                    continue
                with contained("http.lot", peer=place.peer):
                    if place.waiting is not None:
                        self.answer(place, place.waiting.expire())
                    else:
                        self._close(place)
            second += 1

    def _remind(self, place: Place) -> None:
        if place.until_s < math.inf:
            now = math.floor(trio.current_time() / TICK_S)
            # A time that was lengthened finds its place when the earlier one comes.
            self._due.setdefault(max(now, math.floor(place.until_s / TICK_S)), []).append(place)

    def _let_go(self, place: Place) -> None:
        self._epoll.unregister(place.sock.fileno())
        del self._places[place.sock.fileno()]

    def _cancel(self, place: Place) -> None:
        """The peer is gone."""
        waiting = self._waits_no_more(place)
        if waiting is not None:
            waiting.cancel()
        self._close(place)

    def _waits_no_more(self, place: Place) -> Waiting | None:
        waiting, place.waiting = place.waiting, None
        if waiting is not None:
            self._waiting -= 1
            if not self._waiting:
                self._emptied.set()
        return waiting

    def _close(self, place: Place) -> None:
        self._let_go(place)
        with contextlib.suppress(OSError):
            place.sock.close()
        self._closed(place)
