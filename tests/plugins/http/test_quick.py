"""What is answered from memory: no task, one write, a head parsed once for a whole fleet, and nothing that is not HTTP."""

from __future__ import annotations

import base64
import gc
import select
import socket

import pytest
import trio
import trio.testing
from dfud_http import quick
from dfud_http.config import HttpConfig
from dfud_http.lot import Lot, Place
from dfud_http.parse import RequestReader
from dfud_http.quick import HEADS_MAX, Quick
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfud.api import Code, Reply, Request, Waiting
from dfud.testing.fake_endpoint import FakeEndpoint, FakeWaiting
from dfud.testing.transport import AUTHORIZATION, PACKAGE
from tests.plugins.http.test_listener import AUTH, CHUNKS, Served, get, post, read_answer, serve, wait_for

CONNECTIONS = 40


def basic(number: int) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(b"d%d@app:secret" % number) + b"\r\n"


class Counting(RequestReader):
    parsed = 0

    def feed(self, data: bytes) -> None:
        Counting.parsed += 1
        super().feed(data)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    Counting.parsed = 0
    monkeypatch.setattr(quick, "RequestReader", Counting)
    return Counting


def everybody(**options: object) -> FakeEndpoint:
    return FakeEndpoint(authorization=None, packages={PACKAGE: CHUNKS}, **options)  # type: ignore[arg-type]  # as named


def test_a_head_is_parsed_once_for_a_whole_fleet(parsed: type[Counting]) -> None:
    endpoint = everybody()
    asked = Quick(endpoint, HttpConfig())
    for number in range(100):
        answer = asked.answer(post(body=b"%02d" % number, headers=basic(number)), "10.0.0.1", b"", encrypted=False)
        assert isinstance(answer, tuple) and isinstance(answer[0], bytes) and answer[0].endswith(b"%02d" % number)
    assert parsed.parsed == 1
    assert [r.credentials.authorization for r in endpoint.requests] == [basic(n)[15:-2] for n in range(100)]
    assert [r.body for r in endpoint.requests] == [b"%02d" % n for n in range(100)]


def test_heads_are_kept_of_requests_that_were_right_and_no_more_than_so_many() -> None:
    endpoint = everybody(quickly=False)
    asked = Quick(endpoint, HttpConfig())
    assert isinstance(asked.answer(post(), "10.0.0.1", b"", encrypted=False), RequestReader)
    assert not len(asked._heads), "nobody knows yet whether it is right"
    endpoint.quickly = True
    for number in range(HEADS_MAX + 10):
        asked.answer(post(f"/v1/dfu?ct=0&data_schema={number}"), "10.0.0.1", b"", encrypted=False)
    assert len(asked._heads) == HEADS_MAX


class Later(FakeEndpoint):
    """Takes everything without knowing yet what becomes of it."""

    def soon(self, request: Request) -> Waiting | None:
        self.requests.append(request)
        return FakeWaiting(self, 9.0)


def test_what_is_taken_soon_waits_without_a_task_and_its_head_is_not_kept() -> None:
    endpoint = Later(authorization=None, quickly=False)
    asked = Quick(endpoint, HttpConfig())
    found = asked.answer(post(), "10.0.0.1", b"", encrypted=False)
    assert isinstance(found, tuple) and isinstance(found[0], Waiting) and not len(asked._heads)
    endpoint.quickly = True
    asked.answer(post(), "10.0.0.1", b"", encrypted=False)
    assert len(asked._heads) == 1
    endpoint.quickly = False
    found = asked.answer(post(), "10.0.0.1", b"", encrypted=False)
    assert isinstance(found, tuple) and isinstance(found[0], Waiting), "nor where its head is known"
    assert [request.body for request in endpoint.requests] == [endpoint.requests[0].body] * 3


def test_a_head_is_parsed_once_for_a_fleet_of_which_nothing_is_known_yet(parsed: type[Counting]) -> None:
    endpoint = Later(authorization=None, quickly=False)
    asked = Quick(endpoint, HttpConfig())
    for number in range(100):
        found = asked.answer(post(body=b"%02d" % number, headers=basic(number)), "10.0.0.1", b"", encrypted=False)
        assert isinstance(found, tuple) and isinstance(found[0], Waiting)
    assert parsed.parsed == 1
    assert [r.credentials.authorization for r in endpoint.requests] == [basic(n)[15:-2] for n in range(100)]
    assert [r.body for r in endpoint.requests] == [b"%02d" % n for n in range(100)]


