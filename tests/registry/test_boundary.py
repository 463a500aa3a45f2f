"""One request costs itself only: whatever a view raises, in whatever moment, it is answered or broken off, logged and counted."""

from __future__ import annotations

import hashlib
import logging
import resource
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import UserRoutes, faults, guard, open_to_all
from dfud.registry import boundary, server
from dfud.registry.application import make_app
from dfud.registry.boundary import canonical
from dfud.registry.config import RegistryConfig
from dfud.registry.server import serve
from dfud.registry.services import Services
from dfud.registry.web import read_body
from tests.registry.desk import desk


class Odd(UserRoutes):
    """Views that fail in every way that one can."""

    name = "odd"

    def register(self, app: QuartTrio, services: Any) -> None:
        @app.route("/fails/<how>", methods=["GET", "POST"])
        @open_to_all
        async def fails(how: str) -> Response:
            if how == "error":
                raise ZeroDivisionError(how)
            if how == "group":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fail)
                    nursery.start_soon(self._fail)
            if how == "recursion":
                return await fails(how)
            if how == "memory":
                raise MemoryError
            if how == "not-json":
                return Response(object())  # type: ignore[arg-type]
            if how == "lone":
                raise ValueError("\ud800\x1b[31m")
            return Response(self._some())

        @app.post("/refuses")
        @open_to_all
        async def refuses() -> Response:
            return Response("no", 409)

        @app.post("/streams")
        @open_to_all
        async def streams() -> Response:
            return Response(self._many())

        @app.post("/waits")
        @open_to_all
        async def waits() -> Response:
            await trio.sleep_forever()
            raise AssertionError

        @app.post("/counts")
        @open_to_all
        async def counts() -> Response:
            digest = hashlib.sha256()
            async for data in request.body:
                digest.update(data)
                await trio.lowlevel.checkpoint()
            return Response(digest.hexdigest())

        @app.post("/reads")
        @open_to_all
        async def reads() -> Response:
            return Response(await read_body(1000))

    async def _fail(self) -> None:
        raise KeyError("inner")

    async def _many(self) -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x"
            await trio.sleep(0.01)

    async def _some(self) -> AsyncIterator[bytes]:
        yield b"[1,"
        raise ZeroDivisionError("in the middle")


