"""One request costs itself only: whatever a view raises, in whatever moment, it is answered or broken off, logged and counted."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from dfud.api import UserRoutes, faults, guard, open_to_all
from dfud.registry import boundary
from dfud.registry.application import make_app
from dfud.registry.boundary import canonical
from dfud.registry.config import RegistryConfig
from dfud.registry.server import serve
from dfud.registry.services import Services
from tests.registry.desk import desk


class Odd(UserRoutes):
    """Views that fail in every way that one can."""

    name = "odd"

    def register(self, app: QuartTrio, services: Any) -> None:
        @app.get("/fails/<how>")
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

        @app.before_request
        async def before() -> None:
            return None

    async def _fail(self) -> None:
        raise KeyError("inner")

    async def _some(self) -> AsyncIterator[bytes]:
        yield b"[1,"
        raise ZeroDivisionError("in the middle")


@pytest.fixture
async def url(nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(guard, "_logged", {})
    shutdown = trio.Event()
    async with desk(tmp_path) as at:
        nothing: Any = None
        config = RegistryConfig(port=0)
        services = Services(
            registry=at.registry,
            firmware=at.firmware,
            users=at.users,
            claims=at.claims,
            store=at.store,
            bus=at.bus,
            commands=nothing,
            updates=nothing,
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


@pytest.mark.parametrize("how", ["error", "group", "recursion", "memory", "not-json", "lone"])
async def test_what_a_view_raises_is_answered_logged_once_and_counted(
    url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "dfud.guard")
    before = faults().get("users.request", 0)
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        for _ in range(3):
            answer = await client.get(f"/fails/{how}")
            assert (answer.status_code, answer.json()["message"]) == (500, boundary.FAILED)
            assert (await client.get("/healthz")).status_code == 200
    assert faults()["users.request"] == before + 3
    assert len([r for r in caplog.records if r.name == "dfud.guard"]) == 1


async def test_an_answer_that_fails_half_way_is_not_taken_for_a_whole_one(url: str) -> None:
    before = faults().get("users.request", 0)
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
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
