"""The attacker has a reader's token, a manager's, or none: every route that there is, asked by each of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio
from quart_trio import QuartTrio

from dfud.registry.application import own_routes
from dfud.registry.config import RegistryConfig
from dfud.testing.daemon import DaemonProcess

APPS = "/api/registry/v1alpha1/apps"
# What somebody may do with any token: see himself, and handle his own tokens, which can have no role more than he.
OWN = {("GET", "/api/dfu/v1/whoami"), ("POST", "/api/tokens/v1alpha1"), ("GET", "/api/tokens/v1alpha1")}
OWN |= {("DELETE", "/api/tokens/v1alpha1/<prefix>"), ("GET", APPS)}
OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
# Reading that is for managers or admins: codes and the audit log.
READING_FOR_MORE = {("GET", "/api/dfu/v1/apps/<app>/claims"), ("GET", "/api/dfu/v1/audit")}


class _Anything:
    def __getattr__(self, name: str) -> Any:
        return _Anything()


def routes() -> set[tuple[str, str]]:
    """Return (method, rule) of every route that dfud itself has."""
    app = QuartTrio("routes", static_folder=None)
    services: Any = _Anything()
    services.config = RegistryConfig()
    own_routes(app, services, trio.Event(), services)
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint != "static"]
    return {(m, r.rule) for r in rules for m in (r.methods or set()) - {"HEAD", "OPTIONS"}}


def path_of(rule: str, app: str) -> str:
    """Fill a rule in: the app, a device that exists, a version."""
    first = re.sub(r"<(app|name)>", app, rule, count=1)
    return re.sub(r"<[^>]*>", "d", first)


class Asker:
    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        bearers = {who: {"authorization": f"Bearer {token}"} for who, token in tokens.items()}
        # No TLS here, so no CAs to load; one client for all questions of each.
        self._clients = {
            who: httpx.AsyncClient(base_url=url, headers=headers, timeout=30, verify=False)
            for who, headers in {"": {}, **bearers}.items()
        }

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def read(self, who: str, path: str) -> Any:
        return (await self._clients[who].get(path)).json()

    async def status(self, who: str, method: str, path: str, **options: Any) -> int:
        async with self._clients[who].stream(method, path, **options) as answer:  # events never end by themselves
            return answer.status_code


@pytest.fixture
async def asker(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Asker]:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    text = daemon.config.read_text().replace("[registry]\n", "[registry]\nfailures_per_minute = 1000\n")
    daemon.write_config = lambda: daemon.config.write_text(text)  # type: ignore[assignment,method-assign]  # once
    await nursery.start(daemon.run)
    tokens = {"admin": daemon.token}
    async with daemon.client() as admin:
        for app in ("a", "b"):
            body = {"metadata": {"name": app}, "spec": {"signing": {"mode": "optional"}}}
            assert (await admin.post(APPS, json=body)).is_success
            assert (await admin.post(f"{APPS}/{app}/devices", json={"metadata": {"name": "d"}})).is_success
        for role in ("reader", "manager", "admin"):
            body = {"user": f"{role} of a", "roles": {"a": role}}
            tokens[role if role != "admin" else "app admin"] = (await admin.post("/api/tokens/v1alpha1", json=body)).json()["token"]
    found = Asker(daemon.urls["registry"], tokens)
    yield found
    await found.aclose()
    nursery.cancel_scope.cancel()


def test_the_walk_sees_the_routes() -> None:
    found = routes()
    assert len(found) > 30
    assert found >= OWN | OPEN | READING_FOR_MORE
    assert ("POST", "/api/command/v1alpha1/apps/<app>/devices/<path:device>") in found


async def test_without_a_token_there_is_nothing(asker: Asker) -> None:
    for method, rule in sorted(routes() - OPEN):
        assert await asker.status("", method, path_of(rule, "a")) == 403, (method, rule)


async def test_a_reader_changes_nothing_and_sends_nothing(asker: Asker) -> None:
    for method, rule in sorted(routes() - OWN - OPEN):
        found = await asker.status("reader", method, path_of(rule, "a"), **({"json": {}} if method != "GET" else {}))
        if method != "GET" or (method, rule) in READING_FOR_MORE:
            # Creating a device is judged when its body has said of which app.
            assert found == 403 or (found == 400 and rule.endswith("/devices")), (method, rule, found)
    body = {"metadata": {"name": "x"}}
    assert await asker.status("reader", "POST", f"{APPS}/a/devices", json=body) == 403
    assert await asker.status("reader", "POST", "/api/command/v1alpha1/apps/a/devices/d?command=on") == 403
    assert await asker.status("manager", "POST", "/api/command/v1alpha1/apps/a/devices/d?command=on") == 202


async def test_one_apps_token_does_not_even_see_another_app(asker: Asker) -> None:
    for method, rule in sorted(routes() - OWN - OPEN):
        if "<app>" not in rule and "<name>" not in rule:
            continue
        body: dict[str, Any] = {"json": {}} if method != "GET" else {}
        # Who may most sees no more than who may least, which is what he sees of an app that there is not.
        found = {
            (who, app): await asker.status(who, method, path_of(rule, app), **body)
            for who, app in (("app admin", "b"), ("reader", "b"), ("app admin", "nothing"))
        }
        assert set(found.values()) <= {404, 400} and len(set(found.values())) == 1, (method, rule, found)
    body = {"json": {"metadata": {"name": "x", "application": "b"}}}
    for who in ("reader", "manager", "app admin"):
        assert await asker.status(who, "POST", f"{APPS}/a/devices", **body) == 404


async def test_no_token_makes_one_that_may_more(asker: Asker) -> None:
    for who, role, app in (
        ("reader", "manager", "a"),
        ("reader", "reader", "b"),
        ("manager", "admin", "a"),
        ("app admin", "admin", "*"),
        ("app admin", "reader", "*"),
        ("app admin", "reader", "b"),
    ):
        body = {"roles": {app: role}}
        assert await asker.status(who, "POST", "/api/tokens/v1alpha1", json=body) == 403, (who, role, app)
    assert await asker.status("app admin", "POST", "/api/tokens/v1alpha1", json={"user": "admin"}) == 403


async def test_nobody_undoes_the_record(asker: Asker) -> None:
    """Every route, by every method, with the audit log's own keys in every place, by the one who may do everything."""

    async def record() -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = await asker.read("admin", "/api/dfu/v1/audit?limit=1000")
        return entries[:before]

    before = 1000
    kept = await record()
    before = len(kept)
    assert before >= 6
    keys = [kept[0]["key"], kept[-1]["key"], f"../audit/{kept[0]['key']}", "audit", "*", ""]
    methods = ("POST", "PUT", "PATCH", "DELETE")
    tried = 0
    for key in keys:
        named = quote(key, safe="").replace(".", "%2E")
        for ending in (f"/{named}", "", f"?after={named}", f"?key={named}"):
            for method in methods:
                found = await asker.status("admin", method, f"/api/dfu/v1/audit{ending}", json={"key": key})
                assert found in (400, 403, 404, 405), (method, ending)
                tried += 1
        for method, rule in sorted(routes() - OPEN):
            if method not in methods or (rule.startswith(f"{APPS}/<name>") and rule.count("/") == 5):
                continue  # the app itself: it goes last
            path = re.sub(r"<[^>]*>", named, re.sub(r"<(app|name)>", "a", rule, count=1))
            assert await asker.status("admin", method, path, json={"metadata": {"name": key}}) < 500, (method, path)
            tried += 1
    assert tried > 150
    assert await record() == kept
    for path in (f"{APPS}/a", f"{APPS}/b"):
        assert await asker.status("admin", "DELETE", path) == 204
    assert await record() == kept, "what is gone has been, and who made it is on record"


async def test_a_manager_neither_changes_who_may_sign_nor_deletes_the_app(asker: Asker) -> None:
    body = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "optional", "keys": ["AAAA"]}}}
    assert await asker.status("manager", "PUT", f"{APPS}/a", json=body) == 403
    assert await asker.status("manager", "DELETE", f"{APPS}/a") == 403
    assert await asker.status("app admin", "PUT", f"{APPS}/a", json=body) == 204


async def test_a_manager_can_publish_and_update_what_the_app_takes(asker: Asker) -> None:
    """What he can do; where the app insists on signatures, a key is needed, too."""
    path = "/api/dfu/v1/apps/a/firmware?version=1&hardware=x&kind=raw"
    assert await asker.status("reader", "POST", path, content=b"image") == 403
    assert await asker.status("manager", "POST", path, content=b"image") == 201
    body: dict[str, Any] = {"device": "d", "firmware": {"version": "1"}}
    assert await asker.status("manager", "POST", "/api/dfu/v1/apps/a/update", json=body) == 200
    strict = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "required"}}}
    assert await asker.status("admin", "PUT", f"{APPS}/a", json=strict) == 204
    assert await asker.status("manager", "POST", path.replace("version=1", "version=2"), content=b"other") == 409
