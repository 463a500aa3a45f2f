"""A connection's socket, plain or TLS, with no more around it than one task at a time needs.

trio's streams guard against two tasks, and over TLS copy through two buffers; here OpenSSL reads and writes the socket itself.
Whatever the peer breaks is BrokenResourceError. Receiving lets others run, sending does so where it has to wait.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

import trio


class PlainStream:
    """Owns the socket, which must not block."""

    __slots__ = ("socket",)

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return what has come, b"" when the peer has ended."""
        while True:
            # As a rule nothing is there yet: to try first would be a call for nothing.
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes) -> None:
        try:
            sent = self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise trio.BrokenResourceError from error
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            await trio.lowlevel.wait_writable(self.socket)
            try:
                rest = rest[self.socket.send(rest) :]
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    def close(self) -> None:
        self.socket.close()


class TlsStream:
    """Owns the socket, which must not block."""

    __slots__ = ("socket",)

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self.socket = secured

    @classmethod
    def server(cls, plain: socket.socket, context: ssl.SSLContext) -> TlsStream:
        """Take over a connected socket. Raises OSError, and then it is closed."""
        plain.setblocking(False)
        try:
            return cls(context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False))
        except BaseException:
            plain.close()
            raise

    async def do_handshake(self) -> None:
        """Raises ssl.SSLError, OSError."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                self.socket.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                await self._wait(want)
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return what has come, b"" when the peer has ended."""
        if self.socket.pending():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(self.socket)
        while True:
            try:
                return self.socket.recv(max_bytes)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                await self._wait(want)
            except (OSError, ValueError) as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                await self._wait(want)
            except (OSError, ValueError) as error:
                raise trio.BrokenResourceError from error

    async def _wait(self, want: ssl.SSLError) -> None:
        if isinstance(want, ssl.SSLWantReadError):
            await trio.lowlevel.wait_readable(self.socket)
        else:
            await trio.lowlevel.wait_writable(self.socket)

    def certificate(self) -> bytes:
        """Return the peer's certificate as DER, b"" if it has shown none."""
        return self.socket.getpeercert(True) or b""

    def close(self, *, tell: bool = False) -> None:
        """Close the socket; tell: say so to the peer, if that can be said at once."""
        close(self.socket, tell=tell)


def close(sock: socket.socket, *, tell: bool = False) -> None:
    """Close a socket; tell: over TLS, say so to the peer, if that can be said at once."""
    with contextlib.suppress(OSError, ValueError):
        if tell and isinstance(sock, ssl.SSLSocket):
            sock.unwrap()
    with contextlib.suppress(OSError):
        sock.close()
