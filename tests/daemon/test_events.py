"""Changes reach a webhook of a real dfud: one that fails, one that hangs, one that is away while dfud is killed and started again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice

DFU = "/api/dfu/v1/apps/a"
SECRET = b"a secret that is long enough"
OLD, NEW = b"old image " * 300, b"new image " * 300


class Receiver:
    """A receiver of webhooks on a port of its own. how: "fine", "500", "422", "hang", "late" (takes it and says 500); or away."""

    def __init__(self) -> None:
        self.how = "fine"
        self.port = 0
        self.taken: list[dict[str, Any]] = []
        self.attempts = 0
        self.scope: trio.CancelScope | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self.scope:
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._serve, listeners)
                task_status.started()

    def stop(self) -> None:
        assert self.scope is not None
        self.scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            while await self._one(stream):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _one(self, stream: trio.SocketStream) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
        while len(body) < int(headers[b"content-length"]):
            body += await stream.receive_some(65536)
        self.attempts += 1
        signed = headers[b"webhook-id"] + b"." + headers[b"webhook-timestamp"] + b"." + body
        expected = b"v1," + base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest())
        assert headers[b"webhook-signature"] == expected
        event = json.loads(body)
        assert headers[b"webhook-id"].decode() == event["id"]
        if self.how == "hang":
            await trio.sleep_forever()
        if self.how in ("fine", "late"):
            self.taken.append(event)
        status = {"fine": b"204 No Content", "late": b"500 Late", "500": b"500 Odd", "422": b"422 No"}[self.how]
        await stream.send_all(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        return True

    def told(self, kind: str) -> dict[str, list[tuple[str, str]]]:
        """Return (event, state) by subject, each event once, as they came first. Fails where one is out of order."""
        seen: dict[str, list[str]] = defaultdict(list)
        out: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for event in self.taken:
            if event["type"] != f"io.dfud.{kind}.v1" or event["id"] in seen[event["subject"]]:
                continue
            assert not seen[event["subject"]] or event["id"] > seen[event["subject"]][-1]
            seen[event["subject"]].append(event["id"])
            out[event["subject"]].append((event["data"]["event"], event["data"]["state"]))
        return dict(out)


class World:
    def __init__(self, daemon: DaemonProcess, receiver: Receiver, nursery: trio.Nursery) -> None:
        self.daemon, self.receiver, self._nursery = daemon, receiver, nursery
        self.ended = trio.Event()
        self.secrets: dict[str, str] = {}

    async def start(self) -> None:
        self.ended = trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await self.daemon.run(task_status=task_status)
            self.ended.set()

        await self._nursery.start(run)

    async def kill(self) -> None:
        self.daemon.signal(signal.SIGKILL)
        await self.ended.wait()

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        async with self.daemon.client() as client:
            answer = await client.request(method, path, **options)
            assert answer.is_success, answer.text
            return answer.json() if answer.content and "json" in answer.headers["content-type"] else None

    async def prepare(self) -> None:
        app = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "optional"}}}
        await self.ask("POST", "/api/registry/v1alpha1/apps", json=app)
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            params = {"version": version, "hardware": "esp32c3", "kind": "raw"}
            await self.ask("POST", f"{DFU}/firmware", params=params, content=image)
        for name in ("d1", "d2"):
            await self.ask("POST", "/api/registry/v1alpha1/apps/a/devices", json={"metadata": {"name": name, "application": "a"}})
            self.secrets[name] = (await self.ask("POST", f"{DFU}/secret/{name}"))["secret"]

    async def update(self, name: str, version: str = "1.1") -> None:
        """Have a device go the whole way to a version."""
        await self.ask("POST", f"{DFU}/update", json={"device": name, "firmware": {"version": version}})
        auth = (f"{name}@a", self.secrets[name])
        async with httpx.AsyncClient(base_url=self.daemon.urls["http"], auth=auth, timeout=60) as client:
            board = HttpDevice(client, OLD if version == "1.1" else NEW, "1.0" if version == "1.1" else "1.1")
            with trio.fail_after(60):
                while board.version != version:
                    await board.update()
                    await trio.sleep(0.05)

    async def expected(self) -> dict[str, list[tuple[str, str]]]:
        found = {}
        for name in ("d1", "d2"):
            history = await self.ask("GET", f"{DFU}/history/{name}")
            found[name] = [(entry["event"], entry["state"]) for entry in reversed(history)]
        return {name: entries for name, entries in found.items() if entries}

    async def arrived(self) -> None:
        """Wait until the webhook has heard of everything that is in the history."""
        with trio.fail_after(60):
            while self.receiver.told("deployment") != await self.expected():
                await trio.sleep(0.1)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    receiver = Receiver()
    await nursery.start(receiver.run)
    (tmp_path / "secret").write_bytes(SECRET)
    extra = f"""
