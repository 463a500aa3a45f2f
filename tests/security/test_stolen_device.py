"""The attacker has one device's secret. The real daemon; the device is simulated, for its secret is all that he needs."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from devicefw.sim.firmware import build
from dfud.model import credentials
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from dfud.wire.enrol import Enrolment, encode_enrolment
from dfud.wire.messages import Type

OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n", "1.1", code=bytes(range(256)) * 20)
APPS = "/api/registry/v1alpha1/apps"


class World:
    def __init__(self, daemon: DaemonProcess, admin: httpx.AsyncClient) -> None:
        self.daemon, self.admin = daemon, admin
        self.secrets: dict[str, str] = {}

    async def device(self, name: str, app: str = "a", **spec: Any) -> str:
        body = {"metadata": {"name": name}, "spec": spec}
        assert (await self.admin.post(f"{APPS}/{app}/devices", json=body)).status_code == 201
        return await self.rotate(name, app)

    async def rotate(self, name: str, app: str = "a", **parameters: str) -> str:
        answer = await self.admin.post(f"/api/dfu/v1/apps/{app}/secret/{name}", params=parameters)
        self.secrets[name] = str(answer.json()["secret"])
        return self.secrets[name]

    def as_device(self, name: str, app: str = "a", secret: str | None = None) -> httpx.AsyncClient:
        password = self.secrets[name] if secret is None else secret
        return httpx.AsyncClient(base_url=self.daemon.urls["http"], auth=(f"{name}@{app}", password), timeout=60, verify=False)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        found = World(daemon, admin)
        for app in ("a", "b"):
            body = {"metadata": {"name": app}, "spec": {"signing": {"mode": "optional"}}}
            assert (await admin.post(APPS, json=body)).status_code == 201
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            parameters = {"version": version, "hardware": "esp32c3"}
            published = await admin.post("/api/dfu/v1/apps/a/firmware", params=parameters, content=image)
            assert published.status_code == 201, published.text
        yield found
    nursery.cancel_scope.cancel()


async def offered(world: World, name: str) -> str:
    """Have a package prepared for a device; return its name."""
    body = {"device": name, "firmware": {"version": "1.1"}}
    await world.admin.post("/api/dfu/v1/apps/a/update", json=body)
    async with world.as_device(name) as client:
        device = HttpDevice(client, OLD, "1.0")
        with trio.fail_after(60):
            while True:
                command = await device.poll()
                if command is not None and command.type is Type.UPDATE:
                    return command.package.hex()
                await trio.sleep(0.2)


async def test_he_fetches_no_package_but_the_devices_own(world: World) -> None:
    await world.device("victim")
    await world.device("stolen")
    package = await offered(world, "victim")
    async with world.as_device("victim") as victim, world.as_device("stolen") as thief:
        assert (await victim.get(f"/v1/dfu/{package}/0")).status_code == 200
        for target in (f"/v1/dfu/{package}/0", f"/v1/dfu/{package}/0-3", f"/v1/dfu/{package}/0?device=victim"):
            assert (await thief.get(target)).status_code in (403, 404)
        assert (await thief.get(f"/v1/dfu/{package}/0", params={"as": "victim"})).status_code == 404


async def test_he_speaks_for_no_other_device(world: World) -> None:
    await world.device("victim")
    await world.device("stolen")
    async with world.as_device("stolen") as thief:
        assert (await thief.post("/v1/temp", content=b"1")).status_code == 202
        for query in ({"as": "victim"}, {"device": "victim"}, {"application": "b"}, {"as": "nobody"}):
            answer = await thief.post("/v1/temp", params=query, content=b"1")
            assert answer.status_code == 403, query
    for name in ("victim", "stolen@b"):
        async with world.as_device(name, secret=world.secrets["stolen"]) as thief:
            assert (await thief.post("/v1/temp", content=b"1")).status_code == 403


async def test_he_reaches_nothing_of_the_user_plane(world: World) -> None:
    secret = await world.device("stolen")
    basic = base64.b64encode(f"stolen@a:{secret}".encode()).decode()
    for authorization in (f"Bearer {secret}", f"Basic {basic}", f"Bearer drg_aaaaaa_{secret}"):
        async with httpx.AsyncClient(base_url=world.daemon.urls["registry"], timeout=60) as thief:
            for path in (APPS, f"{APPS}/a", f"{APPS}/a/devices/stolen", "/api/dfu/v1/audit", "/metrics", "/api/tokens/v1alpha1"):
                answer = await thief.get(path, headers={"authorization": authorization})
                assert (answer.status_code, answer.json()["error"]) == (403, "AuthenticationError")


async def test_he_makes_no_other_device_known(world: World) -> None:
    secret = await world.device("stolen")
    async with world.as_device("stolen") as thief:
        for code in ("", secret, "dfc_aaaaaa_" + secret):
            message = encode_enrolment(Enrolment("a", "another", code or "x", secret))
            assert (await thief.post("/v1/enrol", content=message)).status_code == 403
    assert (await world.admin.get(f"{APPS}/a/devices/another")).status_code == 404


async def test_he_is_the_device_until_its_secret_is_revoked(world: World) -> None:
    """What he can do: lie about this device. A rotation with --revoke ends it at once, also where he is logged in already."""
    old = await world.device("stolen")
    async with world.as_device("stolen", secret=old) as thief:
        assert (await thief.post("/v1/temp", content=b"1")).status_code == 202
        lies = HttpDevice(thief, OLD, "6.6.6")
        await lies.poll()
        told = (await world.admin.get(f"{APPS}/a/devices/stolen")).json()["status"]["firmware"]
        assert told["current"] == "6.6.6"
        new = await world.rotate("stolen")
        assert (await thief.post("/v1/temp", content=b"1")).status_code == 202, "the device has to be told first"
        newest = await world.rotate("stolen", revoke="true")
        assert (await thief.post("/v1/temp", content=b"1")).status_code == 403
    for secret, status in ((new, 403), (newest, 202)):
        async with world.as_device("stolen", secret=secret) as device:
            assert (await device.post("/v1/temp", content=b"1")).status_code == status


async def test_every_way_of_being_wrong_looks_the_same(world: World) -> None:
    """Same code, same headers, same body, and the same count of comparisons: which name exists is not to be found out."""
    await world.device("known")
    await world.device("off", core={"disabled": True})
    await world.admin.put(f"{APPS}/b", json={"metadata": {"name": "b"}, "spec": {"core": {"disabled": True}}})
    url = world.daemon.urls["http"]

    def basic(text: str) -> dict[str, str]:
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    secret = world.secrets["known"]
    wrong: list[dict[str, Any]] = [
        {"headers": basic("known@a:wrong")},
        {"headers": basic("nobody@a:wrong")},
        {"headers": basic("known@nothing:wrong")},
        {"headers": basic(f"known@b:{secret}")},
        {"headers": basic(f"off@a:{world.secrets['off']}")},
        {"headers": basic("known@a:")},
        {"headers": {"authorization": "Bearer " + secret}},
        {"headers": {"authorization": "Basic !"}},
        {"headers": {}},
        {"headers": basic(f"known@a:{secret}"), "params": {"as": "nobody"}},
        {"headers": basic(f"user:{secret}"), "params": {"application": "a", "device": "known"}},
    ]
    seen = set()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for options in wrong:
            for path in ("/v1/temp", "/v1/dfu"):
                answer = await client.post(path, content=b"\x80", **options)
                seen.add((answer.status_code, answer.content, tuple(sorted(answer.headers.items()))))
        codes = (encode_enrolment(Enrolment("a", name, "dfc_x", "s" * 22)) for name in ("known", "nobody"))
        for message in codes:
            answer = await client.post("/v1/enrol", content=message)
            seen.add((answer.status_code, answer.content, tuple(sorted(answer.headers.items()))))
    assert len(seen) == 1, seen


async def test_somebody_who_guesses_does_not_lock_the_device_out_that_is_logged_in(world: World) -> None:
    """What a stranger can do: keep a device that has to log in anew waiting for a minute, if he knows its name."""
    await world.device("victim")
    async with world.as_device("victim") as victim, world.as_device("victim", secret="guess") as stranger:
        assert (await victim.post("/v1/temp", content=b"1")).status_code == 202
        codes = [(await stranger.post("/v1/temp", content=b"1")).status_code for _ in range(12)]
        assert codes[0] == 403 and codes[-1] == 429
        assert (await victim.post("/v1/temp", content=b"1")).status_code == 202


def test_every_way_of_being_wrong_costs_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password of a device, and a device that there is not, are as dear. What is counted, for time is noise here."""
    key = b"k" * 32
    spec = credentials.protect({"authentication": {"credentials": [{"pass": "right"}]}}, key)
    counted: list[str] = []
    genuine = credentials._keyed_mac

    def counting(*given: Any) -> Any:
        counted.append("x")
        return genuine(*given)

    monkeypatch.setattr(credentials, "_keyed_mac", counting)
    costs = []
    for held, user in ((spec, None), ({}, None), (spec, "nobody"), ({"authentication": {"credentials": 7}}, None)):
        for verify in (credentials.verify, credentials.verify_quick):
            counted.clear()
            assert verify(held, user, "wrong", key) is False
            costs.append(len(counted))
    assert costs == [1] * 8
    assert credentials.verify(spec, None, "right", key)
