"""What is remembered of devices and strangers: each bound is a key, and what goes beyond it costs only itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from dfud.api import Chunks, Code, Credentials, Reply, Request
from dfud.endpoint.endpoint import DeviceEndpoint
from tests.endpoint.world import World, a_status, basic, start_world

PASSWORD = {"authentication": {"credentials": [{"pass": "pw"}]}}


async def started(nursery: trio.Nursery, tmp_path: Path, devices: int, **options: Any) -> World:
    world = await start_world(nursery, tmp_path, failures_per_address=1000, **options)
    for number in range(devices):
        await world.put(f"d{number}", PASSWORD)
    return world


async def test_log_ins_and_polls_are_remembered_for_so_many(nursery: trio.Nursery, tmp_path: Path) -> None:
    world = await started(nursery, tmp_path, 40, sessions=16)
    for number in range(40):
        found = await world.post(Credentials(basic(f"d{number}@app1:pw")), channel="dfu", body=a_status())
        assert isinstance(found, Reply) and found.code is Code.COMMAND
    assert len(world.endpoint._auth.slots) == 16
    assert world.endpoint.quick(Request("http", "127.0.0.1", Credentials(basic("d39@app1:pw")), "dfu", a_status()))
    assert not world.endpoint.quick(Request("http", "127.0.0.1", Credentials(basic("d0@app1:pw")), "dfu", a_status()))
    nursery.cancel_scope.cancel()


async def test_wrong_credentials_are_counted_for_so_many(nursery: trio.Nursery, tmp_path: Path) -> None:
    world = await started(nursery, tmp_path, 0, counted_max=16)
    right = basic("dev1@app1:pw")
    assert await world.code(right) is Code.ACCEPTED
    found = [await world.code(basic(f"n{n}@app1:x"), peer=f"10.{n}.0.1") for n in range(40)]
    assert found == [Code.DENIED] * 16 + [Code.TOO_MANY] * 24
    assert await world.code(right) is Code.ACCEPTED, "who is logged in is not asked again"
    world.let_pass(61)
    assert await world.code(basic("n1@app1:x"), peer="10.99.0.1") is Code.DENIED
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("limits", "sent"), [((3, 1 << 20), 3), ((64, 1024), 2), ((1, 1024), 1)])
def test_an_answer_holds_so_many_chunks_and_bytes(limits: tuple[int, int], sent: int) -> None:
    chunks = [bytes([n]) * 500 for n in range(10)]
    endpoint = DeviceEndpoint.__new__(DeviceEndpoint)
    endpoint._config = cast(Any, SimpleNamespace(chunks_per_request=limits[0], chunk_bytes_per_request=limits[1]))
    endpoint._controller = cast(Any, SimpleNamespace(fetched=lambda *_: None))
    session = cast(Any, SimpleNamespace(app="a", device="d"))
    found = endpoint._cut(session, "p", "p", chunks, 2, 9)
    assert isinstance(found, Chunks) and found.bodies == chunks[2 : 2 + sent]
