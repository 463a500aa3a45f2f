"""What users may store, told by its place; and what is stored already and breaks a rule costs itself only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from dfud.api import App, Device, Metadata, PutApp, PutDevice
from dfud.model.credentials import LIMITS
from dfud.testing.daemon import DaemonProcess
from tests.registry.served import APPS, DFU, ask, database, prepared

BCRYPT = "$2b$31$" + "a" * 53
DEEP = object()


def passwords(*forms: Any) -> dict[str, Any]:
    return {"authentication": {"credentials": [{"pass": form} for form in forms]}}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.fixture
async def daemon(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    app = App(Metadata("a", resource_version="1"), {"signing": {"mode": "optional"}})
    devices = [Device(Metadata(name, "a", resource_version="1")) for name in ("good", "deep", "odd", "large", "zz")]
    found = await prepared(tmp_path / "dfud", "", [[PutApp(app), *map(PutDevice, devices)]])
    with database(tmp_path / "dfud") as rows:
        deep = msgspec.msgpack.encode(Device(Metadata("deep", "a", resource_version="1"), {"x": nested(600)}))
        large = msgspec.msgpack.encode(Device(Metadata("large", "a", resource_version="1"), {"x": "y" * 200_000}))
        for name, body in (("deep", deep), ("odd", b"\xc1"), ("large", large)):
            rows.execute("UPDATE device SET body=? WHERE name=?", (body, name))
    await nursery.start(found.run)
    yield found
    nursery.cancel_scope.cancel()


REFUSED: list[tuple[Any, str]] = [
    ({"a": [{"b": 1 << 64}]}, "spec.a[0].b: 0x10000000000000000 is beyond 64 bits"),
    (DEEP, "more than 32 lists and objects within each other"),
    ({"a": "x" * 70_000}, "expected at most 65536"),
    ({"alias": "one"}, "spec.alias: expected a list of text"),
    ({"alias": ["fine", ".."]}, "spec.alias[1]: alias '..'"),
    (passwords({"bcrypt": BCRYPT}), f"cost 31, expected a bcrypt hash of cost 4 to {LIMITS.bcrypt_cost}"),
    (
        {"credentials": {"credentials": [{"user": {"username": "u", "password": {"bcrypt": BCRYPT}}}]}},
        "spec.credentials.credentials[0].user.password.bcrypt",
    ),
    (passwords({"x": BCRYPT, "bcrypt": None}), "bcrypt and something else"),
    (passwords({"sha512": "$6$rounds=999999999$salt$" + "a" * 86}), "999999999 rounds"),
    (passwords(*["x"] * 33), "33, expected at most 32"),
]


async def test_what_may_not_be_stored_is_named_by_its_place(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for spec, message in REFUSED:
            for method, path, name in (("POST", "", "new"), ("PUT", "/good", "good")):
                # Not by the encoder of this process, which has limits of its own.
                body = msgspec.json.encode({"metadata": {"name": name}, "spec": spec if spec != DEEP else 0})
                content = body.replace(b'"spec":0', b'"spec":{"a":' + b"[" * 300 + b"]" * 300 + b"}")
                found = await ask(admin, 400, method, f"{APPS}/a/devices{path}", content=content)
                assert message in found["message"]


ODD_BODIES = [
    '{"metadata":{"name":"n"},"spec":{"a":1e999}}',
    '{"metadata":{"name":"n"},"spec":{"a":"\\ud800"}}',
    '{"metadata":{"name":"n"},"spec":{"a":NaN}}',
    '{"metadata":{"name":"n"},"spec":' + "[" * 100_000,
    '{"metadata":{"name":"n"},"spec":' + '{"a":' * 100_000,
    '{"metadata":{"name":"n","labels":{"a":"' + "x" * 300 + '"}}}',
    '{"metadata":{"name":"n","annotations":{"a":"' + "x" * 20_000 + '"}}}',
    '{"metadata":{"name":"n","finalizers":[' + ",".join(['"f"'] * 33) + "]}}",
]


async def test_no_body_is_a_fault_of_dfuds(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for text in ODD_BODIES:
            for path in (f"{APPS}/a/devices", APPS, "/api/tokens/v1alpha1", f"{DFU}/claims", f"{DFU}/update"):
                answer = await admin.post(path, content=text)
                assert answer.status_code == 400, (path, text[:80], answer.text)


async def test_a_record_that_cannot_be_read_costs_itself_and_is_replaced_or_deleted(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        listed = {d["metadata"]["name"]: d for d in await ask(admin, 200, "GET", f"{APPS}/a/devices")}
        assert {"good", "large", "zz"} <= set(listed)
        assert (await ask(admin, 500, "GET", f"{APPS}/a/devices/odd"))["error"] == "Unreadable"
        # Their record may be read or not, which is the database's; they are found by their names either way.
        for name in ("deep", "odd"):
            body = {"metadata": {"name": name}, "spec": {"mended": True}}
            await ask(admin, 204, "PUT", f"{APPS}/a/devices/{name}", json=body)
            assert (await ask(admin, 200, "GET", f"{APPS}/a/devices/{name}"))["spec"] == {"mended": True}
        names = [d["metadata"]["name"] for d in await ask(admin, 200, "GET", f"{APPS}/a/devices")]
        assert names == ["deep", "good", "large", "odd", "zz"]
        whats = [(e["what"], e["target"]) for e in await ask(admin, 200, "GET", "/api/dfu/v1/audit")]
        assert ("replace", "a/odd") in whats


async def test_a_record_that_cannot_be_read_can_be_deleted(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for name in ("deep", "odd", "large"):
            await ask(admin, 204, "DELETE", f"{APPS}/a/devices/{name}")
        assert [d["metadata"]["name"] for d in await ask(admin, 200, "GET", f"{APPS}/a/devices")] == ["good", "zz"]


async def test_what_was_stored_larger_than_is_allowed_now_can_still_be_updated(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        params = {"version": "1", "hardware": "x", "kind": "raw"}
        await ask(admin, 201, "POST", f"{DFU}/firmware", params=params, content=b"image")
        found = await ask(admin, 200, "GET", f"{APPS}/a/devices/large")
        found["spec"]["x"] = "y" * 150_000
        await ask(admin, 204, "PUT", f"{APPS}/a/devices/large", json=found)
        found["spec"]["x"] = "y" * 200_000
        del found["metadata"]["resourceVersion"]
        await ask(admin, 400, "PUT", f"{APPS}/a/devices/large", json=found)


async def test_a_firmware_that_cannot_be_read_is_left_out_and_can_be_deleted(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = App(Metadata("a", resource_version="1"), {"signing": {"mode": "optional"}})
    daemon = await prepared(tmp_path / "dfud", "", [[PutApp(app)]])
    stop = trio.CancelScope()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        with stop:
            await daemon.run(task_status=task_status)
        stopped.set()

    stopped = trio.Event()
    await nursery.start(run)
    async with daemon.client() as admin:
        for version in ("1", "2"):
            params = {"version": version, "hardware": "x", "kind": "raw"}
            await ask(admin, 201, "POST", f"{DFU}/firmware", params=params, content=b"image")
    stop.cancel()
    await stopped.wait()
    with database(tmp_path / "dfud") as rows:
        rows.execute("UPDATE firmware SET body=? WHERE version='1'", (b"\xc1",))
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        assert [f["version"] for f in await ask(admin, 200, "GET", f"{DFU}/firmware")] == ["2"]
        assert (await ask(admin, 500, "GET", f"{DFU}/firmware/1"))["error"] == "Unreadable"
        params = {"version": "1", "hardware": "x", "kind": "raw"}
        found = await ask(admin, 409, "POST", f"{DFU}/firmware", params=params, content=b"image")
        assert "cannot be read: delete it" in found["message"]
        await ask(admin, 204, "DELETE", f"{DFU}/firmware/1")
        await ask(admin, 201, "POST", f"{DFU}/firmware", params=params, content=b"image")
    nursery.cancel_scope.cancel()


async def test_an_odd_device_does_not_stop_a_group(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        params = {"version": "1", "hardware": "x", "kind": "raw"}
        await ask(admin, 201, "POST", f"{DFU}/firmware", params=params, content=b"image")
        await ask(admin, 204, "PUT", f"{APPS}/a/devices/odd", json={"metadata": {"name": "odd"}})
        body = {"selector": "!x", "firmware": {"version": "1"}}
        job = await ask(admin, 202, "POST", f"{DFU}/update", json=body)
        while job["state"] == "running":
            job = await ask(admin, 200, "GET", f"{DFU}/jobs/{job['job']}")
        assert job["state"] == "done" and job["changed"] >= 3
        for name in ("good", "odd", "zz"):
            device = await ask(admin, 200, "GET", f"{APPS}/a/devices/{name}")
            assert device["status"]["firmware"]["target"] == "1"
        (entry,) = [e for e in await ask(admin, 200, "GET", "/api/dfu/v1/audit") if e["what"] == "group-updated"]
        assert "devices changed to 1" in entry["detail"] and "from none" in entry["detail"]
        assert json.dumps(entry)