def test_no_other_headers_value_is_taken_for_that_of_authorization() -> None:
    endpoint = FakeEndpoint()
    asked = Quick(endpoint, HttpConfig())
    for value in (b"", AUTHORIZATION):  # what a stranger sends without any is remembered for nobody's value
        asked.answer(post(headers=b"Proxy-Authorization: " + value + b"\r\n"), "10.0.0.1", b"", encrypted=False)
        assert endpoint.requests[-1].credentials.authorization == b""


def test_those_of_whom_nothing_is_known_have_no_head_forgotten_that_was_right() -> None:
    endpoint = Later(authorization=None)
    asked = Quick(endpoint, HttpConfig())
    asked.answer(post(), "10.0.0.1", b"", encrypted=False)
    known = dict(asked._heads._values)
    endpoint.quickly = False
    for number in range(2 * quick.NEW_MAX):
        asked.answer(post(f"/v1/dfu?ct=0&data_schema={number}"), "10.0.0.1", b"", encrypted=False)
    assert dict(asked._heads._values) == known and len(asked._new) == quick.NEW_MAX


def test_what_was_parsed_leaves_nothing_for_the_collection_of_garbage() -> None:
    endpoint = Later(authorization=None, quickly=False)
    asked = Quick(endpoint, HttpConfig())
    gc.collect()
    gc.disable()
    try:
        for quickly in (False, True):
            endpoint.quickly = quickly
            for number in range(100):
                asked.answer(post(f"/v1/dfu?ct=0&data_schema={number}"), "10.0.0.1", b"", encrypted=False)
                asked.answer(get("/nothing"), "10.0.0.1", b"", encrypted=False)
        assert gc.collect() < 50
    finally:
        gc.enable()


def outcome(endpoint: FakeEndpoint, found: object) -> object:
    """Return what can be compared of an answer."""
    if isinstance(found, RequestReader):
        return [(r.method, r.target, r.headers, r.body, r.keep_alive) for r in found.requests], found.fault, found.mid_request
    assert isinstance(found, tuple)
    answer, keep_alive, _ = found
    waits = isinstance(answer, Waiting)
    return keep_alive, "waits" if waits else answer, endpoint.requests[-1] if endpoint.requests else None


PIECES = st.sampled_from(
    [
        b"Authorization: ",
        b"authorization: ",
        b"X-Authorization: ",
        AUTHORIZATION,
        b" ",
        b"\t",
        b"\r\n",
        b"\n",
        b"\0",
        b"\xff",
        b": ",
        b"Host: x",
        b"Content-Length: 1",
        b"Content-Length: 2",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Connection: close",
        b"Upgrade: h2c",
        b"If-None-Match: *",
        b"0\r\n\r\n",
        b"\x81",
    ]
)
LINES = st.sampled_from(
    [
        b"POST /v1/dfu HTTP/1.1\r\n",
        b"POST /v1/dfu?ct=9 HTTP/1.0\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\r\nPOST /v1/t HTTP/1.1\r\n",
    ]
)


@settings(deadline=None, max_examples=300)
@given(LINES, st.lists(PIECES, max_size=14), st.integers(0, 200), st.binary(max_size=3), st.lists(PIECES, max_size=3))
@example(b"POST /v1/dfu HTTP/1.1\r\n", [], 0, b"", [])
@example(b"POST /v1/dfu HTTP/1.1\r\n", [b"Authorization: ", b" "], 0, b"", [])
def test_what_is_recognised_is_what_the_parser_makes_of_it(
    line: bytes, pieces: list[bytes], at: int, odd: bytes, more: list[bytes]
) -> None:
    endpoint, fresh = everybody(), everybody()
    remembering = Quick(endpoint, HttpConfig())
    for head in (post(), post("/v1/dfu?ct=9"), get("/", close=False), get(f"/v1/dfu/{PACKAGE}/1", close=False)):
        remembering.answer(head, "10.0.0.1", b"", encrypted=False)
    data = line + b"".join(pieces) + b"\r\n\r\n" + b"".join(more)
    mutated = post()[:at] + odd + post()[at:]
    for request in (data, mutated, post(headers=b"".join(pieces) + b"\r\n"), post(headers=AUTH + b"".join(more) + b"\r\n")):
        for _ in range(2):
            ours = outcome(endpoint, remembering.answer(request, "10.0.0.1", b"", encrypted=False))
            fresh.requests.clear()
            theirs = outcome(fresh, Quick(fresh, HttpConfig()).answer(request, "10.0.0.1", b"", encrypted=False))
            if isinstance(ours, tuple) and len(ours) == 3 and isinstance(theirs, tuple):
                assert ours[:2] == theirs[:2] and (theirs[2] is None or ours[2] == theirs[2]), request
            else:
                assert ours == theirs, request


