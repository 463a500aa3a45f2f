"""The registry's API on the real process: Drogue's shapes and codes, firmware, roles, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootloader.sim.images import envelope
from devicefw.sim.firmware import build
from dfud.testing.daemon import DaemonProcess
from dfud.wire.manifest import Manifest, sign

APPS = "/api/registry/v1alpha1/apps"
DFU = "/api/dfu/v1/apps/a"
IMAGE = build("print(1)\n", "1.0")


class Api:
    def __init__(self, daemon: DaemonProcess, client: httpx.AsyncClient) -> None:
        self.daemon = daemon
        self.client = client

    async def ask(self, status: int, method: str, path: str, **options: Any) -> Any:
        """Send a request, insist on its status, return the JSON (or None)."""
        answer = await self.client.request(method, path, **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content and "json" in answer.headers["content-type"] else None

    async def app(self, **spec: Any) -> None:
        body = {"metadata": {"name": "a", "labels": {"team": "x"}}, "spec": {"signing": {"mode": "optional"}, **spec}}
        await self.ask(201, "POST", APPS, json=body)

    async def device(self, name: str, **labels: str) -> None:
        body = {"metadata": {"name": name, "application": "a", "labels": labels}}
        await self.ask(201, "POST", f"{APPS}/a/devices", json=body)

    async def publish(self, status: int = 201, image: bytes = IMAGE, **parameters: Any) -> Any:
        parameters = {"version": "1.0", "hardware": "esp32c3", **parameters}
        headers = parameters.pop("headers", {})
        return await self.ask(status, "POST", f"{DFU}/firmware", params=parameters, content=image, headers=headers)


@pytest.fixture
async def api(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Api]:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as client:
        yield Api(daemon, client)
    nursery.cancel_scope.cancel()


async def test_apps_and_devices_have_drogues_shape_and_codes(api: Api) -> None:
    body = {"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00.123456789Z", "generation": 0}}
    answer = await api.client.post(APPS, json=body)
    assert (answer.status_code, answer.content, answer.headers["location"]) == (201, b"", f"{APPS}/a")
    assert (await api.ask(409, "POST", APPS, json=body))["error"] == "Conflict"
    found = await api.ask(200, "GET", f"{APPS}/a")
    known = {"name", "uid", "creationTimestamp", "generation", "resourceVersion", "labels", "annotations", "finalizers"}
    assert set(found["metadata"]) <= known
    assert (found["metadata"]["generation"], found["spec"], found["status"]) == (1, {}, {})
    assert (await api.ask(404, "GET", f"{APPS}/nothing"))["error"] == "NotFound"
    assert (await api.ask(404, "POST", f"{APPS}/b/devices", json={"metadata": {"name": "d"}}))["error"] in (
        "NotFound",
        "ReferenceNotFound",
    )
    assert (await api.ask(400, "POST", APPS, json={"metadata": {"name": "Not A Host"}}))["error"] == "InvalidRequest"
    assert (await api.ask(400, "POST", APPS, content=b"{"))["error"] == "InvalidRequest"
    await api.ask(400, "POST", APPS, json={"metadata": {"name": "b", "owner": "me"}})
    await api.ask(204, "DELETE", f"{APPS}/a")
    await api.ask(404, "DELETE", f"{APPS}/a")


async def test_a_change_counts_and_is_locked_against_others(api: Api) -> None:
    await api.app()
    await api.device("d")
    path = f"{APPS}/a/devices/d"
    found = await api.ask(200, "GET", path)
    await api.ask(204, "PUT", path, json=found)
    assert await api.ask(200, "GET", path) == found, "a PUT that changes nothing changes nothing"
    found["spec"]["x"] = 1
    await api.ask(204, "PUT", path, json=found)
    again = await api.ask(200, "GET", path)
    assert again["metadata"]["generation"] == 2
    assert (await api.ask(409, "PUT", path, json={**found, "spec": {}}))["error"] == "Conflict"
    again["metadata"]["labels"] = {"l": "v"}
    again["status"] = {"firmware": "mine"}
    await api.ask(204, "PUT", path, json=again)
    third = await api.ask(200, "GET", path)
    assert third["metadata"]["generation"] == 2
    assert third["status"]["firmware"] != "mine"
    stale = {"preconditions": {"resourceVersion": found["metadata"]["resourceVersion"]}}
    await api.ask(409, "DELETE", path, json=stale)
    assert (await api.ask(400, "DELETE", path, content=b"{"))["error"] == "InvalidRequest"
    await api.ask(204, "DELETE", path, json={"preconditions": {"uid": found["metadata"]["uid"]}})


async def test_finalizers_hold_a_deletion_back(api: Api) -> None:
    await api.app()
    body = {"metadata": {"name": "d", "application": "a", "finalizers": ["f"]}}
    await api.ask(201, "POST", f"{APPS}/a/devices", json=body)
    await api.ask(204, "DELETE", f"{APPS}/a/devices/d")
    found = await api.ask(200, "GET", f"{APPS}/a/devices/d")
    assert found["metadata"]["deletionTimestamp"]
    await api.ask(404, "DELETE", f"{APPS}/a/devices/d")
    found["metadata"]["finalizers"] = []
    await api.ask(204, "PUT", f"{APPS}/a/devices/d", json=found)
    await api.ask(404, "GET", f"{APPS}/a/devices/d")


async def test_a_name_or_alias_that_another_device_has_is_refused(api: Api) -> None:
    await api.app()
    await api.device("d")
    found = await api.ask(200, "GET", f"{APPS}/a/devices/d")
    found["spec"]["alias"] = ["nick", "d"]
    await api.ask(204, "PUT", f"{APPS}/a/devices/d", json=found)
    for name, aliases in (("nick", []), ("e", ["nick"]), ("e", ["d"])):
        body = {"metadata": {"name": name, "application": "a"}, "spec": {"alias": aliases}}
        refused = await api.ask(409, "POST", f"{APPS}/a/devices", json=body)
        assert refused["error"] == "Conflict"
        assert "alias of device d" in refused["message"]
    await api.device("e")
    other = await api.ask(200, "GET", f"{APPS}/a/devices/e")
    other["spec"]["alias"] = ["nick"]
    await api.ask(409, "PUT", f"{APPS}/a/devices/e", json=other)
    found = await api.ask(200, "GET", f"{APPS}/a/devices/d")
    found["spec"] = {"note": "without its aliases"}
    await api.ask(204, "PUT", f"{APPS}/a/devices/d", json=found)
    await api.ask(204, "PUT", f"{APPS}/a/devices/e", json=other)


async def test_names_may_hold_slashes_and_signs(api: Api) -> None:
    await api.app()
    for name in ("a/b", "ü@x", "50%", "a b"):
        await api.device(name)
        found = await api.ask(200, "GET", f"{APPS}/a/devices/{quote(name, safe='')}")
        assert found["metadata"]["name"] == name


async def test_labels_select_and_pages_are_pages(api: Api) -> None:
    await api.app()
    for number in range(5):
        await api.device(f"d{number}", site="a" if number < 2 else "b")
    listed = await api.ask(200, "GET", f"{APPS}/a/devices", params={"labels": "site=b", "limit": 2, "offset": 1})
    assert [d["metadata"]["name"] for d in listed] == ["d3", "d4"]
    await api.ask(400, "GET", f"{APPS}/a/devices", params={"labels": "(("})
    await api.ask(400, "GET", APPS, params={"limit": "many"})
    assert await api.ask(200, "GET", APPS, params={"labels": "team=y"}) == []


async def test_a_plain_password_is_never_read_back(api: Api) -> None:
    await api.app()
    spec = {"authentication": {"credentials": [{"pass": "hunter2"}]}}
    await api.ask(201, "POST", f"{APPS}/a/devices", json={"metadata": {"name": "d"}, "spec": spec})
    answer = await api.client.get(f"{APPS}/a/devices/d")
    assert "hunter2" not in answer.text
    assert "hunter2" not in str(api.daemon.lines)


async def test_firmware_is_published_read_and_deleted(api: Api) -> None:
    await api.app()
    made = await api.publish(sha256=hashlib.sha256(IMAGE).hexdigest(), notes="first")
    assert (made["version"], made["sequence"], made["size"], made["signed"]) == ("1.0", 1, len(IMAGE), False)
    assert (await api.publish(201))["sequence"] == 1, "the same again is no conflict"
    assert (await api.publish(409, build("print(2)\n", "x")))["error"] == "Conflict"
    assert (await api.publish(version="1.1", image=build("print(3)\n", "x")))["sequence"] == 2
    assert [f["version"] for f in await api.ask(200, "GET", f"{DFU}/firmware")] == ["1.1", "1.0"]
    assert (await api.client.get(f"{DFU}/firmware/1.0/image")).content == IMAGE
    await api.device("d")
    await api.ask(200, "POST", f"{DFU}/update", json={"device": "d", "firmware": {"version": "1.0"}})
    refused = await api.ask(409, "DELETE", f"{DFU}/firmware/1.0")
    assert "wanted by device d" in refused["message"]
    await api.ask(200, "POST", f"{DFU}/update", json={"device": "d", "firmware": None})
    await api.ask(204, "DELETE", f"{DFU}/firmware/1.0")
    await api.ask(404, "GET", f"{DFU}/firmware/1.0")
    assert [p.name for p in (api.daemon.directory / "state" / "blobs").rglob("*") if p.is_file()] != []


@pytest.mark.parametrize(
    ("parameters", "image", "message"),
    [
        ({}, b"", "empty"),
        ({}, b"no image", "not an ESP image"),
        ({}, IMAGE[:-1], "ESP image"),
        ({}, IMAGE[:100] + b"\xff" + IMAGE[101:], "ESP image"),
        ({"hardware": "esp32s3"}, IMAGE, "the image is for esp32c3, not for esp32s3"),
        ({"hardware": "toaster"}, IMAGE, "expected <chip>"),
        ({"sha256": "00" * 32}, IMAGE, "arrived with SHA-256"),
        ({"version": ""}, IMAGE, "version"),
        ({"kind": "tar"}, IMAGE, "expected one of esp-image, raw"),
        ({"sequence": "-1"}, IMAGE, "sequence"),
        ({"headers": {"dfud-manifest": "%%%"}}, IMAGE, "base64"),
    ],
)
async def test_an_upload_that_is_not_right_leaves_nothing(
    api: Api, parameters: dict[str, Any], image: bytes, message: str
) -> None:
    await api.app()
    assert message in (await api.publish(400, image, **parameters))["message"]
    assert await api.ask(200, "GET", f"{DFU}/firmware") == []
    assert [p for p in (api.daemon.directory / "state" / "blobs").rglob("*") if p.is_file()] == []


async def test_raw_firmware_is_any_file(api: Api) -> None:
    await api.app()
    assert (await api.publish(image=b"anything", kind="raw"))["kind"] == "raw"


async def test_unsigned_firmware_is_refused_unless_the_app_says_otherwise(api: Api) -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    await api.app(signing={"keys": [public]})
    assert "takes signed firmware only" in (await api.publish(409))["message"]
    manifest = Manifest("a", "1.0", "esp32c3", 7, len(IMAGE), hashlib.sha256(IMAGE).digest())

    def header(envelope: bytes) -> dict[str, str]:
        return {"dfud-manifest": base64.b64encode(envelope).decode()}

    assert "not signed by a trusted key" in (await api.publish(409, headers=header(sign(manifest, stranger))))["message"]
    other = build("print(9)\n", "x")
    assert "another image" in (await api.publish(400, other, headers=header(sign(manifest, key))))["message"]
    made = await api.publish(headers=header(sign(manifest, key)))
    assert (made["signed"], made["sequence"]) == (True, 7)


async def test_a_manifest_that_would_leave_a_device_nothing_to_boot_is_refused(api: Api) -> None:
    """Signed by the app's own key, by another tool than ours: the registry is the last one who can say so to the publisher."""
    key = Ed25519PrivateKey.generate()
    text = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    await api.app(signing={"keys": [text]})
    for floor, status in ((8, 400), (7, 201)):
        signed = base64.b64encode(envelope(IMAGE, signer=key, app="a", sequence=7, floor=floor)).decode()
        told = await api.publish(status, headers={"dfud-manifest": signed})
        if status == 400:
            assert "manifest.floor: 8, expected at most the firmware's own sequence, 7" in told["message"]
            assert await api.ask(200, "GET", f"{DFU}/firmware") == []


