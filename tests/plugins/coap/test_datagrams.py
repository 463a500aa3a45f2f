"""Datagrams many at a time: what comes and goes is what comes and goes one by one, and a fault of one costs that one."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dfud_coap import datagrams
from dfud_coap.datagrams import COUNT, PLACE_BYTES, TRIES_MAX, Datagrams, OneByOne, Together, datagrams_of
from hypothesis import given
from hypothesis import strategies as st

SIZE_MAX = 1500
PATIENCE_S = 60.0
IP_RECVERR = 11  # linux/in.h: errors of earlier datagrams are told, as on a connected socket
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = [socket.AF_INET, socket.AF_INET6]


def has(family: int) -> bool:
    try:
        socket.create_server((HOSTS[socket.AddressFamily(family)], 0), family=family).close()
    except OSError:
        return False
    return True


def one_by_one(sock: socket.socket) -> Datagrams:
    return OneByOne(sock, SIZE_MAX)


def together(sock: socket.socket) -> Datagrams:
    found = datagrams_of(sock, SIZE_MAX)
    assert isinstance(found, Together) or sys.platform != "linux"
    return found


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    if not has(request.param):
        pytest.skip("this machine has no IPv6")
    return int(request.param)


class Pair:
    """A socket that is served, and a peer's."""

    def __init__(self, make: Callable[[socket.socket], Datagrams], family: int) -> None:
        host = HOSTS[socket.AddressFamily(family)]
        self.sock, self.peer = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (self.sock, self.peer):
            sock.bind((host, 0))
        self.sock.setblocking(False)
        self.peer.settimeout(PATIENCE_S)
        self.peer.connect(self.sock.getsockname())
        self.datagrams = make(self.sock)

    def take(self) -> list[tuple[Any, bytes]]:
        """Return what has come; over loopback that is there once send() has returned."""
        return self.datagrams.take()

    def name(self) -> Any:
        """Return the peer's name."""
        self.peer.send(b"?")
        ((name, _),) = self.take()
        self.datagrams.flush()
        return name

    def silent(self) -> bool:
        self.peer.setblocking(False)
        try:
            self.peer.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.peer.settimeout(PATIENCE_S)
        return False

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.fixture(params=[one_by_one, together])
def pair(request: pytest.FixtureRequest, family: int) -> Iterator[Pair]:
    found = Pair(request.param, family)
    yield found
    found.close()


@pytest.fixture
def fast(family: int) -> Iterator[Pair]:
    found = Pair(together, family)
    yield found
    found.close()


def test_what_was_sent_is_taken_in_order_and_cut_where_it_is_too_long(pair: Pair) -> None:
    sent = [bytes([n]) * size for n, size in enumerate((1, 0, 5, SIZE_MAX, SIZE_MAX + 1, SIZE_MAX + 200, 7))]
    for data in sent:
        pair.peer.send(data)
    taken = pair.take()
    assert [data for _, data in taken] == [data[: SIZE_MAX + 1] for data in sent]
    assert {pair.datagrams.address(name) for name, _ in taken} == {pair.peer.getsockname()}
    assert pair.take() == [], "without waiting"


def test_many_come_in_several_turns_each_with_its_sender(pair: Pair) -> None:
    with socket.socket(pair.sock.family, socket.SOCK_DGRAM) as other:
        other.connect(pair.sock.getsockname())
        for n in range(2 * COUNT + 3):
            (pair.peer if n % 3 else other).send(b"%d" % n)
        turns = [pair.take() for _ in range(3)]
        assert [len(turn) for turn in turns] == [COUNT, COUNT, 3]
        names: dict[Any, tuple[Any, ...]] = {}
        for n, (name, data) in enumerate(entry for turn in turns for entry in turn):
            assert data == b"%d" % n
            names[name] = pair.datagrams.address(name)
            assert names[name] == (pair.peer if n % 3 else other).getsockname()
        assert len(names) == 2


