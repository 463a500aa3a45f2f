"""The sockets: one for plain and OSCORE that takes many datagrams per wake-up, one for DTLS; timers; draining."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import math
import os
import random
import socket
import time
from collections import Counter
from typing import Any

import trio
from OpenSSL import SSL, crypto

from dfud.api import Cache, ConfigError, Endpoint, Transport, Turns, contained, forever, limited, note
from dfud_coap.config import CoapConfig
from dfud_coap.datagrams import COUNT, Datagrams, Name, datagrams_of
from dfud_coap.message import DATAGRAM_MAX_BYTES
from dfud_coap.ownership import Ownership
from dfud_coap.peer import Peer
from dfud_coap.server import Server

log = logging.getLogger("dfud.coap")
ROUNDS = 2  # so many times COUNT datagrams before others have their turn
SOCKET_BUFFER_BYTES = 1 << 22
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM"

# How a DTLS session ends that nobody is to blame for here.
_BROKEN_OFF = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, SSL.Error, OSError)


class CoapTransport(Transport):
    """Listens as [transport.coap] says. Raises ConfigError at construction for what cannot be right."""

    name = "coap"

    def __init__(self, config: CoapConfig) -> None:
        if config.block_max & (config.block_max - 1):
            raise ConfigError(f"[transport.coap] block_max {config.block_max}, expected a power of two from 16 to 1024")
        self._config = config
        # On debug it writes plaintexts and nonces, many lines for each message.
        logging.getLogger("aiocoap.cryptography").setLevel(logging.WARNING)
        self._tls = self._load_tls()
        self._server: Server | None = None
        self._gone = trio.Event()
        self._sooner = trio.Event()
        self._sessions: Counter[str] = Counter()
        self._handshakes = Turns(config.handshakes, config.handshakes_per_address, lasts_s=config.handshake_turn_s)
        self._random = random.SystemRandom()

    def _load_tls(self) -> SSL.Context | None:
        c = self._config
        if not c.certificate:
            if c.client_ca or c.client_required:
                raise ConfigError("[transport.coap] client_ca and client_required need a certificate")
            return None
        context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        # The cookie is trio's business; it says the same for the first context, but not for one that takes its place.
        context.set_cookie_verify_callback(lambda connection, cookie: True)
        try:
            context.set_cipher_list(CIPHERS)
            context.use_certificate_chain_file(c.certificate)
            context.use_privatekey_file(c.key or c.certificate)
            context.check_privatekey()
            if c.client_ca:
                context.load_verify_locations(c.client_ca)
                mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if c.client_required else 0)
                context.set_verify(mode, lambda connection, certificate, error, depth, right: bool(right))
        except (OSError, SSL.Error) as error:
            raise ConfigError(f"[transport.coap] certificate {c.certificate}: {error}") from error
        return context

    def reload(self) -> None:
        if self._tls is not None:
            self._tls = self._load_tls()

    async def run(
        self, endpoint: Endpoint, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        start_s = time.time() - trio.current_time()  # a clock that is never set back
        sock = await self._open(self._config.port)
        with sock:
            urls = [f"coap://{_host(self._config.host)}:{sock.getsockname()[1]}"]
            secure = None
            if self._tls is not None:
                secure = await self._open(self._config.dtls_port)
                urls.append(f"coaps://{_host(self._config.host)}:{secure.getsockname()[1]}")
            async with trio.open_nursery() as nursery:
                server = Server(
                    self._config,
                    endpoint,
                    spawn=nursery.start_soon,
                    now=trio.current_time,
                    wall=lambda: start_s + trio.current_time(),
                    key=os.urandom(32),
                    changed=self._changed,
                    sooner=lambda: self._sooner.set(),
                )
                self._server = server
                shared = endpoint.shared(self.name)
                if shared is not None:
                    wall = server.securing.wall
                    ownership = Ownership(shared, server.securing.contexts, nursery.start_soon, wall)
                    server.securing.ownership = ownership
                    nursery.start_soon(forever, "coap.ownership", ownership.run)
                nursery.start_soon(self._run_timers, server)
                nursery.start_soon(self._receive, sock, server)
                if secure is not None:
                    nursery.start_soon(self._serve_dtls, secure, server)
                task_status.started(urls)
                await trio.sleep_forever()

    async def _serve_dtls(self, sock: socket.socket, server: Server) -> None:
        assert self._tls is not None
        with trio.DTLSEndpoint(
            trio.socket.from_stdlib_socket(sock), incoming_packets_buffer=self._config.session_queue
        ) as dtls:
            await dtls.serve(self._tls, lambda channel: self._session(channel, server))

    async def check(self) -> None:
        for port in (self._config.port, self._config.dtls_port if self._tls is not None else 0):
            if port:
                (await self._open(port)).close()

    async def _open(self, port: int) -> socket.socket:
        where = f"[transport.coap] cannot listen on {self._config.host}:{port}"
        try:
            found = await trio.socket.getaddrinfo(
                self._config.host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}") from error
        try:
            sock.setblocking(False)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
        except OSError as error:
            sock.close()
            raise ConfigError(f"{where}: {error.strerror}") from error
        return sock

    async def _receive(self, sock: socket.socket, server: Server) -> None:
        """Take many datagrams for each time the socket is readable: that is most of what a datagram costs."""
        peers: Cache[Any, Peer] = Cache(self._config.peers)
        datagrams = datagrams_of(sock, DATAGRAM_MAX_BYTES)
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(ROUNDS):
                found = datagrams.take()
                now_s = trio.current_time()
                for name, data in found:
                    if len(data) > DATAGRAM_MAX_BYTES:
                        continue
                    try:
                        peer = peers.get(name)
                        if peer is None:
                            peer = self._new_peer(datagrams, name)
                            peers.put(name, peer)
                        server.datagram(peer, data, now_s)
                    except Exception as error:
                        note("coap.datagram", error, peer=datagrams.address(name)[0])
                datagrams.flush()
                if len(found) < COUNT:
                    break

    def _new_peer(self, datagrams: Datagrams, name: Name) -> Peer:
        address = datagrams.address(name)
        send = functools.partial(datagrams.send, name)
        return Peer(address, _plain_address(address[0]), send, self._random.getrandbits(16))

    async def _run_timers(self, server: Server) -> None:
        while True:
            self._sooner = trio.Event()
            next_s = server.timers.next_s()
            with trio.move_on_at(math.inf if next_s is None else next_s):
                await self._sooner.wait()
            # One that fails has been taken out; the others follow in the next round.
            with contained("coap.timer"):
                server.timers.run(trio.current_time())

    # DTLS

    async def _session(self, channel: trio.DTLSChannel, server: Server) -> None:
        address = _plain_address(str(channel.peer_address[0]))
        counts = limited(address)
        full = self._sessions.total() >= self._config.sessions
        if full or self._sessions[counts] >= self._config.sessions_per_address:
            channel.close()
            return
        self._sessions[counts] += 1
        try:
            with contained("coap.session", peer=address), contextlib.suppress(*_BROKEN_OFF):
                # What is suppressed never got as far as a handshake.
                await self._serve_session(channel, address, server)
        finally:
            self._sessions[counts] -= 1
            if not self._sessions[counts]:
                del self._sessions[counts]
            with contained("coap.session", peer=address):
                channel.close()

    async def _serve_session(self, channel: trio.DTLSChannel, address: str, server: Server) -> None:
        # trio's endpoint takes one context for good, and has no public way to the connection or its certificate.
        connection = channel._ssl
        assert self._tls is not None
        if connection.get_context() is not self._tls:
            connection.set_context(self._tls)  # the certificate has been exchanged since
        async with self._handshakes.turn(limited(address)):
            with trio.fail_after(self._config.handshake_s):
                await channel.do_handshake()
        outgoing, queue = trio.open_memory_channel[bytes](self._config.session_queue)

        def send(data: bytes) -> None:
            # What does not fit is lost, as on any link; it is sent again if it matters.
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                outgoing.send_nowait(data)

        certificate = connection.get_peer_certificate()
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) if certificate is not None else b""
        peer = Peer(object(), address, send, self._random.getrandbits(16), encrypted=True, certificate=der)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_session, channel, queue)
                with contextlib.suppress(*_BROKEN_OFF):
                    while True:
                        with trio.fail_after(self._config.session_idle_s):
                            data = await channel.receive()
                        if len(data) <= DATAGRAM_MAX_BYTES:
                            server.datagram(peer, data)
                nursery.cancel_scope.cancel()
        finally:
            server.gone(peer)

    async def _send_session(self, channel: trio.DTLSChannel, queue: trio.MemoryReceiveChannel[bytes]) -> None:
        async for data in queue:
            with contextlib.suppress(*_BROKEN_OFF):
                await channel.send(data)

    # Ending

    def _changed(self) -> None:
        self._gone.set()

    async def drain(self) -> None:
        server = self._server
        if server is None:
            return
        server.drain()
        while not server.idle:
            self._gone = trio.Event()
            await self._gone.wait()


def _plain_address(text: str) -> str:
    """Return an address without zone, and an IPv4 one as such even from a socket for both."""
    text = text.partition("%")[0]
    if text.startswith("::ffff:"):
        with contextlib.suppress(ValueError):
            mapped = ipaddress.IPv6Address(text).ipv4_mapped
            return str(mapped) if mapped is not None else text
    return text


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
