"""What several dfud hand on to a webhook: each telemetry once, changes in the order of each device, whoever of them is killed."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from tests.daemon.test_events import SECRET, Receiver
from tests.plugins.postgres.cluster import APP, LATEST_S, OLD, Cluster, RoamingDevice, running
from tests.plugins.postgres.server import Server

SIZE = 3
DEVICES = 4
SAID = 12


class WithSinks(Cluster):
    plugins = ("postgres", "http", "drogue")


def with_sinks(directory: Path, receiver: Receiver) -> WithSinks:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "secret").write_bytes(SECRET)
    extra = f"""
[events.webhook]
url = "http://127.0.0.1:{receiver.port}/hook"
secret_file = "{directory}/secret"
timeout_s = 30
[outbox]
retry_s = 0.05
retry_max_s = 0.3
"""
    return WithSinks(directory, SIZE, extra=extra)


async def test_telemetry_is_handed_on_once_whichever_process_takes_it(
    postgres: Server, nursery: trio.Nursery, tmp_path: Path
) -> None:
    receiver = Receiver()
    await nursery.start(receiver.run)
    async with running(with_sinks(tmp_path, receiver)) as cluster, AsyncExitStack() as stack:
        secrets = await cluster.prepare(DEVICES)

        async def say(device: str, secret: str) -> None:
            clients = [await stack.enter_async_context(cluster.client_of(device, secret, n)) for n in range(SIZE)]
            for number in range(SAID):
                answer = await clients[number % SIZE].post("/v1/state", json={"from": device, "number": number})
                assert answer.status_code == 202

        async with trio.open_nursery() as saying:
            for device, secret in secrets.items():
                saying.start_soon(say, device, secret)
        said = [(event["data"]["from"], event["data"]["number"]) for event in receiver.taken if "from" in event.get("data", {})]
        assert Counter(said) == Counter((device, number) for device in secrets for number in range(SAID))
        assert len({event["id"] for event in receiver.taken}) == len(receiver.taken)
    nursery.cancel_scope.cancel()


async def test_changes_arrive_in_order_when_the_process_that_tells_them_is_killed(
    postgres: Server, nursery: trio.Nursery, tmp_path: Path
) -> None:
    receiver = Receiver()
    await nursery.start(receiver.run)
    async with running(with_sinks(tmp_path, receiver)) as cluster, AsyncExitStack() as stack:
        secrets = await cluster.prepare(DEVICES)
        with trio.fail_after(LATEST_S):
            while not (leaders := [n for n, daemon in enumerate(cluster.daemons) if _tells(daemon.lines)]):
                await trio.sleep(0.05)
        (leader,) = leaders
        left = [n for n in range(SIZE) if n != leader]
        await cluster.want("2.0", left[0])
        with trio.fail_after(LATEST_S):
            for number, (name, secret) in enumerate(secrets.items()):
                clients = [await stack.enter_async_context(cluster.client_of(name, secret, n)) for n in left]
                device = RoamingDevice(clients, OLD, "1.0")
                while device.version != "2.0":
                    await device.update()
                    await trio.sleep(0.05)
                if number == 1:
                    cluster.daemons[leader].kill()
            expected: dict[str, Any] = {}
            for name in secrets:
                history = (await cluster.ask("GET", f"/api/dfu/v1/apps/{APP}/history/{name}", left[0])).json()
                expected[name] = [(entry["event"], entry["state"]) for entry in reversed(history)]
            while receiver.told("deployment") != expected:
                await trio.sleep(0.1)
        assert any(_tells(cluster.daemons[n].lines) for n in left)
    nursery.cancel_scope.cancel()


def _tells(lines: list[dict[str, object]]) -> bool:
    return any(line.get("event") == "leads" and line.get("work") == "outbox.webhook" for line in lines)