def test_what_is_sent_arrives_whole_and_in_order(pair: Pair) -> None:
    name = pair.name()
    sizes = [0, 1, PLACE_BYTES, PLACE_BYTES + 1, 3, 40_000, *range(10, 10 + 2 * COUNT)]
    pair.peer.send(b"?")
    assert len(pair.take()) == 1
    for n, size in enumerate(sizes):
        pair.datagrams.send(name, bytes([n]) * size)
    pair.datagrams.flush()
    for n, size in enumerate(sizes):
        assert pair.peer.recv(65536) == bytes([n]) * size
    assert pair.silent()


def test_what_is_sent_beside_a_turn_goes_at_once(pair: Pair) -> None:
    name = pair.name()
    pair.datagrams.send(name, b"a timer's")
    assert pair.peer.recv(100) == b"a timer's"
    assert pair.take() == []
    pair.datagrams.send(name, b"nothing had come")
    assert pair.peer.recv(100) == b"nothing had come"


def test_answers_of_a_turn_are_held_until_its_end(fast: Pair) -> None:
    name = fast.name()
    fast.peer.send(b"?")
    fast.take()
    fast.datagrams.send(name, b"1")
    fast.datagrams.send(name, b"2")
    assert fast.silent()
    fast.datagrams.flush()
    assert [fast.peer.recv(100), fast.peer.recv(100)] == [b"1", b"2"]
    fast.datagrams.flush()
    assert fast.silent()


def test_a_datagram_that_cannot_be_sent_costs_no_other(pair: Pair) -> None:
    """Too long for IP (EMSGSIZE), and to a port that there is not (EINVAL)."""
    name = pair.name()
    nowhere = (name[:2] + b"\0\0" + name[4:]) if isinstance(name, bytes) else (name[0], 0, *name[2:])
    pair.peer.send(b"?")
    pair.take()
    for n in range(6):
        pair.datagrams.send(name, b"%d" % n)
        pair.datagrams.send(nowhere, b"lost")
        pair.datagrams.send(name, bytes(70_000))
    pair.datagrams.flush()
    assert [pair.peer.recv(100) for _ in range(6)] == [b"%d" % n for n in range(6)]
    assert pair.silent()


@pytest.mark.skipif(sys.platform != "linux", reason="IP_RECVERR")
@pytest.mark.parametrize("make", [one_by_one, together])
def test_a_peer_whose_port_is_closed_costs_no_other(make: Callable[[socket.socket], Datagrams]) -> None:
    pair = Pair(make, socket.AF_INET)
    pair.sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    name = pair.name()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        gone.connect(pair.sock.getsockname())
        gone.send(b"?")
        ((nobody, _),) = pair.take()
        pair.datagrams.flush()
    for _ in range(3):
        pair.datagrams.send(nobody, b"refused")  # the next call is told
        pair.peer.send(b"here")
        assert [data for _, data in pair.take()] == [b"here"]
        pair.datagrams.send(nobody, b"refused")
        pair.datagrams.send(name, b"1")
        pair.datagrams.send(name, b"2")
        pair.datagrams.flush()
        # What is told by sending says nothing of the datagram that is being sent; that one may be lost, no more.
        assert pair.peer.recv(100) in (b"1", b"2")
        while not pair.silent():
            pass
    pair.close()


class Kernel:
    """The calls, but that the n-th datagram of a call, or the n-th call, fails as `faults` says: (errno, ...) by number."""

    def __init__(self, sock: socket.socket, faults: list[int | None]) -> None:
        calls = datagrams._calls()
        assert calls is not None
        self.real_take, self.real_send = calls
        self.faults = faults
        self.datagrams = Together(sock, SIZE_MAX, self.take, self.send)

    def take(self, *arguments: int) -> int:
        fault = self.faults.pop(0) if self.faults else None
        if fault is None:
            return self.real_take(*arguments)
        ctypes.set_errno(fault)
        return -1

    def send(self, fd: int, entries: int, count: int, flags: int) -> int:
        """Send as many as go well; those after the first that does not are left, as the kernel leaves them."""
        sent = 0
        step = ctypes.sizeof(datagrams._Entry)
        for n in range(count):
            fault = self.faults.pop(0) if self.faults else None
            if fault is not None:
                if sent:
                    self.faults.insert(0, fault)
                    return sent
                ctypes.set_errno(fault)
                return -1
            sent += self.real_send(fd, entries + n * step, 1, flags)
        return sent


