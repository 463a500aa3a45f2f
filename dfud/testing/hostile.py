"""What a stranger does to a transport, and what others notice of it: rubbish, peers that hang up or stall, exceptions behind it.

Part of `TransportConformance`; alone for a transport that carries less than the whole promise:

    class TestMyTransport(TransportContainment):
        @pytest.fixture
        def transport(self): ...
        @pytest.fixture
        def peer(self): ...                  # a TransportPeer; its `datagrams` and `samples` say what may be thrown at it
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from urllib.parse import urlsplit

import pytest
import trio

from dfud.api import Code, Reply, Transport
from dfud.testing.fake_endpoint import FakeEndpoint
from dfud.testing.peer import Publish, TransportPeer

STATUS = b"\x81\x00\x01"
STALLING = 40
READING_NOTHING = 8
UNREAD = 200  # requests of one of them: more answers than a socket takes
DATAGRAM_MAX_BYTES = 60_000  # of loopback
DEEP = [b"[" * 60_000, b'{"a":' * 10_000, b"\x91" * 60_000, b"\x81\x00" * 30_000, b"\x9f" * 60_000]
NUMBERS = [b"1e999", b"-1e999", b"NaN", b"9" * 6000, b'{"chunk":1e999}', b"\xcf" + b"\xff" * 8, b"\x1b" + b"\xff" * 8]


def rubbish(seed: int, samples: Sequence[bytes]) -> Iterator[bytes]:
    """Yield what a transport may be sent: anything, deep things, huge numbers, and what is right but for a few bytes."""
    rng = random.Random(seed)
    yield b""
    for data in (*DEEP, *NUMBERS):
        yield data
        yield data + b"\n"
        yield data + b"\r\n\r\n"
    for size in (1, 2, 4, 12, 100, 1500, 20_000):
        yield rng.randbytes(size)
        yield rng.randbytes(size) + b"\n"
    for sample in samples:
        for _ in range(12):
            yield sample[: rng.randrange(len(sample) + 1)]
            mutant = bytearray(sample)
            for _ in range(rng.choice((1, 2, 8))):
                at = rng.randrange(len(mutant))
                mutant[at : at + rng.randrange(3)] = rng.choice(
                    (rng.randbytes(rng.randrange(4)), *NUMBERS[:3], b"[" * 2000)
                )
            yield bytes(mutant)
        yield sample + rng.randbytes(rng.randrange(1, 300))  # a right one in front of it


class Raw:
    """A stranger's bare end: a connection, or a socket for datagrams. Closed when its `with` ends, also where a check fails."""

    def __init__(self, sock: trio.socket.SocketType, *, datagrams: bool) -> None:
        self._sock = sock
        self._datagrams = datagrams

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *raised: object) -> None:
        self.hang_up()

    async def send(self, data: bytes) -> None:
        """Send all of it, or as much as the other side takes. It may have hung up: that is its right."""
        with contextlib.suppress(OSError), trio.move_on_after(2):
            if self._datagrams:
                await self._sock.send(data[:DATAGRAM_MAX_BYTES])
            while data and not self._datagrams:
                data = data[await self._sock.send(data) :]

    def hang_up(self, *, reset: bool = False) -> None:
        """Go. reset: with a RST, so that whoever reads or writes there meets an error instead of an end."""
        if reset and not self._datagrams:
            self._sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


async def connect(url: str, peer: TransportPeer) -> Raw:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 0
    kind = trio.socket.SOCK_DGRAM if peer.datagrams else trio.socket.SOCK_STREAM
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    sock = trio.socket.socket(family, kind)
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return Raw(sock, datagrams=peer.datagrams)


