"""The listener: sockets, TLS, limits on connections, draining."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable

import trio

from dfud.api import ConfigError, Endpoint, Transport, Turns, contained, is_loopback, limited, note, server_context
from dfud_http.answer import encode_plain
from dfud_http.budget import Budget
from dfud_http.config import HttpConfig
from dfud_http.connection import Connection
from dfud_http.forwarded import Proxies
from dfud_http.lot import RECEIVE_BYTES, Left, Lot, Place
from dfud_http.parse import RequestReader
from dfud_http.quick import Quick
from dfud_http.stream import PlainStream, TlsStream, close

BACKLOG = 4096
ACCEPTED_AT_ONCE = 256
# While the endpoint turns requests away, those who are connected go before those who would have to be told after a handshake, which
# costs several times what a report does. All of them have their turn: so much later.
LATER_S, LOOK_S = 2.0, 0.05
# accept() fails with these when the process or the machine is out of something: waiting helps, ending would not.
OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
OUT_OF_PAUSE_S = 0.1
_HOST = re.compile(rb"([A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class HttpTransport(Transport):
    """Listens as [transport.http] says. Raises ConfigError at construction for what cannot be right."""

    name = "http"

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._proxies = Proxies(config)
        self._tls = self._load_tls()
        if self._tls is None and not config.allow_plain and not is_loopback(config.host):
            raise ConfigError(
                f"[transport.http] host {config.host} is not loopback and there is no certificate: "
                "expected certificate and key, or allow_plain = true"
            )
        self._connections: set[Connection] = set()
        self._open = 0  # connections, from accepting to closing
        self._budget = Budget(config.held_max)
        self._handshakes = Turns(config.handshakes, config.handshakes_per_address, lasts_s=config.handshake_turn_s)
        self._addresses: Counter[str] = Counter()
        self._accepting = trio.CancelScope()
        self._gone = trio.Event()
        self._lot: Lot | None = None

    def _load_tls(self) -> ssl.SSLContext | None:
        c = self._config
        if not c.certificate:
            if c.client_ca or c.client_required or c.redirect_port:
                raise ConfigError("[transport.http] client_ca, client_required and redirect_port need a certificate")
            return None
        return server_context(
            "transport.http", c.certificate, c.key, client_ca=c.client_ca, client_required=c.client_required
        )

    def reload(self) -> None:
        if self._tls is not None:
            self._tls = self._load_tls()

    async def run(
        self, endpoint: Endpoint, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._accepting = trio.CancelScope()  # one for each run: dfud starts a transport again that has raised
        with contextlib.ExitStack() as sockets:
            listeners = await self._listen(self._config.port, sockets)
            port = listeners[0].socket.getsockname()[1]
            scheme = "https" if self._tls else "http"
            host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
            urls = [f"{scheme}://{host}:{port}"]
            redirects: list[trio.SocketListener] = []
            if self._config.redirect_port:
                redirects = await self._listen(self._config.redirect_port, sockets)
                urls.append(f"http://{host}:{self._config.redirect_port}")
            # The connections live in the outer nursery: draining ends the accepting only.
            async with trio.open_nursery() as nursery:
                lot = self._lot = Lot(
                    Quick(endpoint, self._config),
                    self._config.idle_s,
                    lambda place: self._resume(place, nursery, endpoint),
                    lambda place: self._closed(place.address),
                )

                def redirect(place: Place) -> None:
                    nursery.start_soon(self._serve_redirect, port, place)

                nursery.start_soon(lot.run)
                task_status.started(urls)
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept, listener, lot, None)
                        for listener in redirects:
                            accepting.start_soon(self._accept, listener, lot, redirect)
                sockets.close()
                await trio.sleep_forever()

    async def check(self) -> None:
        with contextlib.ExitStack() as sockets:
            for port in (self._config.port, self._config.redirect_port):
                if port:
                    await self._listen(port, sockets)

    async def _listen(self, port: int, sockets: contextlib.ExitStack) -> list[trio.SocketListener]:
        try:
            listeners = await trio.open_tcp_listeners(port, host=self._config.host, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"[transport.http] cannot listen on {self._config.host}:{port}: {error.strerror}"
            ) from error
        for listener in listeners:
            sockets.callback(listener.socket.close)
        return listeners

    async def _accept(self, listener: trio.SocketListener, lot: Lot, redirect: Callable[[Place], None] | None) -> None:
        """Take connections, oldest first and many at a time; each is counted from its first moment on, handshake and all."""
        listening = socket.socket(listener.socket.family, socket.SOCK_STREAM, fileno=os.dup(listener.socket.fileno()))
        with listening:
            listening.setblocking(False)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones have it, too
            while True:
                await trio.lowlevel.wait_readable(listening)
                try:
                    for _ in range(ACCEPTED_AT_ONCE):
                        sock, address = listening.accept()
                        try:
                            self._take(sock, str(address[0]), lot, redirect)
                        except Exception as error:
                            note("http.accept", error, peer=str(address[0]))
                            sock.close()
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    # Out of something, or what befell a connection before it was accepted: neither ends the listener.
                    if error.errno not in OUT_OF:
                        note("http.accept", error)
                    await trio.sleep(OUT_OF_PAUSE_S)
                else:
                    await trio.lowlevel.checkpoint()

    def _take(self, sock: socket.socket, peer: str, lot: Lot, redirect: Callable[[Place], None] | None) -> None:
        sock.setblocking(False)
        address = limited(peer)
        self._open += 1
        self._addresses[address] += 1
        try:
            place = Place(lot, sock, peer, address, secured=self._tls is None or redirect is not None)
            if self._proxies.trusts(peer):
                place.proxies = self._proxies
            many = self._addresses[address] > self._config.connections_per_address and place.proxies is None
            if not (self._open > self._config.connections or many):
                if redirect is not None:
                    redirect(place)
                else:
                    lot.enter(place, self._config.idle_s if place.secured else self._config.handshake_s)
                return
        except BaseException:
            self._closed(address)
            raise
        self._refuse(place)

    def _refuse(self, place: Place) -> None:
        """Say that there are too many, as far as that can be said at once."""
        if self._tls is None:
            with contextlib.suppress(OSError):
                place.sock.recv(RECEIVE_BYTES)  # what is not read would have its peer never see the answer
            with contextlib.suppress(OSError):
                place.sock.send(encode_plain(503, "too many connections", headers=b"retry-after: 10\r\n"))
        place.sock.close()
        self._closed(place.address)

    def _resume(self, place: Place, nursery: trio.Nursery, endpoint: Endpoint) -> None:
        """Have a connection go on as a task."""
        if place.secured:
            nursery.start_soon(self._serve, place, self._connection(place, endpoint))
        else:
            nursery.start_soon(self._serve_secured, place, endpoint)

    def _connection(self, place: Place, endpoint: Endpoint) -> Connection:
        connection = Connection(place, endpoint, self._config, self._budget)
        self._connections.add(connection)  # before its task begins, so that draining knows of it
        return connection

    async def _serve(self, place: Place, connection: Connection) -> None:
        """Serve one connection until it needs no task, or ends, whatever comes."""
        left: Left | None = None
        try:
            with contained("http.connection", peer=place.peer):
                left = await connection.serve()
        finally:
            self._connections.discard(connection)
            self._gone.set()
            if left is None:
                self._closed(place.address)
                close(place.sock, tell=True)
        if left is not None:
            assert self._lot is not None
            self._lot.park(place, left)

    async def _serve_secured(self, place: Place, endpoint: Endpoint) -> None:
        """Shake hands, when it is this peer's turn: something has come from it, so silence costs no turn."""
        try:
            with contained("http.connection", peer=place.peer), contextlib.suppress(trio.TooSlowError, OSError):
                await self._secure(place, endpoint)
        finally:
            if not place.secured:
                self._closed(place.address)
                place.sock.close()
        if place.secured:
            assert self._lot is not None
            self._lot.park(place, Left(None, keep_alive=True))

    async def _secure(self, place: Place, endpoint: Endpoint) -> None:
        assert self._tls is not None
        # A proxy stands for many: each of its connections waits for its own turn.
        key = place.address if place.proxies is None else f"{place.address} {place.sock.fileno()}"
        async with self._handshakes.turn(key):
            for _ in range(int(LATER_S / LOOK_S)):
                if not endpoint.is_full():
                    break
                await trio.sleep(LOOK_S)
            stream = TlsStream.server(place.sock, self._tls)
            place.sock = stream.socket
            with trio.fail_after(self._config.handshake_s):
                await stream.do_handshake()
        place.certificate = stream.certificate()
        place.encrypted = place.secured = True

    def _closed(self, address: str) -> None:
        self._open -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    async def _serve_redirect(self, port: int, place: Place) -> None:
        try:
            with (
                contained("http.connection", peer=place.peer),
                contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError),
            ):
                await self._redirect(PlainStream(place.sock), port)
        finally:
            self._closed(place.address)
            place.sock.close()

    async def _redirect(self, stream: PlainStream, port: int) -> None:
        """Send one request to the TLS port of this host, by the name that the peer has for it.

        Its credentials have been shown in clear already, so nothing else is done with it.
        """
        reader = RequestReader(self._config)
        with trio.fail_after(self._config.request_s):
            while not reader.requests and reader.fault is None:
                data = await stream.receive_some(4096)
                if not data:
                    return
                reader.feed(bytes(data))
            if reader.fault is not None:
                await stream.send_all(encode_plain(reader.fault.status, reader.fault.message))
                return
            request = reader.requests[0]
            named = _HOST.fullmatch(request.headers.get(b"host", b""))
            own = str(stream.socket.getsockname()[0])
            name = named[1].decode() if named is not None else f"[{own}]" if ":" in own else own
            target = request.target
            target = target if target.startswith(b"/") and not target.startswith(b"//") else b"/"
            await stream.send_all(
                encode_plain(308, headers=b"location: https://%s:%d%s\r\n" % (name.encode(), port, target))
            )

    async def drain(self) -> None:
        self._accepting.cancel()
        for connection in tuple(self._connections):
            connection.drain()
        if self._lot is not None:
            await self._lot.drain()
        while self._connections:
            self._gone = trio.Event()
            await self._gone.wait()
