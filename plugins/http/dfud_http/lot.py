"""Connections without a task: a socket in an epoll of the lot and a few fields; no parser, no stream.

A connection comes here when it is accepted and stays here as long as what it sends can be answered from memory, or waits for what
the endpoint says. It becomes a task when it sends something else, or half a request, or does not take its answer; and it is closed
when it closes, or is silent for too long.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Callable

import trio

from dfud.api import Reply, Waiting, contained, note
from dfud_http.answer import FAILED, encode_plain, encode_reply
from dfud_http.forwarded import Proxies
from dfud_http.parse import RequestReader
from dfud_http.quick import Quick
from dfud_http.stream import close

TICK_S = 0.25  # how late the end of a time may be noticed
READ_AT_ONCE = 64
TURN_S = 0.25  # after that, the rest of the world has its turn
RECEIVE_BYTES = 16384
NEVER = 1 << 62
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Left:
    """What a connection leaves behind that needs no task: what it waits for (None: its next request), and whether it stays then."""

    __slots__ = ("keep_alive", "waiting")

    def __init__(self, waiting: Waiting | None, *, keep_alive: bool) -> None:
        self.waiting = waiting
        self.keep_alive = keep_alive


class Place:
    """One connection. waiting: what it waits for; None: its next request. until_s: when its time has passed, on trio's clock.

    proxies: those that are trusted, if the peer is one of them; else None. secured: whether a TLS handshake is done, or none is due.
    deaf_until_s: what it says before is not heard, since it was told to come back later; paused: it has said something. reply: an
    answer that came while it was on its way to being a task; reader: what it has sent that needs a task; rest: of an answer, what the
    socket did not take yet.
    """

    __slots__ = (
        "_lot",
        "address",
        "certificate",
        "deaf_until_s",
        "due",
        "encrypted",
        "keep_alive",
        "paused",
        "peer",
        "proxies",
        "reader",
        "reply",
        "rest",
        "secured",
        "sock",
        "until_s",
        "waiting",
        "woken",
    )

    def __init__(self, lot: Lot, sock: socket.socket, peer: str, address: str, *, secured: bool = True) -> None:
        self._lot = lot
        self.sock = sock
        self.peer = peer
        self.address = address
        self.proxies: Proxies | None = None
        self.secured = secured
        self.encrypted = False
        self.certificate = b""
        self.waiting: Waiting | None = None
        self.keep_alive = True
        self.paused = False
        self.deaf_until_s = 0.0
        self.until_s = math.inf
        self.due = NEVER
        self.reply: Reply | None = None
        self.reader: RequestReader | None = None
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
    """quick: answers what came, or returns a reader with it. resume: has a connection go on as a task; closed: told of each that is
    closed here. idle_s: how long a connection may be silent between requests, or before the first one.
    """

    def __init__(
        self, quick: Quick, idle_s: float, resume: Callable[[Place], None], closed: Callable[[Place], None]
    ) -> None:
        self._quick = quick
        self._idle_s = idle_s
        self._resume = resume
        self._closed = closed
        self._epoll = select.epoll()
        self._places: dict[int, Place] = {}
        self._due: dict[int, list[Place]] = {}
        self._waiting = 0
        self._emptied = trio.Event()
        self._draining = False
        self._time_s = (
            trio.lowlevel.current_clock().current_time
        )  # as trio.current_time(), for what is asked with every answer
        self._now_s = self._time_s()

    def __len__(self) -> int:
        return len(self._places)

    def holds(self, place: Place) -> bool:
        return self._places.get(place.sock.fileno()) is place

    def enter(self, place: Place, within_s: float) -> None:
        """Take a new connection, which has to say something within that time."""
        self._put(place)
        place.until_s = trio.current_time() + within_s
        self._remind(place)

    def park(self, place: Place, left: Left) -> None:
        """Take a connection that was a task; from now on it is the lot's, and its answer is sent."""
        place.woken = place.reply = None
        place.keep_alive = left.keep_alive
        if self._epoll.closed or (self._draining and left.waiting is None):
            self._drop(place, left.waiting)
            return
        try:
            self._put(place)
            self._now_s = trio.current_time()
            if left.waiting is not None:
                self._wait(place, left.waiting)
            else:
                place.waiting = None
                place.until_s = self._now_s + self._idle_s
                self._remind(place)
        except Exception as error:  # the kernel watches no more sockets, say
            note("http.lot", error, peer=place.peer)
            if self.holds(place):
                self._failed(place)
            else:
                self._drop(place, left.waiting)

    def _drop(self, place: Place, waiting: Waiting | None = None) -> None:
        """Close one that is not held."""
        if waiting is not None:
            waiting.cancel()
        close(place.sock)
        self._closed(place)

    def _put(self, place: Place) -> None:
        number = place.sock.fileno()
        self._epoll.register(number, _EVENTS)
        self._places[number] = place

    def _wait(self, place: Place, waiting: Waiting) -> None:
        place.waiting = waiting
        self._waiting += 1
        place.until_s = self._now_s + min(waiting.timeout_s, 1e9)
        self._remind(place)
        waiting.listen(place.wake)

    def answer(self, place: Place, reply: Reply) -> None:
        keep_alive = place.keep_alive and not self._draining
        self._waits_no_more(place)
        self._now_s = self._time_s()
        self._send(place, encode_reply(reply, keep_alive), keep_alive)

    def _send(self, place: Place, data: bytes, keep_alive: bool) -> None:
        """Send an answer, in one write as a rule."""
        try:
            sent = place.sock.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except (OSError, ValueError):
            self._close(place)
            return
        if sent < len(data):
            place.keep_alive = keep_alive
            place.rest = data[sent:]
            self._goes_on(place)
        elif keep_alive:
            place.until_s = self._now_s + self._idle_s
            self._remind(place)
        else:
            self._close(place, tell=True)

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
            self._now_s = trio.current_time()
            while events := self._epoll.poll(0, READ_AT_ONCE):
                for number, event in events:
                    place = self._places.get(number)
                    if place is not None:
                        try:
                            if place.deaf_until_s:
                                self._says_too_early(place, event)
                            else:
                                self._readable(place)
                        except Exception as error:
                            # Not contained(): this is what a poll costs.
                            note("http.lot", error, peer=place.peer)
                            self._failed(place)
                if len(events) < READ_AT_ONCE or trio.current_time() >= self._now_s + TURN_S:
                    break

    def _readable(self, place: Place) -> None:
        if not place.secured:
            self._goes_on(place)
            return
        if place.waiting is not None:
            self._says_more(place)
            return
        sock = place.sock
        try:
            data = sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError):
            data = b""
        if not data:
            self._close(place)
            return
        if place.proxies is None:
            found = self._quick.answer(data, place.peer, place.certificate, encrypted=place.encrypted)
        else:
            found = self._quick.answer_proxied(
                data, place.peer, place.certificate, place.proxies, encrypted=place.encrypted
            )
        if isinstance(found, RequestReader):
            place.reader = found
            self._goes_on(place)
            return
        answer, keep_alive, pause_s = found
        if type(answer) is bytes:
            self._send(place, answer, keep_alive)
            # What a proxy sends next is somebody else's.
            if pause_s and place.proxies is None:
                place.deaf_until_s = self._now_s + pause_s
        else:
            place.keep_alive = keep_alive
            self._wait(place, answer)  # type: ignore[arg-type]  # what is no bytes waits
        # What OpenSSL holds already would wake nobody.
        if place.encrypted and self.holds(place) and sock.pending():  # type: ignore[attr-defined]  # encrypted: an SSLSocket
            place.waiting = self._waits_no_more(place)
            self._goes_on(place)

    def _says_too_early(self, place: Place, event: int) -> None:
        """Something came from one that was told to come back later. It is not heard before: one that asks again at once would cost
        what serving it costs. Most come back when they were told to, so nothing is done before this."""
        if event & _GONE:
            self._close(place)
        elif place.deaf_until_s <= self._now_s:
            place.deaf_until_s = 0.0
            self._readable(place)
        else:
            self._epoll.modify(place.sock.fileno(), 0)
            place.paused = True
            place.until_s = place.deaf_until_s
            self._remind(place)

    def _hear(self, place: Place) -> None:
        place.paused = False
        place.deaf_until_s = 0.0
        place.until_s = trio.current_time() + self._idle_s
        self._remind(place)
        self._epoll.modify(place.sock.fileno(), _EVENTS)

    def _says_more(self, place: Place) -> None:
        """Something came from one that waits."""
        try:
            # Only OpenSSL can say what has come over TLS; a task asks it.
            gone = not place.encrypted and not place.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            gone = True
        if gone:
            self._cancel(place)
            return
        place.waiting = self._waits_no_more(place)
        self._goes_on(place)

    def _failed(self, place: Place) -> None:
        """Answer what failed, if that can be done; otherwise it ends."""
        with contained("http.lot", peer=place.peer):
            if not self.holds(place):
                if place.sock.fileno() >= 0:  # it has become nobody's
                    self._drop(place)
                return
            if (waiting := self._waits_no_more(place)) is not None:
                waiting.cancel()
            self._send(place, encode_plain(500, FAILED, keep_alive=True), True)

    async def _tick(self) -> None:
        second = math.floor(trio.current_time() / TICK_S)
        while True:
            await trio.sleep_until((second + 1) * TICK_S)
            for place in self._due.pop(second, ()):
                if place.due != second:
                    continue
                place.due = NEVER
                if not self.holds(place):
                    continue
                if place.until_s > trio.current_time():
                    self._remind(place)
                    continue
                with contained("http.lot", peer=place.peer):
                    if place.paused:
                        self._hear(place)
                    elif place.waiting is not None:
                        self.answer(place, place.waiting.expire())
                    else:
                        self._close(place)
            second += 1

    def _remind(self, place: Place) -> None:
        # A time that was lengthened, as with every request, finds its place when the earlier one comes.
        if place.until_s < math.inf and (second := math.floor(place.until_s / TICK_S)) < place.due:
            place.due = max(second, math.floor(trio.current_time() / TICK_S))
            self._due.setdefault(place.due, []).append(place)

    def _goes_on(self, place: Place) -> None:
        """Have it go on as a task."""
        self._let_go(place)
        self._resume(place)

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

    def _close(self, place: Place, *, tell: bool = False) -> None:
        self._let_go(place)
        close(place.sock, tell=tell)
        self._closed(place)
