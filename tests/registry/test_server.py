"""hypercorn's and quart-trio's defects stay cured. Each test says which; each fails without its cure."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from quart import Response, request
from quart_trio import QuartTrio

import dfud.registry.server as server
from dfud.api import ConfigError, faults
from dfud.registry.config import RegistryConfig
from dfud.registry.server import hypercorn_config, serve


class Served:
    def __init__(self, port: int, shutdown: trio.Event) -> None:
        self.port = port
        self.shutdown = shutdown
        self.ended = trio.Event()

    async def ask(self, data: bytes, *, timeout_s: float = 120) -> bytes:
        """Send, and read until the server closes."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        await stream.send_all(data)
        out = b""
        with trio.fail_after(timeout_s):
            try:
                while piece := await stream.receive_some(65536):
                    out += piece
            except trio.BrokenResourceError:
                pass
        return out


def application(shutdown: trio.Event) -> QuartTrio:
    app = QuartTrio("test")

    @app.get("/")
    async def root() -> str:
        return "hello"

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(50_000_000))

    @app.get("/events")
    async def events() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            yield b"first\n"
            await shutdown.wait()
            yield b"last\n"

        return Response(lines(), content_type="text/plain")

    @app.post("/refused")
    async def refused() -> tuple[str, int]:
        return "not now", 409

    @app.post("/slow")
    async def slow() -> str:
        body = await request.get_data()
        await trio.sleep(1.5)
        return f"{len(body)}"

    return app


@pytest.fixture
def idle_s() -> float:
    return 1.0


@pytest.fixture
async def served(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, idle_s: float) -> AsyncIterator[Served]:
    monkeypatch.setattr(server, "IDLE_S", idle_s)
    monkeypatch.setattr(server, "SEND_S", 1.0)
    shutdown = trio.Event()

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        config = RegistryConfig(port=0)
        await serve(application(shutdown), config, graceful_s=2.0, shutdown=shutdown, task_status=task_status)
        ended.set()

    ended = trio.Event()
    urls = await nursery.start(run)
    found = Served(int(urls[0].rpartition(":")[2]), shutdown)
    found.ended = ended
    yield found
    shutdown.set()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n%s\r\n"
CLOSE = GET % b"Connection: close\r\n"
WEBSOCKET = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
WEBSOCKET += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET % b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n",
        WEBSOCKET + b"X-Name: \xff\xfe\r\n\r\n",
        WEBSOCKET + b"\r\n\x81\x85\x00\x00\x00\x00hello",
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_one_malformed_request_does_not_end_the_process(served: Served, request_bytes: bytes) -> None:
    """D1."""
    await served.ask(request_bytes)
    assert b"200" in (await served.ask(CLOSE))[:20]


async def test_an_idle_connection_is_closed(served: Served) -> None:
    """D2, first half."""
    assert (await served.ask(GET % b"", timeout_s=60)).endswith(b"hello")


@pytest.mark.parametrize("data", [CLOSE, b"GET / HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("idle_s", [3600.0])
async def test_a_peer_that_asks_for_it_is_closed_at_once(served: Served, data: bytes) -> None:
    """D2, second half: the idle timer would close it in an hour."""
    assert (await served.ask(data, timeout_s=60)).endswith(b"hello")


async def test_a_peer_that_stops_reading_does_not_hold_the_end(served: Served) -> None:
    """D3."""
    stream = await trio.open_tcp_stream("127.0.0.1", served.port)
    await stream.send_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await stream.receive_some(10)
    served.shutdown.set()
    with trio.fail_after(60):
        await served.ended.wait()


async def test_what_lasts_is_ended_in_order_at_the_end(served: Served, nursery: trio.Nursery) -> None:
    """D4."""
    answer: list[bytes] = []

    async def listen() -> None:
        answer.append(await served.ask(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"))

    async with trio.open_nursery() as listening:
        listening.start_soon(listen)
        await trio.sleep(0.3)
        served.shutdown.set()
    assert b"first" in answer[0]
    assert b"last" in answer[0]
    assert answer[0].endswith(b"0\r\n\r\n")


async def test_an_answer_that_takes_long_leaves_its_connection_usable(served: Served) -> None:
    """D5: no read timeout runs while an answer is being made."""
    assert hypercorn_config(RegistryConfig(), 1).read_timeout is None
    slow = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    answer = await served.ask(slow + CLOSE)
    assert answer.count(b"HTTP/1.1 200") == 2


def test_plain_http_is_for_loopback_unless_allowed() -> None:
    with pytest.raises(ConfigError, match=r"\[registry\] host 0\.0\.0\.0 is not loopback"):
        hypercorn_config(RegistryConfig(host="0.0.0.0"), 1)
    hypercorn_config(RegistryConfig(host="0.0.0.0", allow_plain=True), 1)


def test_what_is_no_network_of_proxies_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trusted_proxies 'proxy.example.com', expected an address or a network"):
        hypercorn_config(RegistryConfig(trusted_proxies=["10.0.0.0/8", "proxy.example.com"]), 1)


def test_a_trusted_proxy_has_as_many_connections_as_there_are() -> None:
    config = RegistryConfig(connections=5, connections_per_address=2, trusted_proxies=["10.0.0.0/8"])
    settings = hypercorn_config(config, 1)
    assert isinstance(settings, server._Settings)
    assert [settings.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert [settings.enter("10.0.0.1") for _ in range(4)] == [True, True, True, False]
    settings.leave("10.0.0.1")
    assert settings.enter("10.0.0.1")


async def test_a_port_that_is_taken_is_a_clear_error(served: Served) -> None:
    with pytest.raises(ConfigError, match="cannot listen on 127"):
        await serve(None, RegistryConfig(port=served.port), graceful_s=1, shutdown=trio.Event())


async def test_connections_beyond_the_limit_are_closed_and_others_get_their_turn(nursery: trio.Nursery) -> None:
    shutdown = trio.Event()
    config = RegistryConfig(port=0, connections=5, connections_per_address=3)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(application(shutdown), config, graceful_s=1.0, shutdown=shutdown, task_status=task_status)

    urls = await nursery.start(run)
    found = Served(int(urls[0].rpartition(":")[2]), shutdown)
    held = []
    for _ in range(3):
        stream = await trio.open_tcp_stream("127.0.0.1", found.port)
        await stream.send_all(GET % b"")
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200")
        held.append(stream)
    for _ in range(3):
        assert await found.ask(CLOSE) == b"", "one too many"
    await held.pop().aclose()
    with trio.fail_after(120):
        while not (await found.ask(CLOSE)).startswith(b"HTTP/1.1 200"):
            await trio.sleep(0.02)
    shutdown.set()


async def test_an_answer_before_the_body_was_read_says_that_the_connection_ends(served: Served) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=120) as client:
        for _ in range(20):
            early = await client.post("/refused", content=bytes(30_000))
            assert (early.status_code, early.text, early.headers["connection"]) == (409, "not now", "close")
            for kept in (await client.get("/"), await client.post("/refused")):
                assert kept.headers.get("connection") is None


async def test_a_body_that_is_malformed_while_it_is_answered_ends_its_connection_without_an_exception(served: Served) -> None:
    before = faults()
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    for path in (b"/", b"/refused", b"/nowhere"):
        for rest in (b"\xb6\r\n", b"5\r\nabcde\r\nzz\r\n", b"0\r\n\r\nrubbish\0\r\n\r\n"):
            for _ in range(15):
                await served.ask(head % path + rest)
    assert faults() == before
