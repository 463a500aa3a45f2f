"""Datagrams of one UDP socket, many with one call of the kernel's: Linux' recvmmsg() and sendmmsg(); elsewhere one by one.

Knows nothing of what is in them. A peer's name is its address as the socket's family has it: bytes that are compared, and only
read where somebody wants to see an address.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger("dfud.coap")
COUNT = 32  # datagrams with one call
PLACE_BYTES = 2048
TRIES_MAX = 8  # calls that only tell of what became of earlier datagrams

Name = Any  # hashable: bytes, or what recvfrom() returns


class Datagrams(Protocol):
    """From take() to flush() what is sent may be held back; flush() must follow, before anything is awaited."""

    def take(self) -> list[tuple[Name, bytes]]:
        """Return what has come, COUNT at most, each with its sender; without waiting, and whatever became of earlier ones.

        What is longer than size_max is cut to size_max + 1 bytes.
        """

    def send(self, name: Name, data: bytes) -> None:
        """Send one. It is lost if that cannot be done now, as it might be on any router on the way; raises nothing."""

    def flush(self) -> None:
        """Send what was held back."""

    def address(self, name: Name) -> tuple[Any, ...]:
        """Return a name as the socket module writes it: host and port first."""


def datagrams_of(sock: socket.socket, size_max: int) -> Datagrams:
    """Return the best way there is for a socket that does not block."""
    calls = _calls()
    if calls is None or size_max >= PLACE_BYTES or sock.family not in _NAMES:
        return OneByOne(sock, size_max)
    return Together(sock, size_max, *calls)


def _calls() -> tuple[Callable[..., int], Callable[..., int]] | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        take, send = libc.recvmmsg, libc.sendmmsg
    except (OSError, AttributeError):
        return None
    take.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
    send.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
    return take, send


class OneByOne:
    def __init__(self, sock: socket.socket, size_max: int) -> None:
        self._sock = sock
        self._size_max = size_max

    def take(self) -> list[tuple[Name, bytes]]:
        found: list[tuple[Name, bytes]] = []
        failed = 0
        while len(found) < COUNT and failed < TRIES_MAX:
            try:
                data, address = self._sock.recvfrom(self._size_max + 1)
            except BlockingIOError:
                break
            except OSError:
                failed += 1  # a peer's port is closed; the system reports it here
                continue
            found.append((address, data))
        return found

    def send(self, name: Name, data: bytes) -> None:
        try:
            self._sock.sendto(data, name)
        except OSError as error:
            _not_sent(name, error.errno)

    def flush(self) -> None:
        pass

    def address(self, name: Name) -> tuple[Any, ...]:
        return tuple(name)


# Linux, <sys/socket.h>: struct iovec, msghdr and mmsghdr.


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Entry(ctypes.Structure):
    _fields_ = (("header", _Header), ("size", ctypes.c_uint32))


_SIZES_STEP = ctypes.sizeof(_Entry) // 4
_SIZE_AT = _Entry.size.offset // 4
# struct sockaddr_in and sockaddr_in6; the family is the host's way round, ports and addresses are the network's.
_NAMES = {socket.AF_INET: struct.Struct("=H2s4s8x"), socket.AF_INET6: struct.Struct("=H2s4s16sI")}


class _Places:
    """Memory for COUNT datagrams and their peers, and the kernel's description of it, which points at it for good."""

    def __init__(self, name_bytes: int) -> None:
        self._data = (ctypes.c_char * (COUNT * PLACE_BYTES))()
        self._names = (ctypes.c_char * (COUNT * name_bytes))()
        self._parts = (_Part * COUNT)()
        self._entries = (_Entry * COUNT)()
        for n in range(COUNT):
            self._parts[n].base = ctypes.addressof(self._data) + n * PLACE_BYTES
            self._parts[n].size = PLACE_BYTES
            header = self._entries[n].header
            header.name, header.name_size = ctypes.addressof(self._names) + n * name_bytes, name_bytes
            header.parts, header.part_count = ctypes.addressof(self._parts) + n * ctypes.sizeof(_Part), 1
        self.address = ctypes.addressof(self._entries)
        self.data = memoryview(self._data).cast("B")
        self.names = memoryview(self._names).cast("B")
        # What the kernel wrote: how long each datagram is. What it reads: how many bytes each place offers.
        self.sizes = memoryview(self._entries).cast("B").cast("I")[_SIZE_AT::_SIZES_STEP]
        self.offered = memoryview(self._parts).cast("B").cast("L")[1::2]