@pytest.mark.skipif(sys.platform != "linux", reason="the calls are Linux'")
@pytest.mark.parametrize("fault", [errno.EINTR, errno.ECONNREFUSED, errno.EHOSTUNREACH])
@pytest.mark.parametrize("times", [1, TRIES_MAX - 1])
def test_what_became_of_an_earlier_datagram_keeps_no_later_one_waiting(fault: int, times: int) -> None:
    pair = Pair(lambda sock: Kernel(sock, [fault] * times).datagrams, socket.AF_INET)
    pair.peer.send(b"1")
    assert [data for _, data in pair.take()] == [b"1"]
    pair.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the calls are Linux'")
def test_a_socket_that_only_fails_ends_the_turn() -> None:
    pair = Pair(lambda sock: Kernel(sock, [errno.ENOMEM] * 100).datagrams, socket.AF_INET)
    pair.peer.send(b"1")
    assert pair.take() == []
    pair.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the calls are Linux'")
@given(
    st.lists(st.sampled_from([None, None, errno.ENOBUFS, errno.EAGAIN, errno.EMSGSIZE, errno.EPERM]), max_size=COUNT),
    st.integers(1, COUNT),
)
def test_faults_on_the_way_out_cost_one_datagram_each(faults: list[int | None], count: int) -> None:
    left = list(faults)
    kernels: list[Kernel] = []

    def make(sock: socket.socket) -> Datagrams:
        kernels.append(Kernel(sock, []))
        return kernels[0].datagrams

    pair = Pair(make, socket.AF_INET)
    name = pair.name()
    pair.peer.send(b"?")
    pair.take()
    kernels[0].faults = left
    for n in range(count):
        pair.datagrams.send(name, b"%d" % n)
    pair.datagrams.flush()
    lost = {n for n, fault in enumerate(faults[:count]) if fault is not None}
    assert [pair.peer.recv(100) for n in range(count) if n not in lost] == [b"%d" % n for n in range(count) if n not in lost]
    assert pair.silent()
    pair.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the calls are Linux'")
def test_an_interrupted_call_sends_what_is_left() -> None:
    kernels: list[Kernel] = []

    def make(sock: socket.socket) -> Datagrams:
        kernels.append(Kernel(sock, []))
        return kernels[0].datagrams

    pair = Pair(make, socket.AF_INET)
    name = pair.name()
    pair.peer.send(b"?")
    pair.take()
    kernels[0].faults = [None, errno.EINTR, errno.EINTR, None]
    for n in range(3):
        pair.datagrams.send(name, b"%d" % n)
    pair.datagrams.flush()
    assert [pair.peer.recv(100) for _ in range(3)] == [b"0", b"1", b"2"]
    pair.close()


def test_nothing_is_sent_by_a_socket_that_is_closed_though_its_number_is_anothers(pair: Pair) -> None:
    name = pair.name()
    number = pair.sock.fileno()
    pair.sock.close()
    with socket.socket(pair.peer.family, socket.SOCK_DGRAM) as other:
        taken = other.fileno() == number or os.dup2(other.fileno(), number)
        pair.datagrams.send(name, b"stray")
        pair.datagrams.flush()
        assert pair.take() == []
        if taken is not True:
            os.close(number)
    pair.peer.setblocking(False)
    with pytest.raises(OSError):
        pair.peer.recv(100)


@pytest.mark.skipif(sys.platform != "linux" or not has(socket.AF_INET6), reason="Linux with IPv6")
def test_a_link_local_address_is_written_as_the_socket_module_writes_it() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        name = struct.pack("=H2s4s16sI", socket.AF_INET6, b"\x16\x33", bytes(4), socket.inet_pton(socket.AF_INET6, "fe80::1"), 1)
        zone = socket.if_indextoname(1)
        assert datagrams_of(sock, SIZE_MAX).address(name) == (f"fe80::1%{zone}", 5683, 0, 1)


def test_without_the_calls_it_goes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: object, **named: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert isinstance(datagrams_of(sock, SIZE_MAX), OneByOne)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert isinstance(datagrams_of(sock, SIZE_MAX), OneByOne)
