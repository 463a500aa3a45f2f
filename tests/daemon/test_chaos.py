"""A whole dfud in which everything breaks at random, while devices of four protocols update and users ask and change.

Broken are: every call of the store, every sink, every subscriber, every view of the user plane, the endpoint behind the
transports, their handlers, each of CoAP's, a dialect, the making of packages, and a plugin's transport, sink and routes. What
belongs to the app `calm` is left alone, and must notice nothing.
"""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from dfud_drogue.cbor import decode_untrusted, encode
from dfud_drogue.dialect import AjourDialect
from dfud_http.connection import Connection
from dfud_http.quick import Quick

from dfud.api import Endpoint, Transport, UserRoutes, events, faults, open_to_all
from dfud.controller.controller import Controller
from dfud.controller.keeping import Keeper
from dfud.controller.packages import Packages
from dfud.controller.together import Together
from dfud.daemon.components import build
from dfud.endpoint.arrivals import Arrivals
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.crowd import Crowd
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.endpoint.waking import Waking
from dfud.registry.application import make_app
from dfud.testing.daemon import DaemonProcess
from tests.daemon.test_containment import serving
from tests.endpoint.chaos import NEW, OLD, Chaos, ChaosSink, ChaosStore, Fleet, coap_breaks

APPS = "/api/registry/v1alpha1/apps"
DFU = "/api/dfu/v1/apps"
HANDLERS: list[tuple[type[Any], str]] = [
    *((DeviceEndpoint, name) for name in ("_quick", "_post", "_quick_chunks", "_chunks")),
    *((Waking, name) for name in ("_look", "_make", "_reconsider")),
    *((Controller, name) for name in ("status", "report", "desired", "make")),
    # Of many devices at one time, calm ones among them.
    (Together, "take"),
    (Keeper, "of"),
    (Crowd, "judge"),
    *((Arrivals, name) for name in ("_answer", "leave_alone")),
    (Quick, "_ask"),
    (Packages, "_make"),
    (Connection, "_answer"),
    (AjourDialect, "answer"),
    (AjourDialect, "recognises"),
]


AJOUR = ["a0", "a1", "a2", "a3"]
BROKEN = {"store", "view", "bus", "DeviceEndpoint", "coap"}


def broken(chaos: Chaos) -> set[str]:
    """Return the kinds of places in which something has broken."""
    return {where.partition(".")[0] for where in chaos.raised}


