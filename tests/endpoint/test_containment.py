"""One surprise costs the request, the device or the sink that it befell, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from dfud_drogue.config import EventLogConfig
from dfud_drogue.log_sink import LogSink

from dfud.api import Bus, Chunks, Code, Credentials, EventSink, Reply, Request, StoreError, Telemetry, Waiting, faults
from tests.endpoint.world import World, a_status, basic, start_world

ME = Credentials(basic("dev1@app1:pw"))


class Fragile:
    """The store, with one device that nobody can read: as a spec nested too deep, or a wrong byte in its record, has it."""

    def __init__(self, store: Any, error: Exception) -> None:
        self._store = store
        self._error = error

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("device", "find_alias"):
            return found

        async def read(app: str, device: str) -> Any:
            if device == "broken":
                raise self._error
            return await found(app, device)

        return read


class Sink(EventSink):
    """Raises `error`, if there is one; waits for ever if `stuck`; keeps what it took."""

    def __init__(self, name: str, error: Exception | None = None, *, stuck: bool = False) -> None:
        self.name = name
        self._error = error
        self._stuck = stuck
        self.taken: list[Telemetry] = []

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def take(self, telemetry: Telemetry) -> None:
        if self._stuck:
            await trio.sleep_forever()
        if self._error is not None:
            raise self._error
        self.taken.append(telemetry)


@pytest.mark.parametrize("error", [RecursionError("deep"), ValueError("a wrong byte"), ExceptionGroup("g", [KeyError("x")])])
async def test_a_record_that_cannot_be_read_costs_who_names_it(
    nursery: trio.Nursery, tmp_path: Path, error: Exception
) -> None:
    world = await start_world(nursery, tmp_path, lambda store: Fragile(store, error))
    before = faults().get("endpoint.post", 0)
    stranger = Credentials(basic("broken@app1:guess"))
    for channel in ("dfu", "temp"):
        assert await world.code(stranger.authorization, channel=channel, body=a_status()) is Code.FAILED
    assert faults()["endpoint.post"] == before + 2
    request = Request("http", "127.0.0.1", stranger, "dfu", a_status())
    assert world.endpoint.quick(request) is None
    found = await world.endpoint.chunks("127.0.0.1", stranger, "ab" * 16, 0, 0)
    assert isinstance(found, Reply) and found.code is Code.FAILED
    assert await world.endpoint.key_for("coap", "broken@app1") is None
    assert await world.code(ME.authorization) is Code.ACCEPTED
    nursery.cancel_scope.cancel()


async def test_whatever_breaks_within_the_quick_methods_is_answered_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await world.code(ME.authorization) is Code.ACCEPTED

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.endpoint._auth, "known", broken)
    monkeypatch.setattr(world.endpoint._auth, "slot_of", broken)
    found = world.endpoint.quick(Request("http", "127.0.0.1", ME, "dfu", a_status()))
    assert isinstance(found, Reply) and found.code is Code.FAILED
    chunks = world.endpoint.quick_chunks("127.0.0.1", ME, "ab" * 16, 0, 0)
    assert chunks is not None and not isinstance(chunks, Chunks) and chunks.code is Code.FAILED
    monkeypatch.setattr(world.endpoint._auth, "psk_cached", broken)
    assert world.endpoint.key_for_cached("coap", "dev1@app1") is None


async def test_who_waits_is_answered_when_looking_again_breaks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    parked = await world.post(ME, channel="dfu", body=a_status(), timeout_s=60.0)
    assert isinstance(parked, Waiting)
    got: list[Reply] = []
    parked.listen(got.append)

    async def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(world.endpoint._controller, "status", broken)
        await world.put("dev1", {"authentication": {"credentials": [{"pass": "pw"}]}})
        await trio.testing.wait_all_tasks_blocked()
    assert [r.code for r in got] == [Code.FAILED]
    assert await world.code(ME.authorization, channel="dfu", body=a_status()) is Code.COMMAND, "the workers live"


async def test_a_transport_that_cannot_be_woken_keeps_nobody_else_waiting(world: World) -> None:
    def broken(reply: Reply) -> None:
        raise RuntimeError("a transport's bug")

    got: list[Reply] = []
    for channel in ("dfu", "temp"):
        for listener in (broken, got.append, broken):
            waiting = await world.post(ME, channel=channel, body=a_status(), timeout_s=60.0)
            assert isinstance(waiting, Waiting)
            waiting.listen(listener)
    world.endpoint.drain()
    assert [r.code for r in got] == [Code.ACCEPTED] * 2


async def test_a_command_for_a_transport_that_breaks_goes_to_the_next_who_waits(world: World) -> None:
    def broken(reply: Reply) -> None:
        raise RuntimeError("a transport's bug")

    got: list[Reply] = []
    for listener in (broken, got.append):
        waiting = await world.post(ME, timeout_s=60.0)
        assert isinstance(waiting, Waiting)
        waiting.listen(listener)
    assert await world.endpoint.commands.send("app1", "dev1", "", "blink", b"")
    assert [r.command for r in got] == ["blink"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreError("the disk is full", retryable=True), Code.AWAY),
        (ValueError("Out of range float values"), Code.FAILED),
        (ExceptionGroup("g", [ValueError()]), Code.FAILED),
    ],
)
async def test_a_sink_that_fails_costs_its_own_event(world: World, error: Exception, code: Code) -> None:
    first, failing, last = Sink("first"), Sink("failing", error), Sink("last")
    world.sinks(first, failing, last)
    before = faults().get("sink.failing", 0)
    assert await world.code(ME.authorization, body=b"1") is code
    assert faults()["sink.failing"] == before + 1
    assert [t.body for t in first.taken] == [t.body for t in last.taken] == [b"1"]
    assert world.telemetry == [], "what the device has to send again is no event yet"
    world.sinks(first, last)
    assert await world.code(ME.authorization, body=b"2") is Code.ACCEPTED
    world.sinks(failing)
    assert await world.code(ME.authorization, body=b"3") is code


async def test_a_sink_that_never_answers_holds_nobody_for_ever(world: World) -> None:
    other = Sink("other")
    world.sinks(Sink("stuck", stuck=True), other, timeout_s=0.01)
    assert await world.code(ME.authorization, body=b"1") is Code.AWAY
    assert len(other.taken) == 1


BODIES = [
    *(b"1e999", b"-1e999", b"NaN", b"1" * 9000, b"\xff", b'"\\ud800"'),
    *(b"[" * 30_000 + b"]" * 30_000, b"[" * 900 + b"]" * 900, b"[" * 60_000),
]


@pytest.mark.parametrize("body", BODIES)
async def test_no_telemetry_ends_anything(nursery: trio.Nursery, world: World, tmp_path: Path, body: bytes) -> None:
    sink = LogSink(EventLogConfig(str(tmp_path / "events")), "here")
    await nursery.start(sink.run, Bus())
    world.sinks(sink)
    for content_type in ("", "application/json", "a/b+json; x=y", "text/plain"):
        assert await world.code(ME.authorization, body=body, content_type=content_type) is Code.ACCEPTED
    assert len([json.loads(line) for line in (tmp_path / "events").read_bytes().splitlines()]) == 4
