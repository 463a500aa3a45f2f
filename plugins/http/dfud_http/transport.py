"""The listener: sockets, TLS, limits on connections, draining."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
from collections import Counter

import trio

from dfud.api import ConfigError, Endpoint, Transport, Turns, contained, is_loopback, limited, note, server_context
from dfud_http.answer import encode_plain
from dfud_http.budget import Budget
from dfud_http.config import HttpConfig
from dfud_http.connection import Connection, Stream
from dfud_http.lot import Left, Lot, Place
from dfud_http.parse import RequestReader
from dfud_http.stream import PlainStream, TlsStream

BACKLOG = 4096
# accept() fails with these when the process or the machine is out of something: waiting helps, ending would not.
OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
OUT_OF_PAUSE_S = 0.1
_HOST = re.compile(rb"([A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class HttpTransport(Transport):
    """Listens as [transport.http] says. Raises ConfigError at construction for what cannot be right."""

    name = "http"

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
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
                self._lot = Lot(
                    self._config.idle_s,
                    lambda place: nursery.start_soon(self._go_on, place, endpoint),
                    lambda place: self._closed(place.address),
                )
                nursery.start_soon(self._lot.run)
                task_status.started(urls)
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept, listener, nursery, endpoint, None)
                        for listener in redirects:
                            accepting.start_soon(self._accept, listener, nursery, endpoint, port)
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

    async def _accept(
        self, listener: trio.SocketListener, nursery: trio.Nursery, endpoint: Endpoint, redirect: int | None
    ) -> None:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                # Out of something, or what befell a connection before it was accepted: neither ends the listener.
                if error.errno not in OUT_OF:
                    note("http.accept", error)
                await trio.sleep(OUT_OF_PAUSE_S)
                continue
            nursery.start_soon(self._serve, stream, endpoint, redirect)

    async def _serve(self, stream: trio.SocketStream, endpoint: Endpoint, redirect: int | None) -> None:
        """Serve one connection to its end, whatever comes; it counts from its first moment on, handshake and all."""
        try:
            peer = str(stream.socket.getpeername()[0])
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        address = limited(peer)
        self._open += 1
        self._addresses[address] += 1
        await self._serve_counted(PlainStream(_taken(stream)), peer, address, endpoint, redirect)

    async def _go_on(self, place: Place, endpoint: Endpoint) -> None:
        """Serve a connection that was parked; it has been counted all the time."""
        await self._serve_counted(_stream_of(place.sock), place.peer, place.address, endpoint, None, place)

    async def _serve_counted(
        self,
        stream: Stream,
        peer: str,
        address: str,
        endpoint: Endpoint,
        redirect: int | None,
        place: Place | None = None,
    ) -> None:
        left: Left | None = None
        try:
            with contained("http.connection", peer=peer):
                try:
                    full = self._open > self._config.connections
                    if place is not None or isinstance(stream, TlsStream):
                        left = await self._serve_one(stream, peer, endpoint, place)
                    elif full or self._addresses[address] > self._config.connections_per_address:
                        await self._refuse(stream)
                    elif redirect is not None:
                        await self._redirect(stream, redirect)
                    else:
                        left = await self._serve_new(stream, peer, endpoint)
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ssl.SSLError, OSError):
                    pass  # the peer broke off, or never got as far as a handshake
        finally:
            if left is None:
                self._closed(address)
                stream.close()
        if left is not None:
            assert self._lot is not None and left.sock is not None
            self._lot.park(left.sock, peer, address, left)

    def _closed(self, address: str) -> None:
        self._open -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    async def _serve_new(self, stream: PlainStream, peer: str, endpoint: Endpoint) -> Left | None:
        secured = await self._secure(stream, self._tls, peer) if self._tls is not None else None
        with contextlib.suppress(OSError):
            (secured or stream).socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left: Left | None = None
        try:
            left = await self._serve_one(secured or stream, peer, endpoint, None)
        finally:
            if secured is not None and left is None:
                secured.close(tell=True)
        return left

    async def _serve_one(self, stream: Stream, peer: str, endpoint: Endpoint, place: Place | None) -> Left | None:
        connection = Connection(
            stream,
            peer,
            endpoint,
            self._config,
            self._budget,
            certificate=stream.certificate() if isinstance(stream, TlsStream) else b"",
            encrypted=isinstance(stream, TlsStream),
            parks=self._lot is not None,
        )
        self._connections.add(connection)
        try:
            left = await connection.serve(place)
        finally:
            self._connections.discard(connection)
            self._gone.set()
        if left is not None:
            left.sock = stream.socket
        return left

    async def _secure(self, stream: PlainStream, context: ssl.SSLContext, peer: str) -> TlsStream:
        """Shake hands, when it is this peer's turn. Whoever has said nothing yet gets none: silence costs no turn."""
        with trio.fail_after(self._config.handshake_s):
            await trio.lowlevel.wait_readable(stream.socket)
        async with self._handshakes.turn(limited(peer)):
            secured = TlsStream.server(stream.socket, context)
            try:
                with trio.fail_after(self._config.handshake_s):
                    await secured.do_handshake()
            except BaseException:
                secured.close()
                raise
        return secured

    async def _refuse(self, stream: PlainStream) -> None:
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError):
            if self._tls is None:
                await stream.send_all(encode_plain(503, "too many connections", headers=b"retry-after: 10\r\n"))

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


def _taken(stream: trio.SocketStream) -> socket.socket:
    """Return the socket of a stream, which is closed by that without the peer's noticing."""
    family = stream.socket.family
    taken = socket.socket(family, socket.SOCK_STREAM, fileno=stream.socket.detach())
    taken.setblocking(False)
    return taken


def _stream_of(sock: socket.socket) -> Stream:
    return TlsStream(sock) if isinstance(sock, ssl.SSLSocket) else PlainStream(sock)
