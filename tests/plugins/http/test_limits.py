"""What strangers may make the listener hold, measured from outside, and what others notice of it."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
from dfud_http.budget import FREE_BYTES, Budget
from dfud_http.config import HttpConfig
from dfud_http.lot import RECEIVE_BYTES
from dfud_http.parse import RequestReader
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Code, Reply
from tests.plugins.http.served import Process, listening
from tests.plugins.http.test_listener import AUTH, get, post, read_all, read_answer, serve, wait_for
from tests.plugins.http.test_tls import ask, make_certificate, start

STRANGERS = 400
MIB = 1 << 20
CHUNKED = b"POST /v1/dfu HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"POST /v1/dfu HTTP/1.1\r\nContent-Length: 65536\r\n\r\n"
ATTACKS = {
    "chunks of two bytes": CHUNKED + b"2\r\nxx\r\n" * 32_000,
    "headers of two bytes": b"GET / HTTP/1.1\r\n" + b"".join(b"%x:\r\n" % n for n in range(1300)),
    "requests ahead, answers not read": get("/", b"", close=False) * 4000,
    "bodies that never end": WHOLE + bytes(65_000),
    "pieces of one byte": CHUNKED + b"8000\r\n" + bytes(1000),
}


async def exchange(process: Process) -> bool:
    """One exchange of an honest device on a connection of its own."""
    with trio.fail_after(60):
        stream = await trio.open_tcp_stream("127.0.0.1", process.port)
        async with stream:
            await stream.send_all(post("/v1/dfu?ct=0", b"\x81\x00\x01", close=True))
            return (await read_all(stream)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("attack", ATTACKS)
async def test_strangers_fill_neither_memory_nor_the_place_of_others(attack: str) -> None:
    async with listening(connections=STRANGERS * 2) as process, trio.open_nursery() as nursery:
        assert await exchange(process)
        before = process.rss_bytes
        done = [0]

        async def stranger() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", process.port)
            async with stream:
                try:
                    with trio.move_on_after(2):
                        await stream.send_all(ATTACKS[attack])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                done[0] += 1
                await trio.sleep_forever()

        for _ in range(STRANGERS):
            nursery.start_soon(stranger)
        served = 0
        most = before
        while done[0] < STRANGERS or served < 5:
            served += await exchange(process)
            most = max(most, process.rss_bytes)
        grown = (most - before) / MIB
        assert grown < 80, f"{grown:.0f} MiB for {STRANGERS} strangers"
        nursery.cancel_scope.cancel()


async def test_who_empties_the_pool_stops_large_requests_only(nursery: trio.Nursery) -> None:
    served = await serve(nursery, held_max=1 << 20)
    kept = []
    for _ in range(24):
        stream = await served.connect()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(WHOLE + bytes(60_000))
        kept.append(stream)
    await wait_for(lambda: served.transport._budget.taken > 990_000)
    assert (await served.ask(WHOLE[:-2] + AUTH + b"\r\n" + bytes(65_536))).startswith(b"HTTP/1.1 503")
    assert (await served.ask(post("/v1/dfu?ct=0", bytes(2000), close=True))).startswith(b"HTTP/1.1 200")
    for stream in kept:
        await stream.aclose()
    await wait_for(lambda: served.transport._budget.taken == 0)
    assert (await served.ask(post("/v1/dfu?ct=0", bytes(60_000), close=True))).startswith(b"HTTP/1.1 200")


async def test_what_comes_while_a_request_is_parked_counts_too(nursery: trio.Nursery) -> None:
    served = await serve(nursery, held_max=1 << 20)
    parked = []
    for number in range(24):
        stream = await served.connect()
        await stream.send_all(post("/v1/dfu?ct=60"))
        await wait_for(lambda: len(served.endpoint.parked) == number + 1)  # noqa: B023
        await stream.send_all(WHOLE + bytes(60_000))
        parked.append(stream)

    def held() -> int:
        return sum(connection._reader.held for connection in served.transport._connections)

    await wait_for(lambda: served.transport._budget.taken > 990_000)
    await wait_for(lambda: any(c._reader.fault is not None for c in served.transport._connections))
    assert held() < (1 << 20) + 24 * (FREE_BYTES + RECEIVE_BYTES + 1024)
    served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"new"))
    for stream in parked:
        assert (await read_answer(stream))[1] == b"new", "who waited is answered all the same"
    assert (await read_all(parked[-1])).startswith(b"HTTP/1.1 503")
    for stream in parked:
        await stream.aclose()
    await wait_for(lambda: served.transport._budget.taken == 0)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (CHUNKED + b"1\r\nx\r\n" * 9, b"413"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 9 + b"\r\n", b"431"),
    ],
)
async def test_limits_on_pieces_and_lines(nursery: trio.Nursery, data: bytes, status: bytes) -> None:
    served = await serve(nursery, body_pieces=8, headers=8)
    assert (await served.ask(data)).startswith(b"HTTP/1.1 " + status)
    right = CHUNKED[:-2] + AUTH + b"Connection: close\r\n\r\n" + b"1\r\nx\r\n" * 7 + b"0\r\n\r\n"
    assert (await served.ask(right)).startswith(b"HTTP/1.1 200")


async def test_more_requests_ahead_than_are_allowed_end_the_connection_after_those_that_are(nursery: trio.Nursery) -> None:
    served = await serve(nursery, pipelined=4)
    answer = await served.ask(post() * 9)
    assert answer.count(b"HTTP/1.1 200") == 4 and answer.count(b"HTTP/1.1 429") == 1
    assert len(served.endpoint.requests) == 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40_000)), max_size=40))
def test_the_pool_never_gives_more_than_it_has_and_gets_all_back(steps: list[tuple[int, int]]) -> None:
    budget, held = Budget(60_000), [0] * 4
    for who, size in steps:
        if budget.change(held[who], size):
            held[who] = size
        else:
            assert size > FREE_BYTES
        assert budget.taken == sum(max(0, h - FREE_BYTES) for h in held) <= 60_000
    for size in held:
        assert budget.change(size, 0)
    assert budget.taken == 0


@given(st.lists(st.sampled_from([post(), get("/"), CHUNKED, b"1\r\nx\r\n", b"0\r\n\r\n", b"A: b\r\n", b"\r\n", b"\0"]), max_size=20))
def test_what_a_reader_holds_is_given_back_with_what_is_taken(pieces: list[bytes]) -> None:
    reader = RequestReader(HttpConfig())
    for piece in pieces:
        reader.feed(piece)
        assert reader.held >= sum(r.cost for r in reader.requests)
    unfinished = reader.held - sum(r.cost for r in reader.requests)
    while reader.requests:
        reader.take()
    assert reader.held == unfinished >= 0


# TLS


async def connect(port: int, address: str) -> trio.SocketStream:
    sock = trio.socket.socket()
    await sock.bind((address, 0))
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


async def test_a_connection_counts_before_its_handshake_is_done(nursery: trio.Nursery, tmp_path: Path) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    transport, _, port = await start(nursery, tmp_path, connections=3)
    silent = [await connect(port, "127.0.0.1") for _ in range(3)]
    await wait_for(lambda: transport._open == 3)
    with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
        assert await ask(port, tmp_path) == b"", "closed"
        raise trio.BrokenResourceError
    for stream in silent:
        await stream.aclose()
    await wait_for(lambda: transport._open == 0)
    assert (await ask(port, tmp_path)).startswith(b"HTTP/1.1 200")


async def test_strangers_who_stall_in_their_handshake_keep_nobody_at_another_address_waiting(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    transport, _, port = await start(nursery, tmp_path, handshakes=2, handshakes_per_address=1, handshake_s=300)
    stalled = [await connect(port, "127.0.0.2") for _ in range(40)]
    for stream in stalled:
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
    await wait_for(lambda: transport._handshakes.waiting == 39)
    assert transport._handshakes.taken == 1
    assert (await ask(port, tmp_path)).startswith(b"HTTP/1.1 200")
    for stream in stalled:
        await stream.aclose()
    await wait_for(lambda: transport._open == 0 and transport._handshakes.waiting == 0)


async def test_a_handshakes_time_begins_with_its_turn(
    nursery: trio.Nursery, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """The clock stands still but for the turns of those who stall: how long an honest handshake takes here does not count."""
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    transport, _, port = await start(nursery, tmp_path, handshakes=1, handshake_s=10)
    stalled = [await connect(port, "127.0.0.1") for _ in range(5)]
    for stream in stalled:
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
    told = []

    async def honest() -> None:
        told.append(await ask(port, tmp_path))

    async def until_waiting(count: int) -> None:
        while transport._handshakes.waiting != count:
            await trio.testing.wait_all_tasks_blocked(0.005)

    await until_waiting(4)
    nursery.start_soon(honest)
    await until_waiting(5)
    for left in (4, 3, 2, 1, 0):
        mock_clock.jump(10)
        await until_waiting(left)
    while not told:
        await trio.testing.wait_all_tasks_blocked(0.005)
    assert told[0].startswith(b"HTTP/1.1 200"), "five turns of others later"
    for stream in stalled:
        await stream.aclose()


async def test_while_the_endpoint_is_full_handshakes_wait_and_who_is_connected_does_not(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    monkeypatch.setattr("dfud_http.transport.LATER_S", 3600.0)
    transport, endpoint, port = await start(nursery, tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
    context.check_hostname = False
    stream = trio.SSLStream(await connect(port, "127.0.0.1"), context, server_hostname="localhost")
    await stream.do_handshake()
    endpoint.full = True
    answers: list[bytes] = []

    async def another() -> None:
        answers.append(await ask(port, tmp_path))

    nursery.start_soon(another)
    await wait_for(lambda: transport._handshakes.taken == 1)
    for _ in range(3):
        await stream.send_all(post(close=False))
        assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200")
    assert not answers, "its handshake waits"
    endpoint.full = False
    await wait_for(lambda: answers)
    assert answers[0].startswith(b"HTTP/1.1 200")
    await stream.transport_stream.aclose()


async def test_a_handshake_waits_for_its_turn_not_for_ever(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    monkeypatch.setattr("dfud_http.transport.LATER_S", 0.1)
    _, endpoint, port = await start(nursery, tmp_path)
    endpoint.full = True
    assert (await ask(port, tmp_path)).startswith(b"HTTP/1.1 200")


async def test_an_exception_costs_its_request_and_the_connection_goes_on(nursery: trio.Nursery) -> None:
    served = await serve(nursery)

    async def broken(request: object) -> None:
        raise ExceptionGroup("group", [RuntimeError("a bug")])

    right, served.endpoint.post = served.endpoint.post, broken  # type: ignore[method-assign,assignment]
    stream = await served.connect()
    await stream.send_all(post())
    head, body = await read_answer(stream)
    assert head.startswith(b"HTTP/1.1 500") and b"the log of dfud says why" in body
    served.endpoint.post = right  # type: ignore[method-assign]
    await stream.send_all(post())
    assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200")
    await stream.aclose()
