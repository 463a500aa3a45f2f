"""Behind a proxy that is trusted, a request is counted under the address of whom it names; nobody else is believed."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio
from dfud_http.config import HttpConfig
from dfud_http.forwarded import ForwardedReader, Proxies, cut
from dfud_http.parse import RequestReader
from dfud_http.quick import Quick
from dfud_http.transport import HttpTransport
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfud.api import Code, ConfigError, Reply, client_of
from dfud.model.address import networks
from dfud.testing.transport import AUTHORIZATION, PACKAGE
from tests.plugins.http.test_listener import AUTH, Served, get, post, read_all, read_answer, serve, wait_for
from tests.plugins.http.test_quick import basic, everybody, outcome, parsed  # noqa: F401  # a fixture
from tests.plugins.http.test_tls import make_certificate, start

PROXY = "10.0.0.1"
TRUSTED = ["10.0.0.0/8", "fd00::1"]
CONFIG = HttpConfig(trusted_proxies=TRUSTED)
PROXIES = Proxies(CONFIG)
HEALTHY = b"HTTP/1.1 200"


def forwarded(*values: str, name: bytes = b"X-Forwarded-For") -> bytes:
    return AUTH + b"".join(name + b": " + value.encode() + b"\r\n" for value in values)


def asked(quick: Quick, data: bytes, peer: str = PROXY) -> object:
    return quick.answer_proxied(data, peer, b"", PROXIES, encrypted=False)


@pytest.mark.parametrize("text", ["proxy.example.com", "10.0.0.0/33", ""])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[transport.http\] trusted_proxies '{text}', expected an address or a network"):
        HttpTransport(HttpConfig(trusted_proxies=["10.0.0.0/8", text]))


def test_a_head_is_parsed_once_for_all_behind_a_proxy(parsed: type[RequestReader]) -> None:  # noqa: F811
    endpoint = everybody()
    quick = Quick(endpoint, CONFIG)
    for number in range(50):
        headers = basic(number) + b"x-forwarded-for: 198.51.100.%d\r\n" % number
        for found in (asked(quick, post(headers=headers)), asked(quick, post(headers=headers + b"Host: y\r\n"))):
            assert isinstance(found, tuple)
    assert parsed.parsed == 2  # type: ignore[attr-defined]  # it counts
    assert [r.peer for r in endpoint.requests] == [f"198.51.100.{n}" for n in range(50) for _ in range(2)]


def test_a_head_that_is_known_is_answered_under_nobody_elses_address() -> None:
    endpoint = everybody()
    quick = Quick(endpoint, CONFIG)
    one, other = post(headers=forwarded("198.51.100.1")), post(headers=forwarded("198.51.100.2"))
    for _ in range(2):
        assert isinstance(quick.answer(one, "192.0.2.1", b"", encrypted=False), tuple)  # a stranger who sends the header
        for data, peer in ((one, PROXY), (other, PROXY), (one, "10.0.0.2"), (post(), PROXY), (other, "fd00::1")):
            assert isinstance(asked(quick, data, peer), tuple)
        assert isinstance(quick.answer(other, "192.0.2.2", b"", encrypted=False), tuple)
    client, another = "198.51.100.1", "198.51.100.2"
    assert [r.peer for r in endpoint.requests] == ["192.0.2.1", client, another, client, PROXY, another, "192.0.2.2"] * 2


NAMES = st.sampled_from(
    [b"X-Forwarded-For", b"x-forwarded-for", b"X-FORWARDED-FOR", b"X-Forwarded-For2", b"X-Forwarded", b"Host", b" X-Forwarded-For"]
)
HOP = st.sampled_from(
    [
        *("198.51.100.1", "10.2.3.4", "203.0.113.9:4711", "[2001:db8::1]:4711", "2001:db8::1", "::ffff:198.51.100.7"),
        *("unknown", "", "_x", "1.2.3", "\xe9", "fe80::1%eth0", "9" * 300),
    ]
)
VALUE = st.lists(HOP, max_size=4).map(lambda hops: ", ".join(hops).encode("latin-1"))
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\n\r\n"])
SEPARATORS = st.sampled_from([b": ", b": ", b":", b":\t", b" : ", b":  "])
PLAIN = st.sampled_from([b"198.51.100.1", b"198.51.100.2, 10.0.0.3", b"10.0.0.4", b"2001:db8::1", b"203.0.113.9:4711"])
RIGHT = PLAIN.map(lambda value: b"X-Forwarded-For: " + value + b"\r\n")
ODD = st.tuples(NAMES, SEPARATORS, st.one_of(VALUE, st.binary(max_size=12)), ENDS).map(b"".join)
HEADS = st.one_of(st.lists(RIGHT, max_size=3), st.lists(st.one_of(RIGHT, ODD), max_size=5))
STARTS = st.sampled_from(
    [
        *(b"POST /v1/dfu HTTP/1.1\r\n", b"POST /v1/dfu HTTP/1.1\n", b"\r\nPOST /v1/dfu HTTP/1.1\r\n"),
        *(b"POST /v1/x-forwarded-for HTTP/1.1\r\n", b"POST /v1/dfu?ct=9 HTTP/1.0\r\n", b"\r\n", b""),
    ]
)
BODIES = st.sampled_from(
    [
        *(b"Content-Length: 1\r\n\r\n\x81", b"\r\n", b"Content-Length: 2\r\n\r\n\x81"),
        b"Content-Length: 42\r\n\r\nX-Forwarded-For: 198.51.100.66\r\n\r\nxxxxxxxx",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n\x81\r\n0\r\nX-Forwarded-For: 198.51.100.66\r\n\r\n",
    ]
)


def judged(data: bytes) -> tuple[RequestReader, list[str]]:
    """Return what a parser makes of it, and which clients are named by the headers that it sees before the body."""
    heads: list[list[bytes]] = []

    class Noting(RequestReader):
        def on_message_begin(self) -> None:
            heads.append([])
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if name.lower() == b"x-forwarded-for" and not self._done:
                heads[-1].append(value)
            super().on_header(name, value)

    reader = Noting(CONFIG)
    reader.feed(data)
    return reader, [client_of(PROXY, [v.decode("latin-1") for v in values], networks(TRUSTED)) for values in heads]


@settings(deadline=None, max_examples=400)
@given(STARTS, HEADS, BODIES, st.booleans())
@example(b"POST /v1/dfu HTTP/1.1\r\n", [b"X-Forwarded-For: 198.51.100.1\r\n"], b"Content-Length: 1\r\n\r\n\x81", True)
@example(
    b"POST /v1/dfu HTTP/1.1\r\n",
    [b"X-Forwarded-For: 198.51.100.1\r\n"],
    b"Transfer-Encoding: chunked\r\n\r\n1\r\n\x81\r\n0\r\nX-Forwarded-For: 198.51.100.66\r\n\r\n",
    True,
)
def test_whatever_it_says_the_client_is_whom_the_parser_sees(start: bytes, heads: list[bytes], body: bytes, known: bool) -> None:
    endpoint, fresh = everybody(), everybody()
    quick = Quick(endpoint, CONFIG)
    for right in (post(headers=forwarded("198.51.100.3")), post(), get(f"/v1/dfu/{PACKAGE}/1", close=False)) if known else ():
        asked(quick, right)
    data = start + AUTH + b"".join(heads) + body
    reader, clients = judged(data)
    for _ in range(2):
        endpoint.requests.clear()
        found = asked(quick, data)
        if isinstance(found, RequestReader):
            assert isinstance(found, ForwardedReader)
            assert not endpoint.requests and (found.fault, found.mid_request) == (reader.fault, reader.mid_request)
            assert [PROXIES.client_of(PROXY, request) for request in found.requests] == clients[: len(found.requests)]
        else:
            assert len(reader.requests) == 1 and reader.fault is None and not reader.mid_request
            theirs = outcome(fresh, Quick(fresh, CONFIG).answer(data, clients[0], b"", encrypted=False))
            assert outcome(endpoint, found) == theirs
            assert [request.peer for request in endpoint.requests] in ([], clients)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\n\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\n\nX\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n",
        b"\r\nX-Forwarded-For: 198.51.100.1\r\nPOST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Forwarded-For: 198.51.100.1\r\n 198.51.100.2\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Forwarded-For: 198.51.100.1\r\nx-forwarded-for: 198.51.100.2\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Forwarded-For : 198.51.100.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Forwarded-For: unknown\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Forwarded-For: 198.51.100.1\r\n",
    ],
)
def test_where_lines_are_not_plain_the_parser_is_asked(data: bytes) -> None:
    assert cut(data) is None


@given(st.binary(max_size=60), VALUE)
def test_nothing_but_the_value_is_cut(more: bytes, value: bytes) -> None:
    data = b"POST / HTTP/1.1\r\nX-Forwarded-For: " + value + b"\r\n" + more + b"\r\n\r\n"
    found = cut(data)
    if found is not None and found[1]:
        before, after = data.split(found[1], 1) if found[1] in data else (b"", b"")
        assert found[0] == before + after


async def through(nursery: trio.Nursery, **options: object) -> Served:
    return await serve(nursery, trusted_proxies=["127.0.0.1"], **options)


@pytest.mark.parametrize("quickly", [True, False])
async def test_each_request_of_one_connection_is_its_own_clients(nursery: trio.Nursery, quickly: bool) -> None:
    served = await through(nursery)
    served.endpoint.quickly = quickly
    stream = await served.connect()
    clients = ["198.51.100.1", "198.51.100.2", "2001:db8::7", "198.51.100.1"]
    for client in clients:
        await stream.send_all(post(headers=forwarded(client)))
        assert (await read_answer(stream))[0].startswith(HEALTHY)
    assert [request.peer for request in served.endpoint.requests] == clients
    await stream.send_all(b"".join(post(headers=forwarded(client)) for client in clients))
    for _ in clients:
        assert (await read_answer(stream))[0].startswith(HEALTHY)
    assert [request.peer for request in served.endpoint.requests] == clients * 2
    await stream.aclose()


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        (AUTH, "127.0.0.1"),
        (forwarded("unknown"), "127.0.0.1"),
        (forwarded("203.0.113.9, 198.51.100.1"), "198.51.100.1"),
        (forwarded("203.0.113.9", "198.51.100.1", name=b"x-forwarded-for"), "198.51.100.1"),
        (forwarded("198.51.100.1", "127.0.0.1"), "198.51.100.1"),
        (forwarded("198.51.100.1", "nonsense"), "127.0.0.1"),
    ],
)
async def test_the_last_that_is_no_proxy_itself_is_the_client(nursery: trio.Nursery, headers: bytes, peer: str) -> None:
    served = await through(nursery)
    for quickly in (False, True, True):
        served.endpoint.quickly = quickly
        assert (await served.ask(post(headers=headers, close=True))).startswith(HEALTHY)
        assert (await served.ask(get(f"/v1/dfu/{PACKAGE}/1", headers))).startswith(HEALTHY)
    assert [request.peer for request in served.endpoint.requests] == [peer] * 3


async def test_what_stands_behind_the_body_is_not_the_proxys(nursery: trio.Nursery) -> None:
    served = await through(nursery)
    head = b"POST /v1/dfu HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    trailers = b"\r\n1\r\n\x81\r\n0\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
    for headers in (forwarded("198.51.100.1"), forwarded("198.51.100.9", "198.51.100.1"), AUTH):
        assert (await served.ask(head + headers + trailers)).startswith(HEALTHY)
    assert [request.peer for request in served.endpoint.requests] == ["198.51.100.1"] * 2 + ["127.0.0.1"]


async def test_without_trusted_proxies_the_header_is_ignored(nursery: trio.Nursery) -> None:
    for proxies in ([], ["10.0.0.0/8"]):
        served = await serve(nursery, trusted_proxies=proxies)
        for quickly in (True, False):
            served.endpoint.quickly = quickly
            assert (await served.ask(post(headers=forwarded("198.51.100.1"), close=True))).startswith(HEALTHY)
        assert [request.peer for request in served.endpoint.requests] == ["127.0.0.1"] * 2


async def test_a_trusted_proxy_has_as_many_connections_as_there_are(nursery: trio.Nursery) -> None:
    served = await through(nursery, connections=6, connections_per_address=2)
    held = [await served.connect() for _ in range(5)]
    await wait_for(lambda: served.transport._open == 5)
    assert (await served.ask(get("/"))).startswith(HEALTHY)
    held.append(await served.connect())
    await wait_for(lambda: served.transport._open == 6)
    assert (await served.ask(get("/"))).startswith(b"HTTP/1.1 503")
    for stream in held:
        await stream.aclose()


async def test_one_who_is_told_to_come_back_later_stops_nobody_behind_the_same_proxy(nursery: trio.Nursery) -> None:
    served = await through(nursery)
    served.endpoint.quickly = True
    served.endpoint.answers["late"] = Reply(Code.AWAY, error="ServiceUnavailable", message="later", retry_after_s=3600)
    stream = await served.connect()
    await stream.send_all(post("/v1/late", headers=forwarded("198.51.100.1")))
    assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 503")
    await wait_for(lambda: served.transport._lot is not None and len(served.transport._lot) == 1)
    assert served.transport._lot is not None
    assert not any(place.deaf_until_s for place in served.transport._lot._places.values())
    await stream.send_all(post(headers=forwarded("198.51.100.2")))
    assert (await read_answer(stream))[0].startswith(HEALTHY)
    await stream.aclose()


async def test_handshakes_of_a_trusted_proxy_are_not_limited_as_one_addresss(nursery: trio.Nursery, tmp_path: Path) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    transport, endpoint, port = await start(
        nursery,
        tmp_path,
        handshakes=3,
        handshakes_per_address=1,
        handshake_s=300,
        handshake_turn_s=300,
        trusted_proxies=["127.0.0.1"],
    )
    stalled = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
    for stream in stalled:
        await stream.send_all(b"\x16\x03\x01")
    await wait_for(lambda: transport._handshakes.taken == 2)
    context = ssl.create_default_context(cafile=tmp_path / "server.pem")
    tls = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1", https_compatible=True)
    with trio.fail_after(120):
        await tls.send_all(post(headers=forwarded("198.51.100.1"), close=True))
        assert (await read_all(tls)).startswith(HEALTHY)  # type: ignore[arg-type]  # a stream as well
    assert [(request.peer, request.encrypted) for request in endpoint.requests] == [("198.51.100.1", True)]
    assert endpoint.requests[0].credentials.authorization == AUTHORIZATION
    for stream in stalled:
        await stream.aclose()