class Together:
    """Up to COUNT with one call. Costs a copy of each datagram, and spares a call, an address' text and its parsing."""

    def __init__(self, sock: socket.socket, size_max: int, take: Callable[..., int], send: Callable[..., int]) -> None:
        self._sock = sock
        self._name = _NAMES[sock.family]
        self._name_bytes = self._name.size
        self._family = sock.family
        self._receive, self._post = take, send
        self._in, self._out = _Places(self._name_bytes), _Places(self._name_bytes)
        for n in range(COUNT):
            self._in.offered[n] = size_max + 1
        self._readers = [struct.Struct(f"{self._name_bytes}s" * n) for n in range(COUNT + 1)]
        self._held = 0
        self._holds = False

    def take(self) -> list[tuple[Name, bytes]]:
        places = self._in
        for _ in range(TRIES_MAX):
            count = self._receive(self._sock.fileno(), places.address, COUNT, socket.MSG_DONTWAIT, None)
            if count >= 0 or ctypes.get_errno() == errno.EAGAIN:
                break
            # An interruption; or a peer's port is closed, and the system reports it here.
        if count <= 0:
            return []
        self._holds = True
        data = places.data
        found, at = [], 0
        for name, size in zip(
            self._readers[count].unpack_from(places.names), places.sizes[:count].tolist(), strict=True
        ):
            found.append((name, data[at : at + size].tobytes()))
            at += PLACE_BYTES
        return found

    def send(self, name: Name, data: bytes) -> None:
        size = len(data)
        if size > PLACE_BYTES:
            self._send_long(name, data)
            return
        places, n = self._out, self._held
        at = n * PLACE_BYTES
        places.data[at : at + size] = data
        places.offered[n] = size
        at = n * self._name_bytes
        places.names[at : at + self._name_bytes] = name
        self._held = n + 1
        if not self._holds or n + 1 == COUNT:
            self._send_held()

    def flush(self) -> None:
        self._holds = False
        if self._held:
            self._send_held()

    def _send_held(self) -> None:
        count, self._held = self._held, 0
        places, sent, tries = self._out, 0, 0
        fd = self._sock.fileno()  # -1 once it is closed: its number may be another one's by then
        while sent < count:
            done = self._post(fd, places.address + sent * ctypes.sizeof(_Entry), count - sent, socket.MSG_DONTWAIT)
            if done > 0:
                sent += done
                continue
            number = ctypes.get_errno()
            tries += 1
            if number == errno.EINTR and tries < TRIES_MAX:
                continue
            # It stopped before this one; the others have their own fate.
            at = sent * self._name_bytes
            _not_sent(self.address(places.names[at : at + self._name_bytes].tobytes()), number)
            sent += 1

    def _send_long(self, name: Name, data: bytes) -> None:
        self._send_held()
        try:
            self._sock.sendto(data, self.address(name))
        except OSError as error:
            _not_sent(self.address(name), error.errno)

    def address(self, name: Name) -> tuple[Any, ...]:
        _, port, *rest = self._name.unpack(name)
        if self._family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, rest[0]), int.from_bytes(port, "big")
        flow, address, zone = rest
        host = socket.inet_ntop(socket.AF_INET6, address)
        if zone:
            host = f"{host}%{_zone(zone)}"
        return host, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), zone


def _zone(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return str(number)


def _not_sent(address: tuple[Any, ...], number: int | None) -> None:
    # A full buffer loses it, as any router on the way may; it is sent again if it matters.
    if number != errno.EBADF:
        log.debug("not sent", extra={"peer": address[0], "error": os.strerror(number or 0)})