[events.webhook]
url = "http://127.0.0.1:{receiver.port}/hook"
secret_file = "{tmp_path}/secret"
timeout_s = 0.5
[events.log]
path = "{tmp_path}/events.jsonl"
[outbox]
retry_s = 0.05
retry_max_s = 0.3
attempts = 3
"""
    daemon = DaemonProcess(tmp_path / "dfud", plugins=("local", "http", "drogue"), extra=extra)
    await daemon.init()
    made = World(daemon, receiver, nursery)
    await made.start()
    await made.prepare()
    yield made
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["500", "hang", "late", "away"])
async def test_a_receiver_hears_everything_at_least_once_over_a_kill(
    world: World, how: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    await world.update("d1")
    await world.arrived()
    if how == "away":
        world.receiver.stop()
    else:
        world.receiver.how = how
    await world.update("d2")
    await world.update("d1", "1.0")
    expected = await world.expected()
    # It costs only itself: the log has all of it.
    with trio.fail_after(120):
        while True:
            lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
            if len({line["id"] for line in lines if line["type"] == "io.dfud.deployment.v1"}) == sum(map(len, expected.values())):
                break
            await trio.sleep(0.05)
    await world.kill()
    await world.start()
    assert await world.expected() == expected
    if how == "away":
        await nursery.start(world.receiver.run)
    world.receiver.how = "fine"
    await world.arrived()
    with trio.fail_after(120):
        while True:
            (webhook,) = [one for one in await world.ask("GET", "/api/dfu/v1/outbox") if one["sink"] == "webhook"]
            if not webhook["waiting"]:
                break
            await trio.sleep(0.05)
    assert (webhook["dead"], webhook["lost"], webhook["problem"]) == (0, 0, "")
    if how == "late":
        assert len(world.receiver.taken) > len({event["id"] for event in world.receiver.taken})
    one = next(e for e in world.receiver.taken if e["type"] == "io.dfud.deployment.v1")
    assert one["partitionkey"] == "a/deployments/d1" and one["source"] == "dfud://a/deployments/d1" and one["device"] == "d1"


async def test_dead_letters_are_shown_and_told_again(world: World) -> None:
    world.receiver.how = "422"
    spec = {"firmware": "1.1", "devices": {"names": ["d1"]}, "waves": [{"percent": 100}]}
    await world.ask("POST", f"{DFU}/rollouts", json={"metadata": {"name": "r"}, "spec": spec, "draft": True})
    with trio.fail_after(120):
        while not (letters := await world.ask("GET", "/api/dfu/v1/outbox/dead")):
            await trio.sleep(0.05)
    (letter,) = letters
    assert (letter["kind"], letter["app"], letter["subject"]) == ("rollout", "a", "r")
    assert (letter["problem"], letter["attempts"]) == ("[events.webhook] answered 422", 3)
    metrics = await _metrics(world)
    assert 'dfud_outbox_dead_letters{sink="webhook"} 1' in metrics and 'dfud_outbox_waiting{sink="log"} 0' in metrics
    await world.kill()
    await world.start()
    world.receiver.how = "fine"
    found = await world.ask("POST", "/api/dfu/v1/outbox/dead/retry", json={"sink": "webhook"})
    assert (found["number"], found["left"]) == (1, 0)
    with trio.fail_after(120):
        while not world.receiver.taken:
            await trio.sleep(0.05)
    event = world.receiver.taken[0]
    assert (event["id"], event["data"]["event"], event["data"]["state"]) == (letter["event"], "created", "draft")
    assert {one["id"] for one in world.receiver.taken} == {letter["event"]}, "at least once: a late answer has it told again"
    async with world.daemon.client() as client:
        for body in ({"sink": "nothing"}, {"sink": "webhook", "ids": ["x"]}):
            assert (await client.post("/api/dfu/v1/outbox/dead/drop", json=body)).status_code == 404


async def _metrics(world: World) -> str:
    async with world.daemon.client() as client:
        return (await client.get("/metrics")).text


async def test_the_stream_tells_of_rollouts_too(world: World) -> None:
    async with world.daemon.client() as client, client.stream("GET", f"{DFU}/events") as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        spec = {"firmware": "1.1", "devices": {"names": ["d1"]}}
        await world.ask("POST", f"{DFU}/rollouts", json={"metadata": {"name": "r"}, "spec": spec, "draft": True})
        with trio.fail_after(120):
            async for line in lines:
                if line.strip():
                    break
    told = json.loads(line)
    assert (told["event"], told["rollout"], told["state"], told["firmware"]) == ("RolloutChanged", "r", "draft", "1.1")


async def test_the_stream_has_the_events_of_the_webhook_with_their_ids(world: World, nursery: trio.Nursery) -> None:
    found: list[dict[str, Any]] = []
    begun = trio.Event()

    async def read() -> None:
        async with world.daemon.client() as client:
            async with client.stream("GET", f"{DFU}/events", params={"format": "cloudevents"}) as stream:
                async for line in stream.aiter_lines():
                    begun.set()
                    found.extend([json.loads(line)] if line.strip() else [])

    nursery.start_soon(read)
    await begun.wait()
    spec = {"firmware": "1.1", "devices": {"names": ["d2"]}}
    await world.ask("POST", f"{DFU}/rollouts", json={"metadata": {"name": "r"}, "spec": spec, "draft": True})
    await world.update("d1")
    await world.ask("DELETE", f"{DFU}/rollouts/r")
    await world.arrived()
    with trio.fail_after(120):
        while {event["id"] for event in found} != {event["id"] for event in world.receiver.taken}:
            await trio.sleep(0.05)
    told = {event["id"]: event for event in world.receiver.taken}
    assert all(event == told[event["id"]] for event in found)
    assert {event["type"] for event in found} == {"io.dfud.deployment.v1", "io.dfud.rollout.v1"}
    async with world.daemon.client() as client:
        assert (await client.get(f"{DFU}/events", params={"format": "xml"})).status_code == 400
    nursery.cancel_scope.cancel()
