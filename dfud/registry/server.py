"""The user plane's server: quart-trio under hypercorn, with what the two need to be trusted with strangers.

Each cure names the defect of hypercorn 0.18.0 or quart-trio 0.12.0 that it closes; tests/registry/test_server.py fails
without it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.trio.run
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.run import worker_serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.utils import wrap_app

from dfud.api import ConfigError, contained
from dfud.model.address import Networks, is_in, is_loopback, limited
from dfud.registry.config import RegistryConfig, proxies_of
from dfud.registry.tls import RedirectPlain, Tls

log = logging.getLogger("dfud.registry")
IDLE_S = 30.0
SEND_S = 60.0
BACKLOG = 1024


class GuardedServer(TCPServer):
    """One connection of hypercorn's that cannot harm the others."""

    async def run(self) -> None:
        """Cure: an exception in a connection's protocol code ends the whole process (three malformed requests are known).

        Cure: the number of connections has no limit; what is beyond ours is closed before anything is read.
        """
        peer = self._peer()
        if isinstance(self.config, _Settings) and not self.config.enter(peer):
            await trio.aclose_forcefully(self.stream)
            return
        try:
            with contained("users.connection", peer=limited(peer)):
                await super().run()
        finally:
            if isinstance(self.config, _Settings):
                self.config.leave(peer)

    def _peer(self) -> str:
        transport = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        try:
            return str(transport.socket.getpeername()[0])
        except OSError:
            return ""

    async def _read_data(self) -> None:
        """Cure: a peer that has hung up is waited for until its idle time is over; until then it would count as a connection."""
        await super()._read_data()
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Cure: a peer that stops reading holds a shielded send, and with it the end of the process, for ever.

        Cure: after a request with a malformed body the reading and the answering task both end the connection. One that sends
        while the other half-closes it is an exception of the connection, and not its end.
        """
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                with trio.fail_after(SEND_S):
                    await self.stream.send_all(event.data)
            except (
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.BusyResourceError,  # the lock is held, so it is being closed
                trio.TooSlowError,
            ):
                await self.protocol.handle(Closed())


setattr(hypercorn.trio.run, "TCPServer", GuardedServer)  # noqa: B010 - worker_serve looks it up there


class ShieldedSends:
    """An ASGI application around one of quart-trio's.

    Cure: quart-trio cancels its nursery while hypercorn closes the connection in that very task, so that idle connections
    stay open for ever and `Connection: close` is not obeyed.

    Cure: an answer that is given before the body was read ends the connection without saying so; a client that sends its next
    request on it finds it closed.

    Cure: hypercorn tells the application that the request is over through the queue that its body comes in. Once nobody reads
    that, a body that is longer than the queue holds the connection for ever. So does one that the application does not look at
    before it answers.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        headers = dict(scope.get("headers", ()))
        over = scope["type"] != "http"
        whole = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers

        async def receiving() -> Any:
            nonlocal whole, over
            event = await receive()
            over = over or event["type"] == "http.disconnect"
            if event["type"] == "http.request" and not event.get("more_body", False):
                whole = True
            return event

        async def discard() -> None:
            while not over:
                await receiving()

        async def shielded(event: Any) -> None:
            if event is not None and event["type"] == "http.response.start" and not whole:
                event = {**event, "headers": [*event.get("headers", ()), (b"connection", b"close")]}
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * SEND_S):
                if over or event is None or not _is_end(event):
                    await send(event)
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(discard)
                    await send(event)
                    nursery.cancel_scope.cancel()

        await self._app(scope, receiving, shielded)
        if over:
            return
        with trio.move_on_after(SEND_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(discard)
                await shielded(None)  # what hypercorn sends itself then: the end, unless that was sent already


def _is_end(event: Any) -> bool:
    return event["type"] == "http.response.body" and not event.get("more_body", False)


class _Settings(HypercornConfig):
    """hypercorn's settings with dfud's own TLS, whose certificate can be replaced, and a count of the connections."""

    tls: Tls | None = None
    connections = 1000
    connections_per_address = 200
    proxies: Networks = ()  # each of them stands for many

    def __init__(self) -> None:
        super().__init__()
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Say whether one more connection of `address` may be served; then leave() must follow."""
        peer = limited(address)
        many = self._open[peer] >= self.connections_per_address and not is_in(address, self.proxies)
        if self._open.total() >= self.connections or many:
            return False
        self._open[peer] += 1
        return True

    def leave(self, address: str) -> None:
        peer = limited(address)
        self._open[peer] -= 1
        if self._open[peer] <= 0:
            del self._open[peer]

    @property
    def ssl_enabled(self) -> bool:
        return self.tls is not None

    def create_ssl_context(self) -> Any:
        return self.tls


def hypercorn_config(config: RegistryConfig, graceful_s: float, tls: Tls | None = None) -> HypercornConfig:
    """Return hypercorn's settings. Raises ConfigError for a plain listener that is not loopback and not allowed."""
    if not config.certificate and (config.key or config.redirect_port):
        raise ConfigError("[registry] key and redirect_port need a certificate")
    if not config.certificate and not config.allow_plain and not is_loopback(config.host):
        raise ConfigError(
            f"[registry] host {config.host} is not loopback and there is no certificate: "
            "expected certificate and key, or allow_plain = true"
        )
    settings = _Settings()
    settings.alpn_protocols = ["http/1.1"]  # HTTP/2 brings nothing here, and more code that strangers reach
    if config.certificate:
        settings.tls = tls or Tls(config)
        settings.ssl_handshake_timeout = config.handshake_s
    settings.connections = config.connections
    settings.connections_per_address = config.connections_per_address
    settings.proxies = proxies_of(config)
    settings.graceful_timeout = graceful_s
    settings.keep_alive_timeout = IDLE_S
    settings.read_timeout = None  # its timer also runs while an answer is being made, and leaves the connection deaf
    settings.h11_max_incomplete_size = 16384
    settings.include_server_header = False
    settings.accesslog = None
    settings.errorlog = None
    settings.backlog = BACKLOG
    settings.max_app_queue_size = 2  # pieces of a body that wait for the application, up to 64 KiB each
    return settings


async def serve(
    app: Any,
    config: RegistryConfig,
    *,
    graceful_s: float,
    shutdown: trio.Event,
    tls: Tls | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set and what is under way is answered, at most `graceful_s` longer.

    Cure: requests that last (events) are cut without a word at the end; they watch `shutdown` themselves.
    """
    settings = hypercorn_config(config, graceful_s, tls)
    with contextlib.ExitStack() as opened:  # hypercorn closes them only if it has come as far as accepting
        main = opened.enter_context(_listening(config.host, config.port))
        sockets = Sockets(secure_sockets=[], insecure_sockets=[], quic_sockets=[])
        (sockets.secure_sockets if config.certificate else sockets.insecure_sockets).append(main)
        if config.redirect_port:
            sockets.insecure_sockets.append(opened.enter_context(_listening(config.host, config.redirect_port)))
        if config.certificate:
            app = RedirectPlain(app, main.getsockname()[1], config.external_url)
        wrapped = wrap_app(ShieldedSends(app), settings.wsgi_max_body_size, "asgi")
        await worker_serve(wrapped, settings, sockets=sockets, shutdown_trigger=shutdown.wait, task_status=task_status)


async def check_listening(config: RegistryConfig) -> None:
    """Raise ConfigError if serve() could not listen now."""
    for port in (config.port, config.redirect_port):
        if port:
            _listening(config.host, port).close()


def _listening(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ConfigError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"[registry] cannot listen on {host}:{port}: {error.strerror}") from error
    return sock
