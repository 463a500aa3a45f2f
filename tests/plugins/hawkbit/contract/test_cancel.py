"""Cancelling: asked by the management, answered by the device, or forced."""

from __future__ import annotations

from tests.plugins.hawkbit.contract.api import Api

NOT_NOW = "hawkbit.server.error.action.notCancelable"


def _cancelling(api: Api) -> tuple[str, int, int]:
    """Return (target, action, set) of an action that is to be cancelled."""
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    api.ddi("GET", cid, f"/deploymentBase/{action}", quiet=True)
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/{action}").status == 204
    return cid, action, ds


def test_a_cancel_is_offered_and_accepted(api: Api) -> None:
    cid, action, ds = _cancelling(api)
    assert api.action(cid, action)["status"] == "canceling"
    base = api.ddi("GET", cid)
    assert set(base.body["_links"]) == {"cancelAction", "configData"}
    assert base.body["_links"]["cancelAction"]["href"].endswith(f"/cancelAction/{action}")
    assert api.ddi("GET", cid, f"/cancelAction/{action}").body == {
        "id": str(action),
        "cancelAction": {"stopId": str(action)},
    }
    assert api.ddi("GET", cid, f"/deploymentBase/{action}").status == 404
    assert api.feedback(cid, action, "proceeding", kind="cancelAction").status == 200
    assert api.feedback(cid, action, "closed", "success", kind="cancelAction", details=["stopped"]).status == 200
    over = api.action(cid, action)
    assert (over["status"], over["active"], over["type"]) == ("canceled", False, "cancel")
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert [row["type"] for row in rows] == ["canceled", "running", "retrieved", "canceling", "retrieved", "running"]
    assert api.look(cid)["updateStatus"] == "in_sync"
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").status == 204
    assert set(api.ddi("GET", cid).body["_links"]) == {"configData"}
    # Saying it again does no harm; feedback to the deployment comes too late.
    assert api.feedback(cid, action, "closed", "success", kind="cancelAction").status == 200
    assert api.feedback(cid, action, "closed", "success").status == 410
    assert api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": ds}).body["assigned"] == 1


def test_a_refused_cancel_leaves_the_action_running(api: Api) -> None:
    cid, action, _ = _cancelling(api)
    assert api.feedback(cid, action, "rejected", "failure", kind="cancelAction", details=["too late"]).status == 200
    running = api.action(cid, action)
    assert (running["status"], running["active"], running["type"]) == ("running", True, "update")
    assert "deploymentBase" in api.ddi("GET", cid).body["_links"]
    not_cancelling = api.feedback(cid, action, "closed", "success", kind="cancelAction")
    assert (not_cancelling.status, not_cancelling.body["errorCode"]) == (405, NOT_NOW)
    assert api.ddi("GET", cid, f"/cancelAction/{action}").status == 404
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/{action}").status == 204
    assert api.feedback(cid, action, "closed", "failure", kind="cancelAction").status == 200
    assert api.action(cid, action)["status"] == "running"
    assert api.feedback(cid, action, "closed", "success").status == 200
    assert api.look(cid)["updateStatus"] == "in_sync"


def test_the_deployment_may_still_be_closed_while_its_cancel_is_open(api: Api) -> None:
    cid, action, ds = _cancelling(api)
    assert api.feedback(cid, action, "proceeding").status == 200
    assert api.action(cid, action)["status"] == "canceling"
    assert api.feedback(cid, action, "closed", "success").status == 200
    closed = api.action(cid, action)
    assert (closed["status"], closed["active"]) == ("finished", False)
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == ds
    late = api.feedback(cid, action, "closed", "success", kind="cancelAction")
    assert late.status == 405


def test_canceled_is_no_answer_to_a_cancel(api: Api) -> None:
    cid, action, _ = _cancelling(api)
    assert api.feedback(cid, action, "canceled", "success", kind="cancelAction").status == 200
    still = api.action(cid, action)
    assert (still["status"], still["active"]) == ("canceling", True)
    assert "cancelAction" in api.ddi("GET", cid).body["_links"]


def test_force_quit_comes_only_behind_a_cancel(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    path = f"/targets/{cid}/actions/{action}"
    early = api.mgmt("DELETE", path, query={"force": "true"})
    assert (early.status, early.body["errorCode"]) == (405, "hawkbit.server.error.action.notForceQuitable")
    assert api.mgmt("DELETE", path).status == 204
    again = api.mgmt("DELETE", path)
    assert (again.status, again.body["errorCode"]) == (405, NOT_NOW)
    assert api.mgmt("DELETE", path, query={"force": "true"}).status == 204
    over = api.action(cid, action)
    assert (over["status"], over["active"]) == ("canceled", False)
    assert api.look(cid)["updateStatus"] == "in_sync"
    assert set(api.ddi("GET", cid).body["_links"]) == {"configData"}
    assert api.feedback(cid, action, "closed", "success").status == 410
    assert api.mgmt("DELETE", path, query={"force": "true"}).status == 405
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/999999").status == 404


def test_a_cancel_falls_back_to_what_was_installed(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    api.feedback(cid, api.assign(one, cid), "closed", "success", quiet=True)
    action = api.assign(two, cid)
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/{action}", quiet=True).status == 204
    assert api.feedback(cid, action, "closed", "success", kind="cancelAction").status == 200
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").body["id"] == one
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == one
    assert api.look(cid)["updateStatus"] == "in_sync"
    closed = api.action(cid, action)
    assert closed["active"] is False
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/{action}").status == 405
