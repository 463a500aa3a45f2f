"""Several dfud on one PostgreSQL behave as one."""

from __future__ import annotations

import hashlib
import time
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from dfud.wire.messages import Status, Type, decode_command_untrusted, encode_status
from tests.plugins.postgres.cluster import APP, LATEST_S, NEW, OLD, Cluster, RoamingDevice, running
from tests.plugins.postgres.server import Server

CALM = Status("1.0", hashlib.sha256(OLD).digest(), "esp32c3", 7, 16384, 1 << 22)
PARKED_S = 0.5  # a request that was sent is parked by then; if it is not, the test is milder, never wrong


async def test_a_device_may_talk_to_any_process_at_any_time(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster, AsyncExitStack() as stack:
        secrets = await cluster.prepare(1)
        clients = [await stack.enter_async_context(cluster.client_of("dev0", secrets["dev0"], n)) for n in (0, 1)]
        device = RoamingDevice(clients, OLD, "1.0")
        first = await device.poll()
        assert first is not None and first.type in (Type.SYNC, Type.WAIT)
        await cluster.want("2.0", 1)
        with trio.fail_after(LATEST_S):
            while device.version != "2.0":
                await device.update()
        assert device.image == NEW
        for number in (0, 1):
            found = await cluster.firmware_of("dev0", number)
            assert found["current"] == "2.0", found
        history = (await cluster.ask("GET", f"/api/dfu/v1/apps/{APP}/history/dev0")).json()
        events = [entry["event"] for entry in history]
        assert events.count("created") == 1 and events.count("confirmed") == 1, events


async def test_who_is_parked_at_one_is_told_what_another_was_asked(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster:
        secrets = await cluster.prepare(1)
        async with cluster.client_of("dev0", secrets["dev0"], 1) as client:
            told: list[tuple[float, bytes]] = []

            async def park() -> None:
                answer = await client.post("/v1/dfu", params={"ct": 50}, content=encode_status(CALM))
                answer.raise_for_status()
                told.append((time.monotonic(), answer.content))

            await client.post("/v1/dfu", content=encode_status(CALM))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(park)
                await trio.sleep(PARKED_S)
                asked = time.monotonic()
                await cluster.want("2.0", 0, "dev0")
            command = decode_command_untrusted(told[0][1])
            assert command.version == "2.0" or "being made" in command.reason, command
            print(f"told after {told[0][0] - asked:.3f} s")


async def test_a_command_reaches_the_device_where_it_waits_and_once(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster:
        secrets = await cluster.prepare(1)
        async with cluster.client_of("dev0", secrets["dev0"], 1) as client:
            told: list[bytes] = []

            async def wait() -> None:
                answer = await client.post("/v1/state", params={"ct": 50}, content=b"x")
                answer.raise_for_status()
                told.append(answer.content)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(PARKED_S)
                path = f"/api/command/v1alpha1/apps/{APP}/devices/dev0"
                await cluster.ask("POST", path, 0, params={"command": "blink"}, content=b"twice")
            assert told == [b"twice"]
            # What was kept while it was away comes from whichever process it comes back to, and once.
            await cluster.ask("POST", path, 0, params={"command": "blink"}, content=b"thrice")
            await trio.sleep(PARKED_S)
            found = [(await client.post("/v1/state", content=b"x")).content for _ in range(2)]
            async with cluster.client_of("dev0", secrets["dev0"], 0) as other:
                found.append((await other.post("/v1/state", content=b"x")).content)
            assert found == [b"thrice", b"", b""]


async def test_guesses_count_at_every_process(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster:
        await cluster.prepare(1)
        async with cluster.client_of("dev0", "wrong", 0) as client, cluster.client_of("dev0", "wrong", 1) as other:
            codes = [(await client.post("/v1/dfu", content=encode_status(CALM))).status_code for _ in range(10)]
            assert codes == [403] * 10
            with trio.fail_after(LATEST_S):
                while (await other.post("/v1/dfu", content=encode_status(CALM))).status_code == 403:
                    await trio.sleep(0.05)


async def test_who_was_turned_away_at_one_is_known_at_another_until_it_is_let_in(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster:
        secrets = await cluster.prepare(1)

        async def known(number: int) -> bool:
            answer = (await cluster.ask("GET", f"/api/dfu/v1/apps/{APP}/explain/dev0", number)).json()
            return "refused" in answer["values"]

        async with cluster.client_of("dev0", "wrong", 0) as client:
            for _ in range(2):
                assert (await client.post("/v1/dfu", content=encode_status(CALM))).status_code == 403
        with trio.fail_after(LATEST_S):
            while not await known(1):
                await trio.sleep(0.05)
            async with cluster.client_of("dev0", secrets["dev0"], 1) as client:
                while await known(0):
                    (await client.post("/v1/dfu", content=encode_status(CALM))).raise_for_status()
                    await trio.sleep(0.05)
        assert not await known(1)


async def test_a_rollout_goes_on_when_the_process_that_leads_it_is_killed(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 3)) as cluster, AsyncExitStack() as stack:
        secrets = await cluster.prepare(6)
        left = [n for n, daemon in enumerate(cluster.daemons) if not _leads(daemon.lines, "rollouts")]
        leader = next(n for n, daemon in enumerate(cluster.daemons) if _leads(daemon.lines, "rollouts"))
        devices = []
        for name, secret in secrets.items():
            clients = [await stack.enter_async_context(cluster.client_of(name, secret, n)) for n in left]
            devices.append(RoamingDevice(clients, OLD, "1.0"))
        for device in devices:
            await device.poll()
        waves = [{"percent": 50, "success": {"percent": 100}, "soakS": 0}, {"percent": 100, "soakS": 0}]
        spec = {"firmware": "2.0", "waves": waves}
        path = f"/api/dfu/v1/apps/{APP}/rollouts"
        await cluster.ask("POST", path, left[0], json={"metadata": {"name": "r"}, "spec": spec})
        killed = False
        began = time.monotonic()
        with trio.fail_after(LATEST_S):
            while not all(device.version == "2.0" for device in devices):
                for device in devices:
                    if device.version != "2.0":
                        await device.update()
                if not killed and any(device.version == "2.0" for device in devices):
                    cluster.daemons[leader].kill()
                    killed, began = True, time.monotonic()
                await trio.sleep(0.05)
            while True:
                states = {(await cluster.ask("GET", f"{path}/r", n)).json()["status"]["state"] for n in left}
                if states == {"finished"}:
                    break
                await trio.sleep(0.05)
        print(f"finished {time.monotonic() - began:.1f} s after the leader was killed")
        assert killed and any(_leads(cluster.daemons[n].lines, "rollouts") for n in left)


def _leads(lines: list[dict[str, object]], work: str) -> bool:
    return any(line.get("event") == "leads" and line.get("work") == work for line in lines)


async def test_two_processes_that_hear_the_same_at_once_decide_once(postgres: Server, tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster, AsyncExitStack() as stack:
        secrets = await cluster.prepare(1)
        clients = [await stack.enter_async_context(cluster.client_of("dev0", secrets["dev0"], n)) for n in (0, 1)]
        device = RoamingDevice(clients, OLD, "1.0")
        await device.poll()
        await cluster.want("2.0", 0, "dev0")
        said = encode_status(CALM)

        async def say(number: int) -> None:
            for _ in range(5):
                (await clients[number].post("/v1/dfu", content=said)).raise_for_status()

        async with trio.open_nursery() as nursery:
            for number in (0, 1, 0, 1):
                nursery.start_soon(say, number)
        history = (await cluster.ask("GET", f"/api/dfu/v1/apps/{APP}/history/dev0")).json()
        assert [entry["event"] for entry in history].count("created") == 1
