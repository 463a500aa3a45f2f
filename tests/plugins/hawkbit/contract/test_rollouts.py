"""Rollouts: groups of targets, one behind the other."""

from __future__ import annotations

from typing import Any

from tests.plugins.hawkbit.contract.api import Api


def _ready(api: Api, ds: int, **values: Any) -> int:
    body = {
        "name": api.name("rollout"),
        "targetFilterQuery": f"controllerId==*{api.run}",
        "distributionSetId": ds,
        **values,
    }
    made = api.mgmt("POST", "/rollouts", body)
    assert made.status == 201, made.raw
    number = int(made.body["id"])
    api.until(lambda a: a.body["status"] == "ready", "GET", f"/rollouts/{number}")
    return number


def _started(api: Api, ds: int, **values: Any) -> int:
    number = _ready(api, ds, **values)
    assert api.mgmt("POST", f"/rollouts/{number}/start").status in (200, 204)
    api.until(lambda a: a.body["status"] == "running", "GET", f"/rollouts/{number}")
    return number


def _groups(api: Api, number: int) -> list[tuple[int, list[str]]]:
    """Return (group, its targets) in order."""
    query = {"sort": "id:ASC"}
    rows = api.mgmt("GET", f"/rollouts/{number}/deploygroups", query=query).body["content"]
    out = []
    for row in rows:
        path = f"/rollouts/{number}/deploygroups/{row['id']}/targets"
        out.append(
            (
                row["id"],
                [
                    t["controllerId"]
                    for t in api.mgmt("GET", path, query={"sort": "id:ASC"}, quiet=True).body["content"]
                ],
            )
        )
    return out


