"""Rollouts that were made in hawkBit are shown by dfud; dfud's own are refused there, with where to make them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import StoreError
from tests.plugins.hawkbit.harness import Harness, Person, Server, harness_at, person_at, sent, until
from tests.plugins.hawkbit.server import Hawkbit
from tests.plugins.hawkbit.test_daemon import Users, daemon_at

NEW = b"new image " * 3000
BASE = "/api/dfu/v1/apps"


async def a_rollout(person: Person, harness: Harness, names: list[str], **more: Any) -> tuple[str, int]:
    """Make a rollout in hawkBit with a group for each device; return its name and number once it is ready."""
    group = {
        "targetPercentage": 100,
        "successCondition": {"condition": "THRESHOLD", "expression": "50"},
        "errorCondition": {"condition": "THRESHOLD", "expression": "20"},
        "errorAction": {"action": "PAUSE", "expression": ""},
    }
    groups = [{**group, "name": name, "targetFilterQuery": f"controllerId=={harness.target(name)}"} for name in names]
    name = f"rollout-{uuid.uuid4().hex[:8]}"
    body = {"name": name, "targetFilterQuery": f"controllerId=={harness.app}:*", "groups": groups, **more}
    number = int((await person.ask("POST", "/rollouts", json=body))["id"])

    async def ready() -> bool:
        return bool((await person.ask("GET", f"/rollouts/{number}"))["status"] == "ready")

    await until("the rollout is ready", ready)
    return name, number


async def test_a_rollout_of_hawkbit_is_shown_with_its_groups(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        for device in ("one", "two"):
            await harness.device(device)
        await harness.publish("2.0", NEW)
        await harness.quiet()
        (made,) = (await person.ask("GET", "/distributionsets", params={"q": f"name=={harness.app}"}))["content"]
        assert await harness.store.own_rollouts(harness.app) == []
        name, number = await a_rollout(person, harness, ["one", "two"], distributionSetId=made["id"])
        (shown,) = await harness.store.own_rollouts(harness.app)
        assert (shown.name, shown.firmware, shown.state, shown.said, shown.devices) == (name, "2.0", "draft", "ready", 2)
        assert shown.link == f"{hawkbit.url}/rest/v1/rollouts/{number}" and shown.waves == ()
        assert await harness.store.own_rollouts("another") == []
        assert await harness.store.own_rollout("another", name) is None
        assert await harness.store.own_rollout(harness.app, f"{name[:-1]}*") is None, "a name is no pattern"
        await person.ask("POST", f"/rollouts/{number}/start")
        await until("the first group wants it", lambda: harness.is_wanted("2.0", "one"))
        await sent(harness.devices["one"])
        found = await harness.store.own_rollout(harness.app, name)
        assert found is not None and found.state == "telling"
        one, two = found.waves
        assert (one.name, one.state, one.devices, one.told, one.under_way, one.done, one.failed) == ("one", "telling", 1, 1, 1, 0, 0)
        assert (two.name, two.devices, two.told) == ("two", 1, 0)
        await harness.devices["one"].update(good=False, text="boom")

        async def paused() -> bool:
            now = await harness.store.own_rollout(harness.app, name)
            return now is not None and now.state == "paused" and now.waves[0].failed == 1

        await until("the failure is shown", paused)


async def test_hawkbit_that_is_away_is_a_503_and_costs_nothing_else(hawkbit: Hawkbit, tmp_path: Path) -> None:
    if not hawkbit.can_be_killed:
        pytest.skip("this hawkBit cannot be killed")
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.device("one")
        hawkbit.kill()
        try:
            with trio.fail_after(60), pytest.raises(StoreError):
                await harness.store.own_rollouts(harness.app)
        finally:
            hawkbit.restart()


async def test_dfuds_rollouts_are_refused_with_where_to_make_them(
    hawkbit: Hawkbit, nursery: trio.Nursery, tmp_path: Path
) -> None:
    app = f"app-{uuid.uuid4().hex[:10]}"
    daemon = daemon_at(hawkbit, tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    users = Users(daemon, app)
    await users.dfuctl("app", "create", app, "--unsigned")
    (tmp_path / "image").write_bytes(NEW)
    await users.dfuctl("firmware", "publish", str(tmp_path / "image"), "--raw", "--version", "2.0", "--hardware", "esp32c3")
    await users.dfuctl("device", "create", "d1")
    async with person_at(hawkbit) as person:

        async def published() -> Any:
            return (await person.ask("GET", "/distributionsets", params={"q": f"name=={app}"}))["content"]

        (made,) = await until("the firmware is in hawkBit", published)

        async def registered() -> bool:
            found = await person.ask("GET", "/targets", params={"q": f"controllerId=={app}:*"})
            return bool(found["total"])

        await until("the device is in hawkBit", registered)
        name = f"spring {uuid.uuid4().hex[:8]}"
        body = {"name": name, "targetFilterQuery": f"controllerId=={app}:*", "distributionSetId": made["id"], "amountGroups": 1}
        await person.ask("POST", "/rollouts", json=body)
    async with daemon.client() as client:
        spec = {"firmware": "2.0"}
        given = {"metadata": {"name": "r"}, "spec": spec}
        for path, todo in ((f"{BASE}/{app}/rollouts", "make this one there"), (f"{BASE}/{app}/rollouts:plan", "plan this one there")):
            answer = await client.post(path, json=given)
            assert answer.status_code == 409 and todo in answer.json()["message"], answer.text
        answer = await client.post(f"{BASE}/{app}/rollouts/{name}/pause", json={})
        assert answer.status_code == 409 and f"steer it there, {hawkbit.url}/rest/v1/rollouts/" in answer.json()["message"]
        assert (await client.delete(f"{BASE}/{app}/rollouts/{name}")).status_code == 409
        assert (await client.get(f"{BASE}/{app}/rollouts/other")).status_code == 404
    (listed,) = json.loads(await users.dfuctl("rollout", "list"))
    assert (listed["metadata"]["name"], listed["spec"]["firmware"], listed["status"]["store"]) == (name, "2.0", "hawkbit")
    shown = await users.dfuctl("rollout", "show", name, text=True)
    assert name in shown and "It is a rollout of hawkbit, which is steered there: " in shown
    assert name in await users.dfuctl("rollout", "list", text=True)
    nursery.cancel_scope.cancel()