class ChaosTransport(Transport):
    name = "chaos"

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos

    async def run(
        self, endpoint: Endpoint, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started(["chaos://"])
        while True:
            await trio.sleep(0.01)
            self._chaos.perhaps("transport.run")

    async def drain(self) -> None:
        raise RuntimeError("not even this")


class ChaosRoutes(UserRoutes):
    name = "chaos"

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos

    def register(self, app: Any, services: Any) -> None:
        @app.get("/chaos")  # type: ignore[untyped-decorator]  # app is quart's, typed Any
        @open_to_all
        async def chaos() -> str:
            self._chaos.perhaps("plugin.view")
            return "calm"


def everything_breaks(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each handler of HANDLERS break, and each view of the user plane but the probes and what is for calm."""
    for kind, name in HANDLERS:
        monkeypatch.setattr(kind, name, chaos.within(f"{kind.__name__}.{name}", getattr(kind, name)))

    def make(*arguments: Any) -> Any:
        app = make_app(*arguments)
        for name, view in app.view_functions.items():
            if name not in ("healthz", "readyz"):
                app.view_functions[name] = chaos.within(f"view.{name}", view)
        return app

    monkeypatch.setattr("dfud.daemon.service.make_app", make)


async def prepare(client: httpx.AsyncClient, app: str, devices: list[str]) -> dict[str, str]:
    """Make the app with two firmwares and its devices; return their secrets."""
    spec = {"firmware": {"version": "1.1"}, "signing": {"mode": "optional"}}
    (
        await client.post(APPS, json={"metadata": {"name": app}, "spec": {"signing": {"mode": "optional"}}})
    ).raise_for_status()
    for version, image in (("1.0", OLD), ("1.1", NEW)):
        parameters = {"version": version, "hardware": "esp32c3"}
        (await client.post(f"{DFU}/{app}/firmware", params=parameters, content=image)).raise_for_status()
    (await client.put(f"{APPS}/{app}", json={"metadata": {"name": app}, "spec": spec})).raise_for_status()
    secrets = {}
    for name in devices:
        made = {"metadata": {"name": name, "application": app}}
        (await client.post(f"{APPS}/{app}/devices", json=made)).raise_for_status()
        secrets[name] = str((await client.post(f"{DFU}/{app}/secret/{name}")).json()["secret"])
    return secrets


async def give_key(client: httpx.AsyncClient, app: str, name: str) -> bytes:
    """Give a device a pre-shared key beside its secret."""
    key = random.randbytes(16)
    device = (await client.get(f"{APPS}/{app}/devices/{name}")).json()
    credentials = device["spec"].setdefault("authentication", {}).setdefault("credentials", [])
    credentials.append({"psk": {"key": base64.b64encode(key).decode()}})
    (await client.put(f"{APPS}/{app}/devices/{name}", json=device)).raise_for_status()
    return key


async def update_by_ajour(url: str, name: str, secret: str, done: Callable[[str], None]) -> None:
    """A device of Drogue's: one that is refused or hung up on begins anew."""
    running, flash, update = b"1.0", b"", None
    async with httpx.AsyncClient(base_url=url, auth=(f"{name}@wild", secret), timeout=60) as client:
        for _ in range(3000):
            try:
                body = encode({0: running, 1: 4096, 2: None, 3: update})
                answer = await client.post("/v1/dfu?ct=1", content=body)
                answer.raise_for_status()
                (command, told), *_ = decode_untrusted(answer.content).items()
            except httpx.HTTPError:
                continue
            if command == 2 and told[2] == len(flash):
                flash += told[3]
                update = {0: told[0], 1: len(flash)}
            elif command == 3:
                assert flash == NEW
                running, flash, update = b"1.1", b"", None
            elif command == 1 and running == b"1.1":
                done(name)
                return
            else:
                flash, update = b"", None
                await trio.sleep(0.01)
    raise AssertionError(f"{name} still runs {running!r}")


class Users:
    """Two of them: one has to do with the app wild, and is answered, whatever that is; one with calm, and is served."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: Counter[int] = Counter()

    async def wild(self) -> None:
        number = 0
        while True:
            number += 1
            device = {"metadata": {"name": f"x{number}", "application": "wild"}}
            new = {"version": f"9.{number}", "hardware": "esp32c3", "sequence": str(1)}
            for method, path, options in (
                ("GET", APPS, {}),
                ("GET", f"{APPS}/wild/devices", {}),
                ("GET", f"{APPS}/wild/devices/d0", {}),
                ("POST", f"{APPS}/wild/devices", {"json": device}),
                ("PUT", f"{APPS}/wild/devices/x{number}", {"json": device}),
                ("DELETE", f"{APPS}/wild/devices/x{number}", {}),
                ("POST", f"{DFU}/wild/firmware", {"params": new, "content": OLD}),
                ("GET", f"{DFU}/wild/explain/d1", {}),
                ("GET", f"{DFU}/wild/history/d1", {}),
                ("POST", f"{DFU}/wild/retry/d{number % 3}", {}),
                ("GET", "/api/dfu/v1/audit", {}),
                ("GET", "/metrics", {}),
                ("GET", "/chaos", {}),
            ):
                try:
                    answer = await self._client.request(method, path, **options)
                    self.answers[answer.status_code] += 1
                except httpx.RemoteProtocolError:
                    self.answers[0] += 1  # a list that had begun

    async def calm(self) -> None:
        while True:
            for path in ("/healthz", "/readyz", f"{APPS}/calm", f"{APPS}/calm/devices", f"{DFU}/calm/explain/c0"):
                answer = await self._client.get(path)
                assert answer.status_code == 200, (path, answer.text)
                answer.json()
            wish = {"device": "c0", "firmware": {"version": "1.1"}}
            answer = await self._client.post(f"{DFU}/calm/update", json=wish)
            assert answer.is_success, answer.text


async def run(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    rate: float,
    devices: int,
) -> Chaos:
    print(f"seed {seed}")  # shown when it fails
    caplog.set_level("INFO")
    chaos = Chaos(seed, rate)
    everything_breaks(chaos, monkeypatch)
    coap_breaks(chaos, monkeypatch)
    daemon = DaemonProcess(tmp_path, plugins=("local", "http", "drogue", "coap"), coap="plain = true")
    token = await daemon.init()
    parts = build(daemon.config)
    patient = EndpointConfig(str(tmp_path / "credential.key"), failures_per_address=10_000, failures_per_device=10_000)
    config = msgspec.structs.replace(parts.config, sections={**parts.config.sections, "endpoint": patient})
    store = ChaosStore(parts.store, chaos)
    sinks = [ChaosSink("one", chaos), ChaosSink("two", chaos, also_runs=True)]
    routes = [*parts.routes, ChaosRoutes(chaos)]
    parts = msgspec.structs.replace(
        parts,
        config=config,
        store=store,
        sinks=sinks,
        routes=routes,
        transports=[*parts.transports, ChaosTransport(chaos)],
    )
    before = sum(faults().values())
    wild = {f"d{n}": "wild" for n in range(devices)}
    async with serving(parts, {}) as (service, _):
        told = [r.__dict__ for r in caplog.records if r.__dict__.get("url", "chaos://") != "chaos://"]
        said = {r.get("transport", "users"): r["url"] for r in told}
        for kind in vars(events).values():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                service._bus.subscribe(kind, chaos.within(f"bus.{kind.__name__}", lambda event: None))
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=said["users"], headers=headers, timeout=60) as client:
            by_coap = {"p0": "wild", "p1": "wild", "o0": "wild", "o1": "wild", "c2": "calm", "c3": "calm"}
            secrets = await prepare(client, "wild", [*wild, *AJOUR, *(n for n in by_coap if by_coap[n] == "wild")])
            secrets |= await prepare(client, "calm", ["c0", "c1", "c2", "c3"])
            keys = {name: await give_key(client, by_coap[name], name) for name in ("o0", "o1", "c3")}
            fleet = Fleet(said["http"], chaos, secrets, coap=said["coap"], keys=keys)
            await fleet.update("c0", "calm")  # the calm app's package is there before anything breaks
            users = Users(client)
            chaos.spared |= {asked for asked in store.asked if "'token" in asked}  # who asks is no matter of the app's
            chaos.calm = False
            with trio.fail_after(240):
                async with trio.open_nursery() as asking:
                    asking.start_soon(users.wild)
                    asking.start_soon(users.calm)
                    async with trio.open_nursery() as updating:
                        for name, app in [*wild.items(), ("c1", "calm")]:
                            updating.start_soon(fleet.update, name, app)
                        for name, app in by_coap.items():
                            updating.start_soon(fleet.update_by_coap, name, app)
                        for name in AJOUR:
                            updating.start_soon(
                                update_by_ajour, said["http"], name, secrets[name], fleet.done.append
                            )
                    asking.start_soon(fleet.talk_by_coap, "o0", "wild")
                    # The devices were quick: the users go on until everything has broken, and one of them was told.
                    while not (broken(chaos) >= BROKEN and users.answers[500] + users.answers[503]):
                        await trio.sleep(0.01)
                    asking.cancel_scope.cancel()
            chaos.calm = True
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            assert service.failure is None
    assert sorted(fleet.done) == sorted([*wild, *AJOUR, "c0", "c1", *by_coap])
    assert sum(faults().values()) > before
    assert users.answers[200] and users.answers[500] + users.answers[503], users.answers
    return chaos


async def test_a_whole_dfud_serves_on_whatever_breaks_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos = await run(tmp_path, caplog, monkeypatch, random.randrange(1 << 32), 0.02, 6)
    print(chaos.raised)
    assert broken(chaos) >= BROKEN, chaos.raised


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
async def test_a_whole_dfud_serves_on_in_long_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    chaos = await run(tmp_path, caplog, monkeypatch, random.randrange(1 << 32), 0.03, 40)
    assert len(chaos.raised) > 30, chaos.raised