def _two_groups(api: Api) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Return the targets of two groups, and the groups. By filters: which targets a percentage takes nobody promises."""
    one = [api.target(f"one{n}") for n in range(2)]
    two = [api.target(f"two{n}") for n in range(2)]
    groups = [
        {
            "name": name,
            "targetFilterQuery": f"controllerId=={name}*",
            "targetPercentage": 100,
            "successCondition": {"condition": "THRESHOLD", "expression": "100"},
            "errorCondition": {"condition": "THRESHOLD", "expression": "40"},
            "errorAction": {"action": "PAUSE", "expression": ""},
        }
        for name in ("one", "two")
    ]
    return one, two, groups


def _action(api: Api, cid: str) -> int:
    return int(api.mgmt("GET", f"/targets/{cid}/actions", quiet=True).body["content"][0]["id"])


def test_the_next_group_starts_when_enough_of_the_one_before_succeeded(api: Api) -> None:
    one, two, groups = _two_groups(api)
    _, ds = api.firmware()
    number = _started(api, ds, groups=groups, weight=600)
    (first, members), (second, others) = _groups(api, number)
    assert (sorted(members), sorted(others)) == (one, two)
    for cid, wanted in [*((cid, ("running", True)) for cid in one), *((cid, ("scheduled", False)) for cid in two)]:
        (row,) = api.mgmt("GET", f"/targets/{cid}/actions").body["content"]
        assert (row["status"], row["active"]) == wanted
    query = {"q": f"rollout.id=={number};target.controllerId=={one[0]}", "representation": "full"}
    rows = api.mgmt("GET", "/actions", query=query).body["content"]
    assert rows[0]["_links"]["rollout"]["name"] == api.name("rollout")
    assert "deploymentBase" in api.ddi("GET", one[0]).body["_links"]
    assert "deploymentBase" not in api.ddi("GET", two[0]).body.get("_links", {})
    assert api.feedback(one[0], _action(api, one[0]), "closed", "success", quiet=True).status == 200
    assert api.mgmt("GET", f"/rollouts/{number}/deploygroups/{first}").body["status"] == "running"
    assert api.feedback(one[1], _action(api, one[1]), "closed", "success", quiet=True).status == 200
    path = f"/rollouts/{number}/deploygroups"
    api.until(lambda a: a.body["status"] == "running", "GET", f"{path}/{second}")
    for cid in two:
        assert api.feedback(cid, _action(api, cid), "closed", "success", quiet=True).status == 200
    done = api.until(lambda a: a.body["status"] == "finished", "GET", f"/rollouts/{number}")
    assert done.body["totalTargetsPerStatus"]["finished"] == 4


def test_too_many_errors_pause_a_rollout_and_leave_its_running_actions(api: Api) -> None:
    one, two, groups = _two_groups(api)
    _, ds = api.firmware()
    number = _started(api, ds, groups=groups)
    assert api.feedback(one[0], _action(api, one[0]), "closed", "failure", quiet=True).status == 200
    paused = api.until(lambda a: a.body["status"] == "paused", "GET", f"/rollouts/{number}")
    assert paused.body["totalTargetsPerStatus"]["error"] == 1
    assert "deploymentBase" in api.ddi("GET", one[1]).body["_links"]
    assert api.mgmt("GET", f"/targets/{two[0]}/actions").body["content"][0]["status"] == "scheduled"
    assert api.mgmt("POST", f"/rollouts/{number}/resume").status in (200, 204)
    # What failed is left behind: the next group runs.
    api.until(lambda a: a.body["totalTargetsPerStatus"]["running"] == 3, "GET", f"/rollouts/{number}")


def test_a_pause_keeps_what_runs_and_resumes(api: Api) -> None:
    one, two, groups = _two_groups(api)
    _, ds = api.firmware()
    number = _started(api, ds, groups=groups)
    assert api.mgmt("POST", f"/rollouts/{number}/pause").status in (200, 204)
    assert api.mgmt("GET", f"/rollouts/{number}").body["status"] == "paused"
    assert api.mgmt("POST", f"/rollouts/{number}/pause").status == 400
    for cid in one:
        assert "deploymentBase" in api.ddi("GET", cid).body["_links"]
        assert api.feedback(cid, _action(api, cid), "closed", "success", quiet=True).status == 200
    assert "deploymentBase" not in api.ddi("GET", two[0]).body["_links"]
    assert api.mgmt("POST", f"/rollouts/{number}/resume").status in (200, 204)
    api.until(lambda a: a.body["totalTargetsPerStatus"]["running"] == 2, "GET", f"/rollouts/{number}")
    assert "deploymentBase" in api.ddi("GET", two[0]).body["_links"]


def test_a_rollout_of_equal_groups_reaches_every_target_once(api: Api) -> None:
    cids = api.targets(5)
    _, ds = api.firmware()
    number = _ready(api, ds, amountGroups=2)
    rows = api.mgmt("GET", f"/rollouts/{number}/deploygroups", query={"sort": "id:ASC"}).body["content"]
    assert sum(row["totalTargets"] for row in rows) == 5
    assert api.mgmt("POST", f"/rollouts/{number}/start").status in (200, 204)
    api.until(lambda a: a.body["status"] == "running", "GET", f"/rollouts/{number}")
    actions = api.mgmt("GET", "/actions", query={"q": f"rollout.id=={number}", "limit": 500}, quiet=True).body[
        "content"
    ]
    assert {row["_links"]["self"]["href"].split("/targets/")[1].split("/")[0] for row in actions} == set(cids)


def test_a_rollout_needs_targets_a_set_and_a_name_of_its_own(api: Api) -> None:
    _, ds = api.firmware()
    body = {
        "name": api.name("rollout"),
        "targetFilterQuery": f"controllerId==*{api.run}",
        "distributionSetId": ds,
        "amountGroups": 1,
    }
    nobody = api.mgmt("POST", "/rollouts", body)
    assert nobody.status == 400
    api.target()
    assert api.mgmt("POST", "/rollouts", {**body, "distributionSetId": 999999}).status == 404
    number = _ready(api, ds, amountGroups=1)
    assert api.mgmt("POST", "/rollouts", body).status == 409
    assert api.mgmt("POST", f"/rollouts/{number}/resume").status == 400
    assert api.mgmt("GET", "/rollouts/999999").status == 404
    found = api.mgmt("GET", "/rollouts", query={"q": f"name=={api.name('rollout')}"}).body
    assert [row["id"] for row in found["content"]] == [number]


def test_a_rollout_takes_only_targets_that_are_not_there_yet(api: Api) -> None:
    one, two = api.targets(2)
    _, ds = api.firmware()
    api.feedback(one, api.assign(ds, one), "closed", "success", quiet=True)
    number = _started(api, ds, amountGroups=1, type="soft")
    active = api.mgmt("GET", "/actions", query={"q": f"rollout.id=={number};active==true"}).body["content"]
    assert len(active) == 1 and two in active[0]["_links"]["self"]["href"]
    assert active[0]["forceType"] == "soft"


def test_a_target_filter_assigns_by_itself(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    made = api.mgmt("POST", "/targetfilters", {"name": api.name("filter"), "query": f"controllerId=={cid}"})
    assert made.status == 201
    path = f"/targetfilters/{made.body['id']}"
    try:
        assert api.mgmt("POST", f"{path}/autoAssignDS", {"id": ds, "type": "forced"}, quiet=True).status == 200
        found = api.until(lambda a: a.body["total"] == 1, "GET", f"/targets/{cid}/actions", query={"sort": "id:ASC"})
        assert found.body["content"][0]["status"] == "running"
    finally:
        assert api.mgmt("DELETE", path).status in (200, 204)