async def test_a_connection_that_polls_has_no_task(nursery: trio.Nursery) -> None:
    served = await serve(nursery)
    served.endpoint.quickly = True
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    streams = [await served.connect() for _ in range(CONNECTIONS)]
    await wait_for(lambda: served.transport._lot is not None and len(served.transport._lot) == CONNECTIONS)
    for _ in range(3):
        for stream in streams:
            await stream.send_all(post())
        for stream in streams:
            assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200")
            assert trio.lowlevel.current_statistics().tasks_living == before
            assert not served.transport._connections
    for stream in streams:
        await stream.send_all(post(close=True))
        await read_answer(stream)
    await wait_for(lambda: served.transport._open == 0)
    assert trio.lowlevel.current_statistics().tasks_living == before
    nursery.cancel_scope.cancel()


async def test_one_that_needed_a_task_has_none_when_it_is_answered(nursery: trio.Nursery) -> None:
    served: Served = await serve(nursery)
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    stream = await served.connect()
    for piece in (post()[:10], post()[10:]):
        await stream.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()
    assert (await read_answer(stream))[0].startswith(b"HTTP/1.1 200")
    await wait_for(lambda: served.transport._lot is not None and len(served.transport._lot) == 1)
    assert trio.lowlevel.current_statistics().tasks_living == before
    await stream.aclose()
    nursery.cancel_scope.cancel()


class Writes(socket.socket):
    """Counts what is sent, and how often."""

    sent: list[bytes]

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]  # as the lot calls it
        self.sent.append(data)
        return super().send(data, flags)


async def test_an_answer_is_one_write_and_so_is_being_told() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    writing = Writes(fileno=ours.detach())
    writing.sent = []
    endpoint = everybody()
    async with trio.open_nursery() as nursery:
        lot = Lot(Quick(endpoint, HttpConfig()), 60.0, lambda place: pytest.fail("needs no task"), lambda place: None)
        nursery.start_soon(lot.run)
        lot.enter(Place(lot, writing, "10.0.0.1", "10.0.0.1"), 60.0)
        for request in (post(), get(f"/v1/dfu/{PACKAGE}/1-3", close=False), post("/v1/dfu?ct=60")):
            theirs.send(request)
            await wait_for(lambda: endpoint.parked or select.select([theirs], [], [], 0)[0])
            if not endpoint.parked:
                assert theirs.recv(1 << 16) == writing.sent[-1]
        assert len(writing.sent) == 2
        waiting = endpoint.last_waiting
        assert isinstance(waiting, FakeWaiting)
        waiting.answer(Reply(Code.COMMAND, "dfu", b"new"))
        assert len(writing.sent) == 3 and theirs.recv(1 << 16) == writing.sent[-1]
        nursery.cancel_scope.cancel()
    theirs.close()


async def test_who_comes_back_when_it_was_told_to_costs_nothing_meanwhile(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    served = await serve(nursery)
    served.endpoint.quickly = True
    served.endpoint.answers["dfu"] = Reply(Code.AWAY, error="ServiceUnavailable", message="later", retry_after_s=3)
    stream = await served.connect()
    await stream.send_all(post())
    await read_answer(stream)
    lot = served.transport._lot
    assert lot is not None
    (place,) = lot._places.values()
    assert place.deaf_until_s and not place.paused, "nothing is changed in the epoll before it says something too early"
    await trio.sleep(3.1)
    began_s = trio.current_time()
    await stream.send_all(post())
    await read_answer(stream)
    assert trio.current_time() - began_s < 0.1
    await stream.aclose()
    await wait_for(lambda: served.transport._open == 0)
    nursery.cancel_scope.cancel()


async def test_who_is_told_to_come_back_later_is_not_heard_before(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    served = await serve(nursery)
    served.endpoint.quickly = True
    served.endpoint.answers["dfu"] = Reply(Code.AWAY, error="ServiceUnavailable", message="later", retry_after_s=3)
    stream = await served.connect()
    heard_s = []
    for _ in range(3):
        await stream.send_all(post())
        head, _ = await read_answer(stream)
        assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 3" in head
        heard_s.append(trio.current_time())
    assert heard_s[1] - heard_s[0] >= 3 and heard_s[2] - heard_s[1] >= 3
    assert not served.transport._connections
    await stream.aclose()
    await wait_for(lambda: served.transport._open == 0)
    nursery.cancel_scope.cancel()
