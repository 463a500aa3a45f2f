"""The HTTP listener: what it passes on, what it answers, and that nothing a peer sends gets an exception out of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
import trio.lowlevel
from dfud_http.config import HttpConfig
from dfud_http.parse import RequestReader, split_target_untrusted
from dfud_http.transport import HttpTransport
from hypothesis import given, settings
from hypothesis import strategies as st

from dfud.api import Code, ConfigError, Reply
from dfud.testing.transport import AUTHORIZATION, PACKAGE, FakeEndpoint

AUTH = b"Authorization: " + AUTHORIZATION + b"\r\n"
CHUNKS = [bytes([n]) * (1000 + n) for n in range(8)]


class Served:
    """A running listener and the fake behind it."""

    def __init__(self, endpoint: FakeEndpoint, transport: HttpTransport, port: int) -> None:
        self.endpoint = endpoint
        self.transport = transport
        self.port = port
        self.connected: list[trio.SocketStream] = []

    async def connect(self) -> trio.SocketStream:
        """Return a connection, which is closed with the test if not before."""
        self.connected.append(await trio.open_tcp_stream("127.0.0.1", self.port))
        return self.connected[-1]

    async def keep(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            for stream in self.connected:
                await trio.aclose_forcefully(stream)

    async def ask(self, data: bytes) -> bytes:
        """Send `data`, and read until the listener closes."""
        stream = await self.connect()
        await stream.send_all(data)
        with trio.fail_after(120):
            return await read_all(stream)


async def read_all(stream: trio.SocketStream) -> bytes:
    out = b""
    try:
        while data := await stream.receive_some(65536):
            out += data
    except trio.BrokenResourceError:
        pass
    return out


async def read_answer(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """Return (head, body) of one answer with a content-length."""
    data = b""
    with trio.fail_after(120):
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some(1) or b"<closed>\r\n\r\ncontent-length: 0"
        head = data.partition(b"\r\n\r\n")[0]
        length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
        body = b""
        while len(body) < length:
            body += await stream.receive_some(length - len(body))
    return head, body


def post(path: str = "/v1/dfu", body: bytes = b"\x81", headers: bytes = AUTH, *, close: bool = False) -> bytes:
    end = b"Connection: close\r\n" if close else b""
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s%sContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        headers,
        end,
        len(body),
        body,
    )


def get(path: str, headers: bytes = AUTH, *, close: bool = True, method: bytes = b"GET") -> bytes:
    return b"%s %s HTTP/1.1\r\nHost: x\r\n%s%s\r\n" % (
        method,
        path.encode(),
        headers,
        b"Connection: close\r\n" if close else b"",
    )


async def serve(nursery: trio.Nursery, **options: object) -> Served:
    endpoint = FakeEndpoint(packages={PACKAGE: CHUNKS}, quickly=False)
    transport = HttpTransport(HttpConfig(port=0, **options))  # type: ignore[arg-type]  # tests name what they set
    urls = await nursery.start(transport.run, endpoint)
    served = Served(endpoint, transport, int(urls[0].rpartition(":")[2]))
    nursery.start_soon(served.keep)
    return served


@pytest.fixture
async def served(nursery: trio.Nursery) -> AsyncIterator[Served]:
    yield await serve(nursery)


async def test_a_status_is_passed_on_and_answered_with_a_command(served: Served) -> None:
    answer = await served.ask(post("/v1/dfu?ct=0", b"\x81\x00\x01", close=True))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\ncommand: dfu\r\n")
    assert answer.endswith(b"\r\n\r\n\x81\x00\x01")
    (request,) = served.endpoint.requests
    assert (request.channel, request.body, request.peer) == ("dfu", b"\x81\x00\x01", "127.0.0.1")
    assert request.credentials.authorization == AUTHORIZATION
    assert not request.encrypted


async def test_telemetry_keeps_its_topic_and_parameters(served: Served) -> None:
    served.endpoint.answers["temp"] = Reply(Code.ACCEPTED)
    path = "/v1/temp/in/side?application=a%20b&device=d&as=other&data_schema=s&ct=3"
    answer = await served.ask(post(path, b"{}", AUTH + b"Content-Type: application/json\r\n", close=True))
    assert answer.startswith(b"HTTP/1.1 202 Accepted")
    (request,) = served.endpoint.requests
    assert (request.channel, request.topic, request.as_device, request.data_schema) == ("temp", "in/side", "other", "s")
    assert (request.credentials.application, request.credentials.device) == ("a b", "d")
    assert request.timeout_s == 3.0


@pytest.mark.parametrize("quick", [False, True])
async def test_a_connection_is_kept_and_requests_may_come_ahead(served: Served, quick: bool) -> None:
    served.endpoint.quickly = quick
    answer = await served.ask(post() * 9 + get("/", close=True))
    assert answer.count(b"HTTP/1.1 200 OK") == 10
    assert len(served.endpoint.requests) == 9


@pytest.mark.parametrize("quick", [False, True])
async def test_chunks_come_one_or_many(served: Served, quick: bool) -> None:
    served.endpoint.quickly = quick
    one = await served.ask(get(f"/v1/dfu/{PACKAGE}/2"))
    assert f'etag: "{PACKAGE}-2"'.encode() in one
    assert one.endswith(b"\r\n\r\n" + CHUNKS[2])
    many = await served.ask(get(f"/v1/dfu/{PACKAGE}/2-4"))
    assert many.endswith(b"\r\n\r\n" + b"".join(CHUNKS[2:5]))
    assert (
        await served.ask(get(f"/v1/dfu/{PACKAGE}/2", AUTH + b'If-None-Match: "%s-2"\r\n' % PACKAGE.encode()))
    ).startswith(b"HTTP/1.1 304")
    head = await served.ask(get(f"/v1/dfu/{PACKAGE}/2", method=b"HEAD"))
    assert b"content-length: 1002\r\n" in head
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("/v1/dfu", headers=b"", close=True), b"403"),
        (get(f"/v1/dfu/{PACKAGE}/0", b""), b"403"),
        (get(f"/v1/dfu/{PACKAGE}/99"), b"404"),
        (get(f"/v1/dfu/{PACKAGE}/x"), b"404"),
        (get(f"/v1/dfu/{PACKAGE}/1-"), b"404"),
        (get("/v1/dfu/short/1"), b"404"),
        (get("/nothing"), b"404"),
        (post("/v1/", close=True), b"404"),
        (post("/v1/dfu?ct=soon", close=True), b"400"),
        (post("/v1/dfu?ct=-1", close=True), b"400"),
        (b"PUT / HTTP/1.1\r\nConnection: close\r\n\r\n", b"405"),
        (post("/v1/t", b"{", AUTH + b"Content-Type: application/json; charset=utf-8\r\n", close=True), b"406"),
        (post("/v1/t", b"[" * 60000, AUTH + b"Content-Type: a/b+json\r\n", close=True), b"406"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n", b"431"),
        (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"400"),
        (
            b"POST /v1/dfu HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"4000\r\n" + b"x" * 0x4000 + b"\r\n" * 1,
            b"408",
        ),
        (
            b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: !!\r\n\r\n",
            b"400",
        ),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: \xff\r\n\r\n\x81\x00", b"400"),
        (b"POST /v1/%ff HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", b"400"),
    ],
)
async def test_what_is_wrong_gets_its_status_and_the_listener_lives(
    nursery: trio.Nursery, request_bytes: bytes, status: bytes
) -> None:
    served = await serve(nursery, request_s=0.3)
    answer = await served.ask(request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert (await served.ask(get("/"))).startswith(b"HTTP/1.1 200")


async def test_a_body_in_chunks_is_limited_too(nursery: trio.Nursery) -> None:
    served = await serve(nursery)
    body = b"POST /v1/dfu HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"x" * 0x1000 + b"\r\n") * 17
    assert (await served.ask(body)).startswith(b"HTTP/1.1 413")


async def test_continue_is_said_before_a_body_is_sent(served: Served) -> None:
    stream = await served.connect()
    await stream.send_all(b"POST /v1/dfu HTTP/1.1\r\n" + AUTH + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    head, _ = await read_answer(stream)
    assert head == b"HTTP/1.1 100 Continue"
    await stream.send_all(b"\x81\x00\x01")
    head, _ = await read_answer(stream)
    assert head.startswith(b"HTTP/1.1 200")


async def test_a_parked_request_is_woken(served: Served) -> None:
    stream = await served.connect()
    await stream.send_all(post("/v1/dfu?ct=60"))
    await wait_for(lambda: len(served.endpoint.parked) == 1)
    served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"new"))
    head, body = await read_answer(stream)
    assert (head[:12], body) == (b"HTTP/1.1 200", b"new")


async def test_a_parked_request_ends_with_its_time(served: Served) -> None:
    assert (await served.ask(post("/v1/dfu?commandTimeout=1", close=True))).startswith(b"HTTP/1.1 202")
    assert not served.endpoint.parked


async def test_a_peer_that_goes_while_it_is_parked_is_noticed(served: Served) -> None:
    stream = await served.connect()
    await stream.send_all(post("/v1/dfu?ct=60"))
    await wait_for(lambda: len(served.endpoint.parked) == 1)
    await stream.aclose()
    await wait_for(lambda: served.endpoint.last_waiting is not None and served.endpoint.last_waiting.ended == "cancelled")
    assert not served.endpoint.parked


async def test_requests_behind_a_parked_one_keep_their_turn(served: Served) -> None:
    stream = await served.connect()
    await stream.send_all(post("/v1/dfu?ct=60") + post("/v1/dfu?ct=0", b"second"))
    await wait_for(lambda: len(served.endpoint.parked) == 1)
    served.endpoint.wake(Reply(Code.COMMAND, "dfu", b"one"))
    assert (await read_answer(stream))[1] == b"one"
    assert (await read_answer(stream))[1] == b"second"


async def test_draining_answers_what_is_parked_and_closes_what_is_idle(served: Served) -> None:
    parked, idle = await served.connect(), await served.connect()
    await parked.send_all(post("/v1/dfu?ct=60"))
    await idle.send_all(get("/", close=False))
    assert (await read_answer(idle))[0].startswith(b"HTTP/1.1 200")
    await wait_for(lambda: len(served.endpoint.parked) == 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.transport.drain)
        await wait_for(lambda: served.endpoint.wake(Reply(Code.ACCEPTED)) != 0)
        assert (await read_all(parked)).startswith(b"HTTP/1.1 202")
        assert await read_all(idle) == b""
    with pytest.raises(OSError):
        await served.connect()


async def test_a_silent_connection_is_closed(nursery: trio.Nursery) -> None:
    served = await serve(nursery, idle_s=0.1)
    assert await served.ask(b"") == b""


async def test_a_request_that_drips_is_given_up(nursery: trio.Nursery) -> None:
    served = await serve(nursery, request_s=0.3)
    stream = await served.connect()
    answer = b""
    async with trio.open_nursery() as dripping:

        async def drip() -> None:
            try:
                for byte in post():
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.05)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

        dripping.start_soon(drip)
        answer = await read_all(stream)
        dripping.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_peer_that_does_not_read_is_given_up(nursery: trio.Nursery) -> None:
    served = await serve(nursery, send_s=0.2)
    served.endpoint.packages = {PACKAGE: [bytes(3_000_000)] * 8}
    stream = await served.connect()
    await stream.send_all(get(f"/v1/dfu/{PACKAGE}/0-7", close=False) * 8)
    await wait_for(lambda: len(served.endpoint.fetches) >= 1)
    await wait_for(lambda: served.transport._open == 0)


async def test_connections_are_limited_by_address_and_in_total(nursery: trio.Nursery) -> None:
    for options in ({"connections": 2}, {"connections_per_address": 2}):
        served = await serve(nursery, **options)
        kept = [await served.connect() for _ in range(2)]
        for stream in kept:
            await stream.send_all(get("/", close=False))
            await read_answer(stream)
        assert (await served.ask(get("/"))).startswith(b"HTTP/1.1 503")
        await kept[0].aclose()
        await wait_for(lambda served=served: served.transport._open == 1)
        assert (await served.ask(get("/"))).startswith(b"HTTP/1.1 200")


async def test_every_cut_of_a_good_request_gives_the_same_answer(served: Served) -> None:
    whole = post("/v1/dfu?ct=0", b"\x81\x00\x01", close=True)
    for cut in range(1, len(whole), 7):
        stream = await served.connect()
        stream.setsockopt(6, 1, 1)
        await stream.send_all(whole[:cut])
        await trio.lowlevel.checkpoint()
        await stream.send_all(whole[cut:])
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200"), cut


async def test_a_thousand_mutilated_requests_do_not_end_the_listener(nursery: trio.Nursery) -> None:
    served = await serve(nursery, request_s=0.5, idle_s=0.5)
    rng = random.Random(seed := random.randrange(1 << 32))
    good = [post(), get("/"), post("/v1/a/b?ct=0", b"{}"), get(f"/v1/dfu/{PACKAGE}/1-3")]

    async def attack() -> None:
        for _ in range(40):
            data = bytearray(rng.choice(good) * rng.choice((1, 1, 3)))
            for _ in range(rng.choice((1, 3, 12))):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
            stream = await served.connect()
            try:
                await stream.send_all(bytes(data[: rng.randrange(len(data) + 1)]))
                if rng.random() < 0.5:
                    await stream.send_eof()
                    await read_all(stream)
            except trio.BrokenResourceError:
                pass
            await stream.aclose()

    async with trio.open_nursery() as attackers:
        for _ in range(25):
            attackers.start_soon(attack)
    assert (await served.ask(get("/"))).startswith(b"HTTP/1.1 200"), seed


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=12))
def test_the_reader_never_raises(pieces: list[bytes]) -> None:
    reader = RequestReader(HttpConfig(header_max=512, body_max=4096))
    for piece in pieces:
        reader.feed(piece)
    for request in reader.requests:
        split_target_untrusted(request.target)


@given(st.binary(max_size=80))
def test_targets_never_raise(target: bytes) -> None:
    split_target_untrusted(target)
    split_target_untrusted(b"/" + target)


def test_plain_http_is_for_loopback_unless_allowed() -> None:
    with pytest.raises(ConfigError, match=r"\[transport.http\] host 0\.0\.0\.0 is not loopback"):
        HttpTransport(HttpConfig(host="0.0.0.0"))
    HttpTransport(HttpConfig(host="0.0.0.0", allow_plain=True))
    with pytest.raises(ConfigError, match="need a certificate"):
        HttpTransport(HttpConfig(client_required=True))
    with pytest.raises(ConfigError, match="nothing.pem"):
        HttpTransport(HttpConfig(certificate="nothing.pem"))


async def test_a_port_that_is_taken_is_a_clear_error(served: Served) -> None:
    with pytest.raises(ConfigError, match="cannot listen on 127.0.0.1"):
        await HttpTransport(HttpConfig(port=served.port)).run(served.endpoint)


async def wait_for(condition: object) -> None:
    with trio.fail_after(120):
        while not condition():  # type: ignore[operator]  # a callable without arguments
            await trio.sleep(0.005)
