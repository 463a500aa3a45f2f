"""Each request that changes something, sent again after `kill -9` since its answer was lost: done once, and what is said is so."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import httpx
import trio

from dfud.testing.daemon import DaemonProcess
from tests.registry.served import APPS, DFU
from tests.security.test_stolen_token import routes

APP = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "optional"}}}
TOKENS = "/api/tokens/v1alpha1"
RAW = {"hardware": "x", "kind": "raw"}
# method, path, options, the first answer, the answer to the same again. Paths with {} get what the entry before made.
Request = tuple[str, str, dict[str, Any], int, int]


def named(name: str, **spec: Any) -> dict[str, Any]:
    return {"json": {"metadata": {"name": name, "application": "a"}, "spec": spec}}


def version(name: str) -> dict[str, Any]:
    return {"params": {"version": name, **RAW}, "content": name.encode()}


def draft(name: str) -> dict[str, Any]:
    spec = {"firmware": "1.0", "devices": {"selector": f"ring={name}"}}
    return {"metadata": {"name": name}, "spec": spec, "draft": True}


REQUESTS: list[Request] = [
    ("POST", APPS, {"json": {"metadata": {"name": "b"}}}, 201, 409),
    ("PUT", f"{APPS}/b", {"json": {"metadata": {"name": "b", "labels": {"x": "y"}}}}, 204, 204),
    ("POST", f"{APPS}/a/devices", named("d2"), 201, 409),
    ("POST", f"{APPS}/a/devices%3Abatch", {"json": {"devices": [named("d3")["json"]]}}, 200, 200),
    ("PUT", f"{APPS}/a/devices/d0", named("d0", x=1), 204, 204),
    ("POST", f"{DFU}/firmware", version("2.0"), 201, 201),
    ("PUT", f"{DFU}/firmware/1.0/ways", {"json": {"stop": True}}, 200, 200),
    ("POST", f"{DFU}/firmware/1.1/recall", {"json": {"reason": "it burns"}}, 200, 200),
    ("POST", f"{DFU}/firmware/1.2/unrecall", {}, 200, 409),
    ("POST", f"{DFU}/update", {"json": {"device": "d1", "firmware": {"version": "1.0"}}}, 200, 200),
    ("POST", f"{DFU}/cancel/d1", {}, 202, 202),
    ("POST", f"{DFU}/retry/d1", {}, 202, 202),
    ("POST", f"{DFU}/secret/d1", {}, 201, 201),
    ("POST", f"{DFU}/psk/d1", {}, 201, 201),
    ("POST", "/api/command/v1alpha1/apps/a/devices/d1?command=c&expires=3600", {}, 202, 202),
    ("POST", f"{DFU}/claims", {"json": {}}, 201, 201),
    ("POST", f"{DFU}/rollouts", {"json": draft("r")}, 201, 409),
    ("POST", f"{DFU}/rollouts%3Aplan", {"json": draft("r")}, 200, 200),
    ("POST", "/api/dfu/v1/outbox/dead/retry", {"json": {"sink": "none"}}, 404, 404),
    ("POST", "/api/dfu/v1/outbox/dead/drop", {"json": {"sink": "none"}}, 404, 404),
    ("POST", f"{DFU}/rollouts/made/start", {"json": {}}, 200, 409),
    ("DELETE", f"{DFU}/rollouts/gone", {}, 204, 404),
    ("POST", TOKENS, {"json": {"user": "eve"}}, 200, 200),
    ("DELETE", f"{APPS}/a/devices/gone", {}, 204, 404),
    ("DELETE", f"{DFU}/firmware/gone", {}, 204, 404),
    ("DELETE", f"{APPS}/gone", {}, 204, 404),
]


async def begin(user: httpx.AsyncClient) -> list[Request]:
    """Make what the requests are about; return those whose paths are known only then."""
    for app in (APP, {"metadata": {"name": "gone"}}):
        (await user.post(APPS, json=app)).raise_for_status()
    for name in ("d0", "d1", "gone"):
        (await user.post(f"{APPS}/a/devices", **named(name))).raise_for_status()
    for ring in ("r", "made", "gone"):
        one = {"metadata": {"name": f"in-{ring}", "labels": {"ring": ring}}}
        (await user.post(f"{APPS}/a/devices", json=one)).raise_for_status()
    for name in ("1.0", "1.1", "1.2", "gone"):
        (await user.post(f"{DFU}/firmware", **version(name))).raise_for_status()
    (await user.post(f"{DFU}/firmware/1.2/recall", json={"reason": "x"})).raise_for_status()
    for name in ("made", "gone"):
        answer = await user.post(f"{DFU}/rollouts", json=draft(name))
        assert answer.status_code == 201, answer.text
    claim = (await user.post(f"{DFU}/claims", json={})).json()["id"]
    token = (await user.post(TOKENS, json={"user": "bob"})).json()["prefix"]
    body = {"selector": "ring=made", "firmware": {"version": "1.0"}}
    job = (await user.post(f"{DFU}/update", json=body)).json()["job"]
    with trio.fail_after(60):
        while (await user.get(f"{DFU}/jobs/{job}")).json()["state"] == "running":
            await trio.sleep(0.01)
    return [
        ("DELETE", f"{DFU}/claims/{claim}", {}, 204, 404),
        ("DELETE", f"{TOKENS}/{token}", {}, 204, 404),
        ("POST", f"{DFU}/jobs/{job}/cancel", {}, 409, 409),  # it has ended
    ]


async def test_the_same_again_after_a_kill(tmp_path: Path, nursery: trio.Nursery) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as user:
        requests = [*REQUESTS, *await begin(user)]
        told = [(await user.request(method, path, **options)) for method, path, options, _, _ in requests]
        for (method, path, _, first, _), answer in zip(requests, told, strict=True):
            assert answer.status_code == first, f"{method} {path}: {answer.status_code} {answer.text}"
    daemon.signal(signal.SIGKILL)
    with trio.fail_after(60):
        while daemon.exit_code is None:
            await trio.sleep(0.05)
    await nursery.start(daemon.run)
    async with daemon.client() as user:
        told = [(await user.request(method, path, **options)) for method, path, options, _, _ in requests]
        for (method, path, _, _, again), answer in zip(requests, told, strict=True):
            assert answer.status_code == again, f"{method} {path}, again: {answer.status_code} {answer.text}"
        by_path = {path: answer for (_, path, *_), answer in zip(requests, told, strict=True)}
        assert by_path[f"{DFU}/update"].json() == {"changed": []}, "it was wanted already"
        entries = (await user.get("/api/dfu/v1/audit?limit=1000")).json()
        deeds = [(e["what"], e["target"]) for e in entries]
        for once in (
            ("create", "b"), ("update", "b"), ("update", "a/d0"), ("update", "a/d1"),
            ("create", "a/d2"), ("publish", "a/2.0"), ("unrecall", "a/1.2"),
            ("create-rollout", "a/rollout/r"), ("start-rollout", "a/rollout/made"), ("delete-rollout", "a/rollout/gone"),
            ("delete", "a/gone"), ("delete-firmware", "a/gone"), ("delete", "gone"),
        ):  # fmt: skip
            assert deeds.count(once) == 1, f"{once} is on record {deeds.count(once)} times"
        assert deeds.count(("command", "a/d1")) == 2, "each is a command of its own"


def test_no_request_that_changes_something_is_left_out() -> None:
    document = (Path(__file__).parents[2] / "docs" / "promises.md").read_text()
    asked = [(method, path.partition("?")[0]) for method, path, *_ in REQUESTS]
    asked += [("DELETE", f"{DFU}/claims/x"), ("DELETE", f"{TOKENS}/x"), ("POST", f"{DFU}/jobs/x/cancel")]  # of begin()
    for method, rule in sorted(routes()):
        if method == "GET":
            continue
        pattern = re.compile(re.sub(r"<path:\w+>", ".+", re.sub(r"<\w+>", "[^/]+", rule)))
        assert any(method == m and pattern.fullmatch(path) for m, path in asked), f"{method} {rule} is not sent again"
        short = rule.replace("<path:", "<").replace("%3A", ":").removeprefix("/api/")
        for base in ("registry/v1alpha1/", "dfu/v1/", "command/v1alpha1/"):
            short = short.removeprefix(base)
        assert f"`{method} {short}`" in document, f"docs/promises.md says nothing of `{method} {short}`"