@pytest.fixture
async def url(nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(guard, "_logged", {})
    shutdown = trio.Event()
    async with desk(tmp_path) as at:
        nothing: Any = None
        config = RegistryConfig(port=0, body_s=0.5)
        services = Services(
            registry=at.registry,
            firmware=at.firmware,
            users=at.users,
            claims=at.claims,
            store=at.store,
            bus=at.bus,
            commands=nothing,
            updates=nothing,
            insight=nothing,
            fleet=nothing,
            outbox=nothing,
            planner=nothing,
            rollouts=nothing,
            config=config,
            now=at.now,
            ready=lambda: "",
            metrics=lambda: b"",
            version="0",
        )
        app = make_app(services, [Odd()], shutdown)

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(app, config, graceful_s=1.0, shutdown=shutdown, task_status=task_status)

        (found,) = await nursery.start(run)
        yield found
        shutdown.set()


async def test_no_more_of_a_body_is_taken_than_is_read(url: str) -> None:
    """Where nobody read it, a body was taken whole, at any size: here it would be 200 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    address = httpx.URL(url)
    stream = await trio.open_tcp_stream(address.host, address.port or 0)
    async with stream:
        await stream.send_all(b"POST /waits HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000\r\n\r\n")
        sent = 0
        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    nonlocal sent
                    try:
                        while sent < 200_000_000:
                            await stream.send_all(bytes(100_000))
                            sent += 100_000
                    except trio.BrokenResourceError:
                        return

                nursery.start_soon(send)
                answer = await stream.receive_some(100)  # nobody reads it for body_s: the request is ended
                assert not answer.startswith(b"HTTP/1.1 2")
                nursery.cancel_scope.cancel()
        # What the kernel and the server hold before somebody reads.
        assert 0 < sent < 50_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize("path", ["/refuses", "/fails/error", "/fails/half-way", "/streams", "/waits"])
async def test_a_connection_whose_body_nobody_reads_is_answered_and_let_go(
    url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end was told behind the body in a queue that nobody read: the connection stayed, and counted, for ever."""
    held = Counter[str]()
    enter, leave = server._Settings.enter, server._Settings.leave

    def entering(self: server._Settings, peer: str) -> bool:
        held["connections"] += 1
        return enter(self, peer)

    def leaving(self: server._Settings, peer: str) -> None:
        held["connections"] -= 1
        leave(self, peer)

    monkeypatch.setattr(server._Settings, "enter", entering)
    monkeypatch.setattr(server._Settings, "leave", leaving)
    address = httpx.URL(url)
    async with await trio.open_tcp_stream(address.host, address.port or 0) as stream:
        await stream.send_all(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n" % path.encode())
        out = b""

        async def send() -> None:
            try:
                for _ in range(200):
                    await stream.send_all(bytes(100_000))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(60):
                try:
                    while data := await stream.receive_some(4096):
                        out += data
                except trio.BrokenResourceError:
                    pass
            nursery.cancel_scope.cancel()
    with trio.fail_after(60):
        while held["connections"]:
            await trio.sleep(0.02)
    if path != "/waits":
        assert out.startswith(b"HTTP/1.1 ") and b"connection: close" in out.lower()


async def test_a_body_that_is_read_late_arrives_whole(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, verify=False, timeout=60) as client:
        data = bytes(range(256)) * 10_000
        answer = await client.post("/counts", content=data)
        assert (answer.status_code, answer.text) == (200, hashlib.sha256(data).hexdigest())


async def test_a_body_that_does_not_arrive_is_answered(url: str) -> None:
    address = httpx.URL(url)
    async with await trio.open_tcp_stream(address.host, address.port or 0) as stream:
        await stream.send_all(b"POST /reads HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\nonly this")
        out = b""
        while data := await stream.receive_some(4096):
            out += data
    assert out.startswith(b"HTTP/1.1 408") and b"took longer than 0.5 s" in out


@pytest.mark.parametrize("how", ["error", "group", "recursion", "memory", "not-json", "lone"])
async def test_what_a_view_raises_is_answered_logged_once_and_counted(
    url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "dfud.guard")
    before = faults().get("users.request", 0)
    async with httpx.AsyncClient(base_url=url, verify=False, timeout=60) as client:
        for _ in range(3):
            answer = await client.get(f"/fails/{how}")
            assert (answer.status_code, answer.json()["message"]) == (500, boundary.FAILED)
            assert (await client.get("/healthz")).status_code == 200
    assert faults()["users.request"] == before + 3
    assert len([r for r in caplog.records if r.name == "dfud.guard"]) == 1


async def test_an_answer_that_fails_half_way_is_not_taken_for_a_whole_one(url: str) -> None:
    before = faults().get("users.request", 0)
    async with httpx.AsyncClient(base_url=url, verify=False, timeout=60) as client:
        for _ in range(3):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/fails/half-way")
            assert (await client.get("/healthz")).status_code == 200
    assert faults()["users.request"] == before + 3


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/a/b", "/a/b"),
        (b"/a%2fb/%63", "/a%2Fb/c"),
        (b"/a%252Fb", "/a%252Fb"),
        (b"/%2E%2e/x?y=/../", "/../x"),
        (b"/a b\xc3", "/a%20b%EF%BF%BD"),
        (b"//a//", "//a//"),
        (b"*", "%2A"),
        (b"http://x/..;/y", "http%3A//x/..%3B/y"),
        (b"/%zz%", "/%25zz%25"),
        (b"/../x", None),
        (b"/x/..", None),
        (b"/./x", None),
        (b"/x/.?y", None),
        (b"/%ff", None),
    ],
)
def test_a_path_has_one_form_or_is_refused(raw: bytes, path: str | None) -> None:
    found, problem = canonical({"method": "GET", "raw_path": raw})
    assert (found, bool(problem)) == (path or "", path is None)


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_nothing_is_changed_by_a_path_without_its_last_name(method: str) -> None:
    assert "ends in a slash" in canonical({"method": method, "raw_path": b"/apps/a/"})[1]
    assert canonical({"method": method, "raw_path": b"/apps/a"})[1] == ""
