"""Every field of every body that a user sends, with something else in its place: refused, or taken, and no fault of dfud's."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from devicefw.sim.firmware import build
from dfud.testing.daemon import DaemonProcess
from tests.registry.served import ask, prepared

APPS, DFU, TOKENS = "/api/registry/v1alpha1/apps", "/api/dfu/v1/apps/a", "/api/tokens/v1alpha1"
SAMPLE = 300
ODD: list[Any] = [
    *(0, -1, 1 << 63, 1 << 64, 10**400, -(10**400), 10**4200, 1e308, -0.0, True, False, None),
    *("", " ", "x" * 100_000, "\u202e", "\x00", "a/b", "..", "*", [], {}, [[[]]] * 50, {"a": {"b": [1] * 1000}}, [None], {"": None}),
]
META = {
    "name": "n",
    "labels": {"a": "b"},
    "annotations": {"a": "b"},
    "finalizers": ["x"],
    "generation": 1,
    "resourceVersion": "1",
    "uid": "x",
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "deletionTimestamp": "2026-01-01T00:00:00Z",
}
ERROR = {"percent": 1, "atLeast": 1}
WINDOWS = [{"from": "00:00", "to": "12:00", "days": ["mon"]}]
ROLLOUT = {
    "firmware": "1",
    "app": "2",
    "waves": [{"percent": 100, "success": {"percent": 1}, "error": ERROR, "soakS": 1, "silentS": 3600, "approval": True}],
    "devices": {"selector": "a", "running": ["1"], "hardware": ["x"], "attributes": {"a": "b"}, "dynamic": True},
    "windows": WINDOWS,
    "timeZone": {"label": "zone", "default": "Europe/Berlin"},
    "start": "2036-01-01T00:00:00Z",
    "end": "2037-01-01T00:00:00Z",
    "offerUntil": "2036-02-01T00:00:00Z",
    **{"perMinute": 1, "transfers": 1, "priority": 1, "attempts": 1, "backoffS": 1},
    **{"promote": True, "onError": "pause", "mode": "offer"},
}
APP_SPEC = {
    "firmware": {"version": "1", "app": "2", "hold": True, "downloadOnly": True},
    "link": {"bytesPerSecond": 1, "metered": True},
    "layout": {"slotBytes": 1},
    "rules": [{"selector": "a=b", "firmware": {"version": "1"}}],
    "rollouts": {"approval": True},
    "signing": {"mode": "optional", "keys": ["x"]},
    "trustAnchors": {"anchors": [{"name": "x"}]},
    "core": {"disabled": True},
}
PSK = {"psk": {"key": "eA==", "validity": {"notBefore": "2026-01-01T00:00:00Z", "notAfter": "2027-01-01T00:00:00Z"}}}
USER = {"user": {"username": "u", "password": {"sha512": "$6$rounds=1000$salt$" + "x" * 86}}}
DEVICE_SPEC = {
    "authentication": {"credentials": [{"pass": "x"}]},
    "credentials": {"credentials": [USER]},
    "alias": ["x"],
    "gatewaySelector": {"matchNames": ["x"]},
    "firmware": {"version": "1"},
    "link": {"bytesPerSecond": 4},
    "commands": [{"external": {"url": "x"}}],
}
BODIES: list[tuple[str, str, Any]] = [
    ("POST", TOKENS, {"user": "u", "roles": {"a": "reader"}, "days": 1, "description": "x"}),
    ("POST", f"{DFU}/claims", {"uses": 1, "hours": 1, "device": "e", "labels": {"a": "b"}}),
    ("POST", f"{DFU}/update", {"firmware": {"version": "1", "app": "2", "hold": True, "downloadOnly": True}, "device": "d"}),
    ("POST", f"{DFU}/update", {"firmware": None, "selector": "a", "allAtOnce": True}),
    ("POST", f"{DFU}/rollouts", {"metadata": META, "spec": ROLLOUT, "draft": True}),
    ("POST", f"{DFU}/rollouts:plan", {"metadata": {"name": "p"}, "spec": ROLLOUT, "draft": True}),
    ("POST", f"{DFU}/rollouts/r/abort", {"reason": "x", "callBack": True}),
    ("POST", f"{DFU}/firmware/3/recall", {"reason": "x"}),
    ("PUT", f"{DFU}/firmware/3/ways", {"requires": {"from": 1, "to": "1"}, "stop": True}),
    ("POST", "/api/dfu/v1/outbox/dead/retry", {"sink": "x", "ids": ["a"]}),
    ("POST", f"{APPS}/a/devices:batch", {"devices": [{"metadata": META}], "secrets": True, "dryRun": True}),
    ("POST", APPS, {"metadata": META, "spec": APP_SPEC, "status": {}}),
    ("PUT", f"{APPS}/b", {"metadata": {"name": "b"}, "spec": APP_SPEC}),
    ("POST", f"{APPS}/a/devices", {"metadata": {**META, "application": "a"}, "spec": DEVICE_SPEC}),
    ("PUT", f"{APPS}/a/devices/e", {"metadata": {"name": "e", "application": "a"}, "spec": {"credentials": {"credentials": [PSK]}}}),
]


def odd(value: Any) -> Iterator[Any]:
    """Yield the value with each part of it, and all of it, replaced by each of ODD, and each part left out."""
    yield from ODD
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: kept for name, kept in value.items() if name != key}
            for other in odd(inner):
                yield {**value, key: other}
        yield {**value, "unknown": 1}
    elif isinstance(value, list) and value:
        for other in odd(value[0]):
            yield [other]


async def hold(tmp_path: Path, nursery: trio.Nursery, number: int | None) -> None:
    daemon = await prepared(tmp_path, "requests_per_minute = 1000000\ntokens_per_user = 10000\nclaims_per_app = 10000")
    await nursery.start(daemon.run)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    requests = [(method, path, body) for method, path, whole in BODIES for body in odd(whole)]
    if number is not None:
        requests = random.Random(seed).sample(requests, number)
    async with daemon.client() as user:
        for name in ("a", "b"):
            await ask(user, 201, "POST", APPS, json={"metadata": {"name": name}, "spec": {"signing": {"mode": "optional"}}})
        for name in ("d", "e"):
            await ask(user, 201, "POST", f"{APPS}/a/devices", json={"metadata": {"name": name}})
        for version, kind in (("1", {}), ("2", {"kind": "app"}), ("3", {})):
            parameters = {"version": version, "hardware": "esp32c3", **kind}
            await ask(user, 201, "POST", f"{DFU}/firmware", params=parameters, content=build("print(1)\n", version))
        for method, path, body in requests:
            text = json.dumps(body)
            answer = await user.request(method, path, content=text, headers={"content-type": "application/json"})
            assert answer.status_code < 500, f"{method} {path} {text[:2000]}: {answer.status_code} {answer.text[:300]}"
        assert (await user.get("/readyz")).json() == {"status": "ready"}
        assert 'dfud_contained_errors_total{where="users' not in (await user.get("/metrics")).text
    nursery.cancel_scope.cancel()


async def test_what_stands_in_place_of_any_field_is_no_fault(tmp_path: Path, nursery: trio.Nursery) -> None:
    await hold(tmp_path, nursery, SAMPLE)


@pytest.mark.slow
async def test_all_that_stands_in_place_of_any_field_is_no_fault(tmp_path: Path, nursery: trio.Nursery) -> None:
    await hold(tmp_path, nursery, None)


async def test_what_was_a_fault_is_none(tmp_path: Path, nursery: trio.Nursery) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as user:
        await ask(user, 201, "POST", APPS, json={"metadata": {"name": "a"}})
        for path in ("rollouts", "rollouts:plan"):
            found = await ask(user, 400, "POST", f"{DFU}/{path}", json={"metadata": {"name": "r"}, "spec": {}})
            assert "spec.firmware: missing" in found["message"]
        await ask(user, 201, "POST", APPS, json={"metadata": {"name": "b"}, "spec": {"rules": None}})
    nursery.cancel_scope.cancel()
