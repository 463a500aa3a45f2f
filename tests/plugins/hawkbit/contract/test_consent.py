"""The user's confirmation, and maintenance windows."""

from __future__ import annotations

from tests.plugins.hawkbit.contract.api import Api, Settings


def _window(api: Api, start_s: int) -> dict[str, str]:
    return {"schedule": api.symbols.moment(start_s), "duration": "01:00:00", "timezone": "+00:00"}


def test_an_action_waits_for_its_user_who_says_no_and_then_yes(api: Api, settings: Settings) -> None:
    settings({"user.confirmation.flow.enabled": True})
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid, confirmationRequired=True)
    waiting = api.action(cid, action)
    assert (waiting["status"], waiting["active"]) == ("wait_for_confirmation", True)
    assert api.look(cid)["autoConfirmActive"] is False
    base = api.ddi("GET", cid)
    assert set(base.body["_links"]) == {"confirmationBase", "configData"}
    assert f"/confirmationBase/{action}?c=" in base.body["_links"]["confirmationBase"]["href"]
    order = api.ddi("GET", cid, f"/confirmationBase/{action}")
    assert order.body["confirmation"]["chunks"][0]["version"] == "1"
    assert api.ddi("GET", cid, f"/deploymentBase/{action}").status == 404
    assert api.feedback(cid, action, "closed", "success").status == 404
    path = f"/confirmationBase/{action}/feedback"
    assert api.ddi("POST", cid, path, {"confirmation": "denied", "code": 5, "details": ["not now"]}).status == 200
    denied = api.action(cid, action)
    assert (denied["status"], denied["lastStatusCode"]) == ("wait_for_confirmation", 5)
    assert api.ddi("POST", cid, path, {"confirmation": "maybe"}).status == 400
    assert api.ddi("POST", cid, path, {"confirmation": "confirmed", "details": ["go"]}).status == 200
    assert api.action(cid, action)["status"] == "running"
    assert api.ddi("POST", cid, path, {"confirmation": "confirmed"}).status in (404, 410)
    assert "deploymentBase" in api.ddi("GET", cid).body["_links"]
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert [row["type"] for row in rows] == ["running", "wait_for_confirmation", "wait_for_confirmation"]
    assert api.ddi("GET", cid, f"/deploymentBase/{action}", quiet=True).status == 200
    assert api.feedback(cid, action, "closed", "success").status == 200


def test_the_management_may_confirm_or_cancel_for_the_user(api: Api, settings: Settings) -> None:
    settings({"user.confirmation.flow.enabled": True})
    one, two, three = api.targets(3)
    _, ds = api.firmware()
    action = api.assign(ds, one, confirmationRequired=True)
    path = f"/targets/{one}/actions/{action}/confirmation"
    assert api.mgmt("PUT", path, {"confirmation": "denied"}).status in (200, 204)
    assert api.action(one, action)["status"] == "wait_for_confirmation"
    assert api.mgmt("PUT", path, {"confirmation": "confirmed"}).status in (200, 204)
    assert api.action(one, action)["status"] == "running"
    assert api.mgmt("PUT", path, {"confirmation": "confirmed"}).status in (404, 410)
    action = api.assign(ds, two, confirmationRequired=True)
    assert api.mgmt("DELETE", f"/targets/{two}/actions/{action}").status == 204
    assert "cancelAction" in api.ddi("GET", two).body["_links"]
    assert api.feedback(two, action, "closed", "success", kind="cancelAction").status == 200
    # Without the wish for it nobody is asked.
    action = api.assign(ds, three, confirmationRequired=False)
    assert api.action(three, action)["status"] == "running"
    rows = api.mgmt("GET", f"/targets/{three}/actions/{action}/status").body["content"]
    assert "Assignment confirmed by initiator [admin]." in rows[0]["messages"]


def test_auto_confirm_spares_the_question(api: Api, settings: Settings) -> None:
    settings({"user.confirmation.flow.enabled": True})
    cid = api.target()
    _, ds = api.firmware()
    assert api.mgmt("GET", f"/targets/{cid}/autoConfirm").body["active"] is False
    assert api.mgmt("POST", f"/targets/{cid}/autoConfirm/activate", {"initiator": "me", "remark": "r"}).status in (
        200,
        204,
    )
    assert api.mgmt("GET", f"/targets/{cid}/autoConfirm").body["active"] is True
    assert api.look(cid)["autoConfirmActive"] is True
    action = api.assign(ds, cid, confirmationRequired=True)
    assert api.action(cid, action)["status"] == "running"
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert any("automatically confirmed" in text for text in rows[0]["messages"])
    assert api.mgmt("POST", f"/targets/{cid}/autoConfirm/deactivate").status in (200, 204)
    assert api.mgmt("GET", f"/targets/{cid}/autoConfirm").body["active"] is False


def test_before_its_window_a_device_may_download_and_not_install(api: Api) -> None:
    cids = api.targets(2)
    _, ds = api.firmware()
    later = api.assign(ds, cids[0], maintenanceWindow=_window(api, 7200))
    shown = api.action(cids[0], later)
    assert shown["maintenanceWindow"]["duration"] == "01:00:00"
    assert "deploymentBase" in api.ddi("GET", cids[0]).body["_links"]
    order = api.ddi("GET", cids[0], f"/deploymentBase/{later}").body["deployment"]
    assert (order["download"], order["update"], order["maintenanceWindow"]) == ("forced", "skip", "unavailable")
    now = api.assign(ds, cids[1], maintenanceWindow=_window(api, -60))
    order = api.ddi("GET", cids[1], f"/deploymentBase/{now}").body["deployment"]
    assert (order["download"], order["update"], order["maintenanceWindow"]) == ("forced", "forced", "available")
    assert api.feedback(cids[1], now, "closed", "success").status == 200


def test_a_window_that_is_over_or_not_well_formed_is_refused(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    path = f"/targets/{cid}/assignedDS"
    for window in (
        _window(api, -7200),
        {"schedule": "not a schedule", "duration": "01:00:00", "timezone": "+00:00"},
        {"schedule": api.symbols.moment(3600), "duration": "an hour", "timezone": "+00:00"},
        {"schedule": api.symbols.moment(3600), "duration": "01:00:00"},
    ):
        refused = api.mgmt("POST", path, {"id": ds, "maintenanceWindow": window})
        assert (refused.status, refused.body["errorCode"]) == (400, "hawkbit.server.error.maintenanceScheduleInvalid")
    assert api.look(cid)["updateStatus"] == "unknown"


def test_a_window_that_lapses_cancels_its_action_at_the_next_poll(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    window = {"schedule": api.symbols.moment(-57), "duration": "00:01:00", "timezone": "+00:00"}
    action = api.assign(ds, cid, maintenanceWindow=window)
    api.until_ddi(lambda a: "cancelAction" in a.body["_links"], "GET", cid)
    assert api.action(cid, action)["status"] == "canceling"
    assert api.feedback(cid, action, "closed", "success", kind="cancelAction").status == 200
