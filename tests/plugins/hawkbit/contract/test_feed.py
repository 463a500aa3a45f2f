"""The list of all actions as a feed of changes: what moves in it, what does not, how it pages."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

from tests.plugins.hawkbit.contract.api import Api


def _feed(api: Api, query: str, **more: Any) -> dict[str, Any]:
    values = {"q": query, "sort": "id:ASC", "limit": 500, "representation": "full", **more}
    found: dict[str, Any] = api.mgmt("GET", "/actions", query=values).body
    return found


def test_the_feed_says_which_actions_changed_since_a_time(api: Api) -> None:
    before = api.symbols.at(-60_000)
    cids = api.targets(3)
    _, ds = api.firmware()
    first, second = api.assign(ds, cids[0]), api.assign(ds, cids[1], type="soft")
    mine = f"target.controllerId==*{api.run}"
    page = _feed(api, f"lastModifiedAt=ge={before};{mine}")
    assert [row["id"] for row in page["content"]] == [first, second]
    row = page["content"][0]
    assert (row["status"], row["active"], row["type"], row["forceType"]) == ("running", True, "update", "forced")
    assert f"/targets/{cids[0]}" in row["_links"]["target"]["href"]
    assert row["_links"]["distributionset"]["name"] == f"{api.name('fw')}:1"
    later = api.symbols.at(3_600_000)
    assert _feed(api, f"lastModifiedAt=ge={later};{mine}") == {"content": [], "total": 0, "size": 0}
    compact = api.mgmt("GET", "/actions", query={"q": mine, "sort": "id:ASC"})
    assert set(compact.body["content"][0]["_links"]) == {"self"}
    # hawkBit's clock, which the feed goes by.
    assert parsedate_to_datetime(compact.headers["date"]).timestamp() > 1_000_000_000
    assert _feed(api, mine, limit=1)["total"] == 2
    assert [r["id"] for r in _feed(api, mine, limit=1, offset=1)["content"]] == [second]
    assert _feed(api, f"{mine};active==true")["total"] == 2
    assert _feed(api, f"{mine};status==running")["total"] == 2
    assert _feed(api, f"{mine};status==finished")["total"] == 0
    assert _feed(api, f"{mine};status=in=(running,retrieved)")["total"] == 2
    wrong = api.mgmt("GET", "/actions", query={"q": "lastModifiedAt=ge=2026-01-01T00:00:00Z"})
    assert (wrong.status, wrong.body["errorCode"]) == (400, "hawkbit.server.error.rest.body.notReadable")
    assert api.mgmt("GET", "/actions", query={"q": "nothing==1"}).status == 400


def test_what_devices_say_does_not_move_an_action_in_the_feed_but_the_management_does(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    action = api.assign(one, cid)
    made = api.action(cid, action)["lastModifiedAt"]
    api.ddi("GET", cid, f"/deploymentBase/{action}", quiet=True)
    api.feedback(cid, action, "proceeding", quiet=True)
    assert api.action(cid, action)["lastModifiedAt"] == made
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/{action}").status == 204
    cancelled = api.action(cid, action)["lastModifiedAt"]
    assert cancelled > made
    api.ddi("GET", cid, f"/cancelAction/{action}", quiet=True)
    api.feedback(cid, action, "rejected", "failure", kind="cancelAction", quiet=True)
    assert api.action(cid, action)["lastModifiedAt"] == cancelled
    assert api.feedback(cid, action, "closed", "failure").status == 200
    closed = api.action(cid, action)
    assert (closed["lastModifiedAt"], closed["status"]) == (cancelled, "error")
    soft = api.assign(two, cid, type="soft")
    before = api.action(cid, soft)["lastModifiedAt"]
    api.mgmt("PUT", f"/targets/{cid}/actions/{soft}", {"forceType": "forced"})
    assert api.action(cid, soft)["lastModifiedAt"] > before


def test_deleted_actions_and_targets_leave_the_feed_without_a_word(api: Api) -> None:
    cids = api.targets(3)
    _, ds = api.firmware()
    first, second, _third = (api.assign(ds, cid) for cid in cids)
    mine = f"target.controllerId==*{api.run}"
    assert api.mgmt("DELETE", "/actions", query={"rsql": f"id=={first}"}).status == 400
    assert api.mgmt("DELETE", "/actions", query={"q": f"id=={first}"}).status in (200, 204)
    assert _feed(api, mine)["total"] == 2
    assert api.mgmt("GET", f"/targets/{cids[0]}/actions/{first}").status == 404
    assert api.ddi("GET", cids[0], f"/deploymentBase/{first}").status == 404
    assert api.feedback(cids[0], first, "closed", "success").status == 404
    # The target stays pending, and its set cannot be assigned again.
    assert api.look(cids[0])["updateStatus"] == "pending"
    assert api.mgmt("POST", f"/targets/{cids[0]}/assignedDS", {"id": ds}).body["alreadyAssigned"] == 1
    assert api.mgmt("DELETE", f"/targets/{cids[1]}").status in (200, 204)
    assert _feed(api, mine)["total"] == 1
    assert api.feedback(cids[1], second, "closed", "success").status == 404
    assert api.ddi("GET", cids[1], f"/deploymentBase/{second}").status == 404


def test_an_action_of_another_target_is_not_found(api: Api) -> None:
    one, two = api.targets(2)
    _, ds = api.firmware()
    action = api.assign(ds, one)
    assert api.mgmt("GET", f"/targets/{two}/actions/{action}").status == 404
    assert api.ddi("GET", two, f"/deploymentBase/{action}").status == 404
    assert api.feedback(two, action, "closed", "success").status == 404
    assert api.mgmt("GET", f"/targets/{one}/actions/999999").status == 404
