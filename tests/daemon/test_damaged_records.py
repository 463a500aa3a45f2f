"""A state that a failing disk or an older dfud has left: what cannot be read costs itself, and users can repair it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import trio

from dfud.testing.daemon import DaemonProcess

APPS = "/api/registry/v1alpha1/apps"


def change(path: Path, table: str, name: str, changed: Callable[[bytes], bytes]) -> None:
    database = sqlite3.connect(path / "state" / "dfud.sqlite3")
    with database:
        (body,) = database.execute(f"SELECT body FROM {table} WHERE name=?", (name,)).fetchone()
        database.execute(f"UPDATE {table} SET body=? WHERE name=?", (changed(body), name))
    database.close()


def torn(body: bytes) -> bytes:
    return b"\xc1" + body[1:]


def deep(body: bytes) -> bytes:
    """Return the device as an older dfud stored it: with a spec of 976 levels."""
    device = msgspec.msgpack.decode(body)
    device["spec"] = msgspec.Raw(b"\x81\xa1x" * 976 + b"\x80")
    return msgspec.msgpack.encode(device)


async def make_device(client: httpx.AsyncClient, name: str) -> str:
    made = {"metadata": {"name": name, "application": "app"}}
    assert (await client.post(f"{APPS}/app/devices", json=made)).status_code == 201
    return str((await client.post(f"/api/dfu/v1/apps/app/secret/{name}")).json()["secret"])


async def test_one_wrong_byte_costs_one_record_of_a_running_fleet(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    secrets: dict[str, str] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client:
            for name in ("app", "other"):
                assert (await client.post(APPS, json={"metadata": {"name": name}})).status_code == 201
            for name in ("good", "torn", "deep"):
                secrets[name] = await make_device(client, name)
            # What no store can hold is refused, and nobody waits for it.
            odd = b'{"metadata": {"name": "odd", "application": "app"}, "spec": {"x": %d}}' % (1 << 64)
            headers = {"content-type": "application/json"}
            answer = await client.post(f"{APPS}/app/devices", content=odd, headers=headers)
            assert 400 <= answer.status_code < 500
            assert (await client.get(f"{APPS}/app")).status_code == 200
        nursery.cancel_scope.cancel()
    change(tmp_path, "device", "torn", torn)
    change(tmp_path, "device", "deep", deep)
    change(tmp_path, "app", "other", torn)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client, httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as devices:

            async def publishes(name: str, secret: str) -> int:
                auth = (f"{name}@app", secret)
                return (await devices.post("/v1/telemetry", content=b"x", auth=auth)).status_code

            for _ in range(3):
                for name in ("torn", "deep"):
                    # A stranger who names it, and the device itself.
                    assert await publishes(name, "guess") >= 400
                    assert await publishes(name, secrets[name]) >= 400
                assert await publishes("good", secrets["good"]) == 202
            listed = (await client.get(f"{APPS}/app/devices")).json()
            assert [d["metadata"]["name"] for d in listed] == ["good"]
            assert [a["metadata"]["name"] for a in (await client.get(APPS)).json()] == ["app"]
            answer = await client.get(f"{APPS}/app/devices/torn")
            assert answer.status_code == 500
            assert "torn" in answer.text
            assert b"dfud_store_unreadable_records 3" in (await client.get("/metrics")).content
            # Put again, or deleted: repaired.
            put = {"metadata": {"name": "torn", "application": "app"}}
            assert (await client.put(f"{APPS}/app/devices/torn", json=put)).status_code == 204
            assert (await client.delete(f"{APPS}/app/devices/deep")).status_code == 204
            assert (await client.delete(f"{APPS}/other")).status_code == 204
            listed = (await client.get(f"{APPS}/app/devices")).json()
            assert [d["metadata"]["name"] for d in listed] == ["good", "torn"]
            assert b"dfud_store_unreadable_records 0" in (await client.get("/metrics")).content
            secret = (await client.post("/api/dfu/v1/apps/app/secret/torn")).json()["secret"]
            assert await publishes("torn", secret) == 202
            assert (await client.get("/readyz")).status_code == 200
        nursery.cancel_scope.cancel()
    named = [line["error"] for line in daemon.lines if line.get("event") == "a stored record cannot be read"]
    assert len(named) == 3, named


GARBAGE = [b"", b"\xc1", b"{", b"[]", b'{"name": 1e999}', b"null", b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}"]
# Where a document of a collection is listed, and deleted by its name.
DOCUMENTS = {
    "token": ("/api/tokens/v1alpha1", "/api/tokens/v1alpha1/{}"),
    "claim": ("/api/dfu/v1/apps/app/claims", "/api/dfu/v1/apps/app/claims/{}"),
    "rollout": ("/api/dfu/v1/apps/app/rollouts", "/api/dfu/v1/apps/app/rollouts/{}"),
    "audit": ("/api/dfu/v1/audit", ""),
}


async def test_a_document_of_any_kind_that_cannot_be_read_costs_itself_and_can_be_deleted(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client:
            assert (await client.post(APPS, json={"metadata": {"name": "app"}})).status_code == 201
            secret = await make_device(client, "good")
        nursery.cancel_scope.cancel()
    rows = [
        (collection, key.format(number), value)
        for collection, key in (("token", "drg_bad00{}"), ("claim", "app/bad{}"), ("rollout", "app/bad{}"), ("audit", "{:020d}"))
        for number, value in enumerate(GARBAGE, 1_000_000 if collection == "audit" else 0)
    ]
    database = sqlite3.connect(tmp_path / "state" / "dfud.sqlite3")
    with database:
        database.executemany("INSERT INTO document (collection, key, value) VALUES (?, ?, ?)", rows)
    database.close()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client, httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as devices:
            for collection, (listed, deleted) in DOCUMENTS.items():
                answer = await client.get(listed, params={"all": "true"} if collection == "token" else {})
                assert answer.status_code == 200, (collection, answer.text)
                for number in range(len(GARBAGE)) if deleted else ():
                    answer = await client.delete(deleted.format(f"{'drg_bad00' if collection == 'token' else 'bad'}{number}"))
                    assert answer.status_code == 204, (collection, number, answer.text)
            answer = await client.get("/api/dfu/v1/audit", params={"order": "newest"})
            assert {entry["what"] for entry in answer.json()} >= {"create", "delete-token", "delete-rollout"}, "others"
            answer = await devices.post("/v1/telemetry", content=b"x", auth=("good@app", secret))
            assert answer.status_code == 202
            answer = await devices.post("/v1/telemetry", content=b"x", auth=("nobody@app", "bad0"))
            assert answer.status_code == 403
            bad = {"authorization": "Bearer drg_bad001" + "x" * 30}
            assert (await client.get(APPS, headers=bad)).status_code == 403
            assert (await client.get("/readyz")).status_code == 200
        nursery.cancel_scope.cancel()
    database = sqlite3.connect(tmp_path / "state" / "dfud.sqlite3")
    assert database.execute("SELECT count(*) FROM document WHERE key LIKE '%bad%' AND collection != 'audit'").fetchone() == (0,)


# Not listed by name: what waits for devices is forgotten, the rest stays until it is written again or its owner is deleted.
BEHIND = {
    "group-job": "{:018d}",
    "command": "app/good/{:020d}",
    "crash": "app/bad{}",
    "rollout.failed": "bad{}",
    "audit": "{:020d}",
}


async def test_what_is_stored_behind_the_lists_costs_itself_too(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client:
            assert (await client.post(APPS, json={"metadata": {"name": "app"}})).status_code == 201
            secret = await make_device(client, "good")
        nursery.cancel_scope.cancel()
    odd_job = msgspec.json.encode(
        {"id": "x", "app": "app", "selector": "", "firmware": None, "by": "eve", "created_s": 1e300, "state": "running"}
    )
    garbage = [*GARBAGE, b"\xff" * 40, odd_job, odd_job.replace(b'"x"', b'"7"'), b"9" * 5000]
    rows = [
        (collection, key.format(number), value)
        for collection, key in BEHIND.items()
        for number, value in enumerate(garbage, 100)
    ]
    names = ["", "/", "hour/x", "hour/\u00b2", "at/x/1.0", "at/", f"at/{'9' * 5000}/1", "version/\u202e", "crash/bad1"]
    database = sqlite3.connect(tmp_path / "state" / "dfud.sqlite3")
    with database:
        database.executemany("INSERT INTO document (collection, key, value) VALUES (?, ?, ?)", rows)
        database.executemany("INSERT INTO count (scope, name, number) VALUES ('fleet/app', ?, 3)", [(name,) for name in names])
    database.close()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client, httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as devices:
            dfu = "/api/dfu/v1/apps/app"
            for path in ("jobs", "fleet", "attention", "rollouts", "drift", "explain/good"):
                answer = await client.get(f"{dfu}/{path}")
                assert answer.status_code == 200, (path, answer.text)
            answer = await client.post(f"{dfu}/update", json={"selector": "!x", "firmware": {"hold": True}})
            assert answer.status_code == 202, answer.text
            job = answer.json()["job"]
            with trio.fail_after(60):
                while (await client.get(f"{dfu}/jobs/{job}")).json()["state"] == "running":
                    await trio.sleep(0.05)  # another process's work: there is no event to wait for
            assert (await client.get(f"{dfu}/jobs/{job}")).json()["changed"] == 1
            for number in range(100, 100 + len(garbage)):
                assert (await client.get(f"{dfu}/jobs/{number}")).status_code == 404
                assert (await client.post(f"{dfu}/jobs/{number}/cancel")).status_code == 200
            assert [one["job"] for one in (await client.get(f"{dfu}/jobs")).json()] == [job]
            answer = await client.post("/api/command/v1alpha1/apps/app/devices/good", params={"command": "blink"}, content=b"x")
            assert answer.status_code == 202, answer.text
            answer = await devices.post("/v1/telemetry", params={"ct": "5"}, content=b"x", auth=("good@app", secret))
            assert (answer.status_code, answer.headers["command"], answer.content) == (200, "blink", b"x")
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.delete(f"{APPS}/app")).status_code == 204
        nursery.cancel_scope.cancel()
    database = sqlite3.connect(tmp_path / "state" / "dfud.sqlite3")
    left = database.execute("SELECT key FROM document WHERE collection IN ('command', 'group-job') ORDER BY 1").fetchall()
    assert left == [(f"{int(job):018d}",)]
    named = {line.get("where") for line in daemon.lines if line.get("event") == "contained an exception"}
    assert named >= {"registry.groups", "endpoint.command", "fleet.crash"}, named
