"""Each kind of record is changed through one dfud and seen through another; and again while the other hears nothing of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import trio

from dfud.wire.messages import Type, decode_command_untrusted, encode_status
from tests.plugins.postgres.cluster import APP, LATEST_S, Cluster, running
from tests.plugins.postgres.server import Server
from tests.plugins.postgres.test_cluster import CALM

REGISTRY, DFU = f"/api/registry/v1alpha1/apps/{APP}", f"/api/dfu/v1/apps/{APP}"
Look = Callable[[], Awaitable[Any]]


async def cut_off(cluster: Cluster) -> None:
    """End every session that listens. A store listens again half a second later: what is committed by then, it never hears of."""
    which = "pg_stat_activity WHERE datname=%s AND application_name='dfud listen'"
    given = (cluster.config.database,)
    with psycopg.connect(host=cluster.config.host, user="admin", dbname="postgres", autocommit=True) as database:
        with trio.fail_after(LATEST_S):
            while database.execute(f"SELECT 1 FROM {which}", given).rowcount < len(cluster.daemons):
                await trio.sleep(0.02)
        database.execute(f"SELECT pg_terminate_backend(pid) FROM {which}", given)


class Records:
    """Changes are made through process 0; what is asked is asked of process 1."""

    def __init__(self, cluster: Cluster, device: httpx.AsyncClient) -> None:
        self.cluster, self.device = cluster, device

    async def change(self, method: str, path: str, **options: Any) -> Any:
        answer = await self.cluster.ask(method, path, 0, **options)
        return answer.json() if answer.content and answer.headers.get("content-type") == "application/json" else None

    async def edit(self, path: str, **spec: Any) -> None:
        """Set keys of a spec; None: remove it."""
        found = await self.change("GET", path)
        found["spec"] = {key: value for key, value in {**found["spec"], **spec}.items() if value is not None}
        await self.change("PUT", path, json=found)

    async def look(self, path: str) -> Any:
        async with self.cluster.user(1) as user:
            answer = await user.get(path)
        return answer.json() if answer.is_success else answer.status_code

    async def said(self) -> int:
        return (await self.device.post("/v1/dfu", content=encode_status(CALM))).status_code

    async def told(self) -> str:
        answer = await self.device.post("/v1/dfu", content=encode_status(CALM))
        if answer.status_code != 200:
            return str(answer.status_code)
        command = decode_command_untrusted(answer.content)
        return "2.0" if command.type is Type.UPDATE or "being made" in command.reason else command.reason

    async def rollouts(self) -> list[str]:
        found = await self.look(f"{DFU}/rollouts")
        return [one["status"]["state"] for one in found]


async def until(look: Look, fits: Callable[[Any], bool], what: str) -> None:
    found: Any = None
    with trio.move_on_after(LATEST_S):
        while not fits(found := await look()):
            await trio.sleep(0.02)
        return
    raise AssertionError(f"{what}: {found!r}")


Case = tuple[str, Look, Callable[[Any], bool], Callable[[], Awaitable[Any]], Callable[[Any], bool]]


def cases(r: Records) -> list[Case]:
    """What it is; what is asked; what is said before; what is changed; what has to be said then."""
    device, app = f"{REGISTRY}/devices/dev0", REGISTRY
    spec = {"firmware": "2.0", "waves": [{"percent": 100}]}
    rollout = {"metadata": {"name": "r"}, "spec": spec}
    firmware, made = f"{DFU}/firmware/2.0", f"{DFU}/rollouts"

    def change(method: str, path: str, **body: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: r.change(method, path, json=body)

    def one(found: Any) -> bool:
        return len(found) == 1

    return [
        ("disabled device", r.said, _is(200), lambda: r.edit(device, core={"disabled": True}), _is(403)),
        ("enabled device", r.said, _is(403), lambda: r.edit(device, core=None), _is(200)),
        ("disabled app", r.said, _is(200), lambda: r.edit(app, core={"disabled": True}), _is(403)),
        ("enabled app", r.said, _is(403), lambda: r.edit(app, core=None), _is(200)),
        ("target", r.told, _is_not("2.0"), lambda: r.edit(device, firmware={"version": "2.0"}), _is("2.0")),
        ("recall", r.told, _is("2.0"), change("POST", f"{firmware}/recall", reason="it burns"), _has("recalled")),
        ("end of a recall", r.told, _has("recalled"), change("POST", f"{firmware}/unrecall"), _is("2.0")),
        ("no target", r.told, _is("2.0"), lambda: r.edit(device, firmware=None), _is_not("2.0")),
        ("app's target", r.told, _is_not("2.0"), lambda: r.edit(app, firmware={"version": "2.0"}), _is("2.0")),
        ("no app's target", r.told, _is("2.0"), lambda: r.edit(app, firmware=None), _is_not("2.0")),
        ("rollout", r.rollouts, _is([]), change("POST", made, **rollout), one),
        ("aborted", r.rollouts, one, change("POST", f"{made}/r/abort"), _is(["aborted"])),
        ("no rollout", r.rollouts, _is(["aborted"]), change("DELETE", f"{made}/r"), _is([])),
        ("password", r.said, _is(200), change("POST", f"{DFU}/secret/dev0?revoke=true"), _is(403)),
    ]  # fmt: skip


def _is(expected: Any) -> Callable[[Any], bool]:
    return lambda found: bool(found == expected)


def _is_not(unexpected: Any) -> Callable[[Any], bool]:
    return lambda found: bool(found != unexpected)


def _has(text: str) -> Callable[[Any], bool]:
    return lambda found: text in str(found)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
async def test_what_one_dfud_changes_the_other_says(postgres: Server, tmp_path: Path, heard: bool) -> None:
    async with running(Cluster(tmp_path, 2)) as cluster:
        secrets = await cluster.prepare(1)
        async with cluster.client_of("dev0", secrets["dev0"], 1) as client:
            for what, look, before, change, after in cases(Records(cluster, client)):
                await until(look, before, f"before {what}")
                if not heard:
                    await cut_off(cluster)
                    await look()  # now it is remembered again, after all was forgotten since it was cut off
                await change()
                await until(look, after, what)