async def test_a_group_is_updated_in_one_call(api: Api) -> None:
    await api.app()
    await api.publish()
    for number in range(300):
        await api.device(f"d{number:03}", ring="1" if number % 2 else "2")
    for changed in (150, 0):
        body = {"selector": "ring=1", "firmware": {"version": "1.0"}}
        job = await api.ask(202, "POST", f"{DFU}/update", json=body)
        assert job["matched"] == 150
        while job["state"] == "running":
            job = await api.ask(200, "GET", f"{DFU}/jobs/{job['job']}")
        assert (job["state"], job["changed"], job["unchanged"]) == ("done", changed, 150 - changed)
    found = await api.ask(200, "GET", f"{APPS}/a/devices/d001")
    assert found["status"]["firmware"]["target"] == "1.0"
    assert (await api.ask(200, "GET", f"{APPS}/a/devices/d000"))["status"]["firmware"]["target"] == ""
    await api.ask(404, "POST", f"{DFU}/update", json={"selector": "ring=1", "firmware": {"version": "9"}})
    await api.ask(400, "POST", f"{DFU}/update", json={"selector": "", "firmware": {"version": "1.0"}})


async def test_the_app_says_for_all_and_a_device_for_itself(api: Api) -> None:
    await api.app()
    await api.publish()
    await api.publish(version="1.1", image=build("print(3)\n", "x"))
    await api.device("one")
    await api.device("two")
    await api.ask(200, "POST", f"{DFU}/update", json={"firmware": {"version": "1.0"}})
    await api.ask(200, "POST", f"{DFU}/update", json={"device": "two", "firmware": {"version": "1.1"}})
    targets = [d["status"]["firmware"]["target"] for d in await api.ask(200, "GET", f"{APPS}/a/devices")]
    assert targets == ["1.0", "1.1"]
    one = await api.ask(200, "GET", f"{APPS}/a/devices/one")
    one["spec"]["firmware"] = {"container": {"image": "x"}}
    await api.ask(204, "PUT", f"{APPS}/a/devices/one", json=one)
    condition = (await api.ask(200, "GET", f"{APPS}/a/devices/one"))["status"]["firmware"]["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("Unknown", "BadSpec")
    assert "container is not understood" in condition["message"]


@pytest.mark.parametrize("name", ["", "\x1b[31m", " x", "u\u0308", "x" * 256])
async def test_a_command_has_a_name_that_can_be_shown(api: Api, name: str) -> None:
    await api.app()
    await api.device("d")
    found = await api.ask(400, "POST", "/api/command/v1alpha1/apps/a/devices/d", params={"command": name})
    assert "expected" in found["message"]


async def test_roles_are_least_privilege(api: Api) -> None:
    await api.app()
    await api.device("d")
    await api.ask(201, "POST", APPS, json={"metadata": {"name": "b"}})
    tokens = {}
    for role in ("reader", "manager"):
        made = await api.ask(200, "POST", "/api/tokens/v1alpha1", json={"user": role, "roles": {"a": role}})
        tokens[role] = {"authorization": f"Bearer {made['token']}"}
    reader, manager = tokens["reader"], tokens["manager"]
    command = "/api/command/v1alpha1/apps/a/devices/d?command=blink"
    await api.ask(200, "GET", f"{APPS}/a/devices/d", headers=reader)
    await api.ask(403, "POST", command, headers=reader)
    await api.ask(202, "POST", command, headers=manager)
    await api.ask(403, "DELETE", f"{APPS}/a/devices/d", headers=reader)
    await api.ask(403, "POST", APPS, json={"metadata": {"name": "c"}}, headers=manager)
    await api.ask(404, "GET", f"{APPS}/b", headers=reader)
    assert [a["metadata"]["name"] for a in await api.ask(200, "GET", APPS, headers=reader)] == ["a"]
    await api.ask(403, "GET", "/api/dfu/v1/audit", headers=manager)
    await api.ask(403, "POST", "/api/tokens/v1alpha1", json={"roles": {"a": "admin"}}, headers=manager)
    found = await api.ask(200, "GET", f"{APPS}/a", headers=manager)
    found["spec"]["signing"] = {"mode": "required"}
    await api.ask(403, "PUT", f"{APPS}/a", json=found, headers=manager)
    for headers in ({}, {"authorization": "Bearer drg_000000_x"}, {"authorization": "Basic !!"}):
        async with httpx.AsyncClient(base_url=api.daemon.urls["registry"], headers=headers, timeout=60) as stranger:
            answer = await stranger.get(APPS)
            assert (answer.status_code, answer.json()["error"]) == (403, "AuthenticationError")


async def test_who_changed_what_is_on_record(api: Api) -> None:
    await api.app()
    await api.device("d")
    await api.ask(201, "POST", f"{DFU}/secret/d")
    entries = await api.ask(200, "GET", "/api/dfu/v1/audit")
    assert [(e["by"], e["what"], e["target"]) for e in entries] == [
        ("dfud init", "create-token", api.daemon.token[:10]),
        ("admin", "create", "a"),
        ("admin", "create", "a/d"),
        ("admin", "rotate-secret", "a/d"),
    ]
    assert await api.ask(200, "GET", "/api/dfu/v1/audit", params={"after": entries[-1]["key"]}) == []


async def test_a_pre_shared_key_is_shown_once_and_replaces_the_old_ones(api: Api) -> None:
    await api.app()
    await api.device("d")
    first = await api.ask(201, "POST", f"{DFU}/psk/d")
    await api.ask(201, "POST", f"{DFU}/secret/d")
    second = await api.ask(201, "POST", f"{DFU}/psk/d")
    assert len(bytes.fromhex(second["psk"])) == 16 and first["psk"] != second["psk"]
    shown = (await api.ask(200, "GET", f"{APPS}/a/devices/d"))["spec"]["authentication"]["credentials"]
    assert sorted(key for c in shown for key in c) == ["pass", "psk"]  # one of each, and neither of them readable
    assert second["psk"] not in str(shown) and "key" not in next(c["psk"] for c in shown if "psk" in c)
    await api.ask(404, "POST", f"{DFU}/psk/nobody")
    entries = await api.ask(200, "GET", "/api/dfu/v1/audit")
    assert [e["what"] for e in entries if e["target"] == "a/d"] == ["create", "rotate-psk", "rotate-secret", "rotate-psk"]


async def test_the_last_admin_token_stays(api: Api) -> None:
    refused = await api.ask(409, "DELETE", f"/api/tokens/v1alpha1/{api.daemon.token[:10]}")
    assert "last admin token" in refused["message"]
    made = await api.ask(200, "POST", "/api/tokens/v1alpha1", params={"description": "another"})
    listed = await api.ask(200, "GET", "/api/tokens/v1alpha1")
    assert {"another", "made by dfud init"} == {t["description"] for t in listed}
    assert made["token"] not in str(listed)
    await api.ask(204, "DELETE", f"/api/tokens/v1alpha1/{made['prefix']}")


async def test_events_stream_and_end(api: Api) -> None:
    await api.app()
    lines: list[str] = []
    async with api.client.stream("GET", f"{DFU}/events") as stream:
        found = stream.aiter_lines()
        await anext(found)
        await api.device("d")
        lines.append(await anext(found))
    assert '"event":"DeviceChanged"' in lines[0]


async def test_limits_hold(api: Api) -> None:
    await api.ask(413, "POST", APPS, content=b" " * (1 << 21))
    await api.app()
    deep = b'{"metadata":{"name":"z"},"spec":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}"
    answer = await api.client.post(APPS, content=deep)
    assert answer.status_code in (201, 400)
    assert (await api.client.get("/healthz")).status_code == 200
    assert (await api.client.get("/readyz")).json() == {"status": "ready"}
    assert "dfud_devices_waiting" in (await api.client.get("/metrics")).text
    await api.ask(404, "GET", "/nothing/here")
    told = (await api.ask(405, "PATCH", APPS))["message"]
    assert told == f"PATCH {APPS}: expected GET or POST there"
    told = (await api.ask(404, "GET", "/api/hawkbit/status"))["message"]
    assert "GET /api/hawkbit/status: this dfud has no such address; a plugin's are there only while" in told


async def test_a_stream_of_events_ends_in_order_when_dfud_stops(api: Api) -> None:
    await api.app()
    async with api.client.stream("GET", f"{DFU}/events") as stream:
        found = stream.aiter_bytes()
        await anext(found)
        api.daemon.signal(signal.SIGTERM)
        with trio.fail_after(120):
            assert [piece async for piece in found if piece.strip()] == [], "ended by its last chunk, not by a cut"
    with trio.fail_after(120):
        while api.daemon.exit_code is None:
            await trio.sleep(0.02)
    assert api.daemon.exit_code == 0


async def test_firmware_beyond_the_configured_size_is_refused_and_leaves_nothing(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    text = daemon.config.read_text().replace("[registry]\n", "[registry]\nfirmware_max = 100000\n")
    daemon.write_config = lambda: daemon.config.write_text(text)  # type: ignore[assignment,method-assign]  # once
    await nursery.start(daemon.run)
    async with daemon.client() as client:
        api = Api(daemon, client)
        await api.app()
        refused = await api.publish(400, bytes(100_001), kind="raw")
        assert refused["message"] == "the firmware is larger than 100000 bytes"
        assert [p for p in (daemon.directory / "state" / "blobs").rglob("*") if p.is_file()] == []
        await api.publish(201, bytes(100_000), kind="raw")
    nursery.cancel_scope.cancel()
