"""A whole dfud, from outside: what once ended it costs the one who sent it, or whom it befell."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import bcrypt
import httpx
import trio

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from tests.endpoint.test_containment import BODIES

REGISTRY = "/api/registry/v1alpha1/apps"


async def prepare(daemon: DaemonProcess, names: list[str]) -> dict[str, str]:
    """Make the app a with these devices; return their secrets."""
    secrets = {}
    async with daemon.client() as admin:
        (await admin.post(REGISTRY, json={"metadata": {"name": "a"}})).raise_for_status()
        for name in names:
            (await admin.post(f"{REGISTRY}/a/devices", json={"metadata": {"name": name}})).raise_for_status()
            secrets[name] = str((await admin.post(f"/api/dfu/v1/apps/a/secret/{name}")).json()["secret"])
    return secrets


async def publish(daemon: DaemonProcess, user: str, secret: str, body: bytes = b"1") -> int:
    async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=(user, secret), timeout=60) as client:
        return (await client.post("/v1/temp", content=body)).status_code


async def test_no_telemetry_of_one_device_ends_dfud(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    extra = f'[events.log]\npath = "{path}"\n'
    daemon = DaemonProcess(tmp_path / "dfud", plugins=("local", "http", "drogue"), extra=extra)
    await daemon.init()
    await nursery.start(daemon.run)
    secrets = await prepare(daemon, ["d", "e"])
    for body in BODIES:
        assert await publish(daemon, "d@a", secrets["d"], body) == 202
    assert await publish(daemon, "e@a", secrets["e"]) == 202
    assert len([json.loads(line) for line in path.read_bytes().splitlines()]) == len(BODIES) + 1
    nursery.cancel_scope.cancel()


async def test_an_update_of_a_device_is_one_line_of_the_log_at_the_most(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    names = ["d1", "d2", "d3"]
    secrets = await prepare(daemon, names)
    images = {"1.0": b"old" * 1000, "1.1": b"new" * 3000}
    async with daemon.client() as admin:
        app = (await admin.get(f"{REGISTRY}/a")).raise_for_status().json()
        app["spec"] = {**app.get("spec", {}), "signing": {"mode": "optional"}}
        (await admin.put(f"{REGISTRY}/a", json=app)).raise_for_status()
        for version, image in images.items():
            about = {"version": version, "hardware": "esp32c3", "kind": "raw"}
            (await admin.post("/api/dfu/v1/apps/a/firmware", params=about, content=image)).raise_for_status()
        for name in names:
            wanted = {"device": name, "firmware": {"version": "1.1"}}
            (await admin.post("/api/dfu/v1/apps/a/update", json=wanted)).raise_for_status()
    before = len(daemon.lines)
    for name in names:
        auth = (f"{name}@a", secrets[name])
        async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=auth, timeout=60) as client:
            board = HttpDevice(client, images["1.0"], "1.0")
            with trio.fail_after(60):
                while board.version != "1.1":
                    await board.update()
                    await trio.sleep(0.05)
    told = [line for line in daemon.lines[before:] if line.get("level") != "debug"]
    assert len(told) <= len(names), told
    nursery.cancel_scope.cancel()


def too_deep(body: bytes) -> bytes:
    """Nest a value of the record's spec, which is msgpack, 20,000 deep: more than any Python reads."""
    at = body.index(b"\xa4spec") + 5
    assert 0x80 <= body[at] < 0x8F
    return body[:at] + bytes([body[at] + 1]) + b"\xa4deep" + b"\x91" * 20_000 + b"\x90" + body[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "wrong": lambda body: b"x" + body[1:],
    "last": lambda body: body[:-1] + b"\xc1",
    "half": lambda body: body[: len(body) // 2],
    "deep": too_deep,
}


async def test_a_stranger_who_names_a_damaged_device_ends_nothing(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    async with trio.open_nursery() as running:
        await running.start(daemon.run)
        secrets = await prepare(daemon, [*DAMAGES, "sound"])
        running.cancel_scope.cancel()
    (database,) = (tmp_path / "dfud" / "state").glob("dfud.sqlite3")
    records = sqlite3.connect(database)
    for name, damage in DAMAGES.items():
        (body,) = records.execute("SELECT body FROM device WHERE name = ?", (name,)).fetchone()
        records.execute("UPDATE device SET body = ? WHERE name = ?", (damage(bytes(body)), name))
    records.commit()
    records.close()
    await nursery.start(daemon.run)
    for name in DAMAGES:
        for secret in ("guess", secrets[name]):
            assert await publish(daemon, f"{name}@a", secret) in (403, 500, 503)
        assert await publish(daemon, "sound@a", secrets["sound"]) == 202
    async with daemon.client() as admin:
        assert (await admin.get("/healthz")).status_code == 200
    assert daemon.exit_code is None
    nursery.cancel_scope.cancel()


async def test_slow_hashes_do_not_hold_up_a_stop_and_denials_are_counted(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    slow = bcrypt.hashpw(b"pw", bcrypt.gensalt(4)).decode()
    async with trio.open_nursery() as running:
        await running.start(daemon.run)
        secrets = await prepare(daemon, ["d"])
        async with daemon.client() as admin:
            for name in ("dear", "planted"):
                spec = {"authentication": {"credentials": [{"pass": {"bcrypt": slow.replace("$04$", "$13$")}}]}}
                body = {"metadata": {"name": name}, "spec": spec}
                (await admin.post(f"{REGISTRY}/a/devices", json=body)).raise_for_status()
        running.cancel_scope.cancel()
    with sqlite3.connect(tmp_path / "dfud" / "state" / "dfud.sqlite3") as records:
        (body,) = records.execute("SELECT body FROM device WHERE name = 'planted'").fetchone()
        assert b"$13$" in body  # what users may store has limits; this was stored before there were any
        records.execute("UPDATE device SET body = ? WHERE name = 'planted'", (body.replace(b"$13$", b"$31$"),))
    records.close()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with trio.open_nursery() as guessing:
            for number in range(40):
                guessing.start_soon(publish, daemon, "planted@a", f"guess {number}")
        assert await publish(daemon, "d@a", secrets["d"]) == 202
        async with daemon.client() as admin:
            metrics = (await admin.get("/metrics")).text
        assert 'dfud_devices_denied_total{reason="limit"}' in metrics
        with trio.fail_after(60):  # dfud has said it, and it is read here beside this task
            while not (denied := [line for line in daemon.lines if line.get("event") == "a device was denied"]):
                await trio.sleep(0.01)
        assert all((line["app"], line["device"]) == ("a", "planted") for line in denied)
        async with trio.open_nursery() as guessing:
            for number in range(10):
                guessing.start_soon(_guess, daemon, number)
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
    assert daemon.exit_code == 0


async def _guess(daemon: DaemonProcess, number: int) -> None:
    header = base64.b64encode(f"dear@a:{number}".encode()).decode()
    try:
        async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as client:
            await client.post("/v1/temp", content=b"1", headers={"authorization": f"Basic {header}"})
    except httpx.HTTPError:
        return