class TransportContainment:
    """Nothing that a peer sends, and nothing that happens behind the transport, costs more than itself."""

    answer_time_s = 30.0

    @pytest.fixture
    def endpoint(self) -> FakeEndpoint:
        return FakeEndpoint()

    @pytest.fixture
    async def url(self, transport: Transport, endpoint: FakeEndpoint, nursery: trio.Nursery) -> AsyncIterator[str]:
        urls = await nursery.start(transport.run, endpoint)
        yield urls[0]
        nursery.cancel_scope.cancel()

    async def honest(self, url: str, peer: TransportPeer) -> None:
        """One exchange of somebody else: it is answered, and rightly."""
        with trio.fail_after(self.answer_time_s):
            reply = await peer.publish(url, Publish("dfu", STATUS))
        assert (reply.code, reply.body) == (Code.COMMAND, STATUS)

    async def test_rubbish_costs_its_own_connection_at_most(self, url: str, peer: TransportPeer) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # shown when it fails
        await self.honest(url, peer)
        for number, data in enumerate(rubbish(seed, peer.samples())):
            with await connect(url, peer) as raw:
                await raw.send(data)
                raw.hang_up(reset=number % 3 == 0)
            if number % 16 == 0:
                await self.honest(url, peer)
        await self.honest(url, peer)

    async def test_peers_that_stall_keep_nobody_waiting(self, url: str, peer: TransportPeer) -> None:
        samples = [s for s in peer.samples() if s] or [b"\0" * 8]
        with contextlib.ExitStack() as stalled:
            for number in range(STALLING):
                raw = stalled.enter_context(await connect(url, peer))
                sample = samples[number % len(samples)]
                await raw.send(sample[: number * len(sample) // STALLING])
            await self.honest(url, peer)
        await self.honest(url, peer)

    async def test_peers_that_hang_up_while_they_are_answered_cost_nobody(self, url: str, peer: TransportPeer) -> None:
        for patience_s in (0.0, 0.0005, 0.002, 0.01):
            for _ in range(5):
                with trio.move_on_after(patience_s):
                    await peer.publish(url, Publish("dfu", STATUS))
        for sample in peer.samples():
            for reset in (False, True):
                with await connect(url, peer) as raw:
                    await raw.send(sample)
                    raw.hang_up(reset=reset)
        await self.honest(url, peer)

    async def test_peers_that_hang_up_in_the_middle_of_a_request_cost_nobody(
        self, url: str, peer: TransportPeer
    ) -> None:
        for sample in peer.samples():
            for part in (1, len(sample) // 3, len(sample) // 2, len(sample) - 1):
                for reset in (False, True):
                    with await connect(url, peer) as raw:
                        await raw.send(sample[:part])
                        raw.hang_up(reset=reset)
        await self.honest(url, peer)

    async def test_peers_that_never_read_their_answers_keep_nobody_waiting(self, url: str, peer: TransportPeer) -> None:
        with contextlib.ExitStack() as stalled:
            for number in range(READING_NOTHING):
                raw = stalled.enter_context(await connect(url, peer))
                stalled.callback(raw.hang_up, reset=True)
                sample = [*peer.samples(), b"\0" * 8][number % (len(peer.samples()) or 1)]
                with trio.move_on_after(1):
                    for _ in range(UNREAD):
                        await raw.send(sample)
            await self.honest(url, peer)
        await self.honest(url, peer)

    @pytest.mark.parametrize("error", [RuntimeError("a bug"), ExceptionGroup("group", [KeyError("a bug")])])
    @pytest.mark.parametrize("quickly", [True, False])
    async def test_an_exception_behind_it_costs_one_request(
        self, url: str, endpoint: FakeEndpoint, peer: TransportPeer, error: Exception, quickly: bool
    ) -> None:
        endpoint.quickly = quickly
        endpoint.failing = error
        reply: Reply | None = None
        # A transport may answer with its word for 500, or end the connection; a peer may take the latter as it likes.
        with contextlib.suppress(Exception), trio.move_on_after(self.answer_time_s):
            reply = await peer.publish(url, Publish("dfu", STATUS))
        assert reply is None or reply.code is Code.FAILED or not reply.body
        endpoint.failing = None
        await self.honest(url, peer)

    async def test_it_can_be_run_again_after_it_has_failed(
        self, transport: Transport, endpoint: FakeEndpoint, peer: TransportPeer
    ) -> None:
        for _ in range(2):
            async with trio.open_nursery() as running:
                urls = await running.start(transport.run, endpoint)
                await self.honest(urls[0], peer)
                running.cancel_scope.cancel()

    async def _until(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`, at most answer_time_s; polls, for what is waited for is no event of trio's."""
        with trio.fail_after(self.answer_time_s):
            while not true():  # noqa: ASYNC110 - as the docstring says
                await trio.sleep(0.005)
