"""What each kind of feedback does to an action and its target."""

from __future__ import annotations

import pytest

from tests.plugins.hawkbit.contract.api import Api

QUOTA = "hawkbit.server.error.quota.tooManyEntries"


def test_every_execution_is_noted_as_its_own_status(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    for execution in ("proceeding", "scheduled", "resumed", "download", "downloaded", "canceled", "rejected"):
        assert api.feedback(cid, action, execution).status == 200
    assert api.feedback(cid, action, "proceeding", details=["a line", "another"], code=7).status == 200
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert [row["type"] for row in rows] == [
        "running", "warning", "canceled", "downloaded", "download", "running", "running", "running", "running"
    ]  # fmt: skip
    assert sorted(rows[0]["messages"]) == ["Device reported status code: 7", "a line", "another"]
    assert rows[0]["code"] == 7
    shown = api.action(cid, action)
    assert (shown["status"], shown["active"], shown["lastStatusCode"]) == ("running", True, 7)
    history = api.ddi("GET", cid, f"/deploymentBase/{action}", query={"actionHistory": "-1"}).body["actionHistory"]
    assert {"a line", "another"} <= set(history["messages"])
    assert api.feedback(cid, action, "closed", "none").status == 200
    assert api.look(cid)["updateStatus"] == "in_sync"


def test_failure_forgets_what_was_assigned_and_the_set_can_be_assigned_again(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    assert api.feedback(cid, action, "closed", "failure", details=["rolled back"], code=3).status == 200
    assert api.look(cid)["updateStatus"] == "error"
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").status == 204
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").status == 204
    failed = api.action(cid, action)
    assert (failed["status"], failed["active"], failed["lastStatusCode"]) == ("error", False, 3)
    assert api.feedback(cid, action, "closed", "success").status == 410
    again = api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": ds})
    assert again.body["assigned"] == 1
    new = again.body["assignedActions"][0]["id"]
    assert new > action
    assert api.feedback(cid, new, "closed", "success").status == 200
    assert api.look(cid)["updateStatus"] == "in_sync"


def test_feedback_that_is_not_well_formed_is_refused_and_extra_fields_are_not(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    path = f"/deploymentBase/{action}/feedback"
    for status in (
        {"execution": "no-such", "result": {"finished": "none"}},
        {"execution": "closed", "result": {"finished": "failed"}},
        {"execution": "closed"},
        {"result": {"finished": "none"}},
    ):
        refused = api.ddi("POST", cid, path, {"status": status})
        assert refused.status == 400, status
    assert api.ddi("POST", cid, path, text="{").status == 400
    assert api.ddi("POST", cid, path, {}).status == 400
    extra = {"id": 7, "time": "20261123T205152", "more": {}}
    body = {**extra, "status": {"execution": "proceeding", "result": {"finished": "none"}, "details": ["x"]}}
    assert api.ddi("POST", cid, path, body).status == 200
    progress = {"execution": "proceeding", "result": {"finished": "none", "progress": {"cnt": 1, "of": 4}}}
    assert api.ddi("POST", cid, path, {"status": progress}).status == 200
    assert api.action(cid, action)["active"] is True
    assert api.ddi("POST", cid, "/deploymentBase/999999/feedback", body).status == 404


def test_a_stale_timestamp_finishes_the_action_and_leaves_the_target_pending(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    api.feedback(cid, api.assign(one, cid), "closed", "success", quiet=True)
    action = api.assign(two, cid)
    assert api.feedback(cid, action, "closed", "success", timestamp=1000).status == 200
    assert api.action(cid, action)["status"] == "finished"
    assert api.look(cid)["updateStatus"] == "pending"
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == one
    assert api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": two}).body["alreadyAssigned"] == 1


@pytest.mark.timeout(600)
def test_an_action_takes_1000_status_entries_and_then_only_its_end(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    path = f"/deploymentBase/{action}/feedback"
    body = {"status": {"execution": "proceeding", "result": {"finished": "none"}}}
    api.repeat(998, "POST", cid, path, body)
    assert api.ddi("POST", cid, path, body).status == 200
    over = api.ddi("POST", cid, path, body)
    assert (over.status, over.body["errorCode"], "retry-after" in over.headers) == (429, QUOTA, False)
    module = api.ddi("GET", cid, f"/deploymentBase/{action}", quiet=True).body["deployment"]["chunks"][0]
    href = module["artifacts"][0]["_links"]["download-http"]["href"]
    download = href.partition(cid)[2]
    assert api.ddi("GET", cid, download).status == 429
    assert api.ddi("GET", cid, download, headers={"range": "bytes=0-3"}).status == 206
    assert api.ddi("POST", cid, path, body).status == 429
    closed = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    assert api.ddi("POST", cid, path, closed).status == 200
    assert api.look(cid)["updateStatus"] == "in_sync"


def test_one_status_takes_50_details_and_more_leave_the_action_open(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    over = api.feedback(cid, action, "closed", "failure", details=[f"line {n}" for n in range(51)])
    assert (over.status, over.body["errorCode"]) == (429, QUOTA)
    assert api.action(cid, action)["active"] is True
    # The code counts as a line of its own.
    over = api.feedback(cid, action, "closed", "failure", details=[f"line {n}" for n in range(50)], code=1, quiet=True)
    assert over.status == 429
    assert api.feedback(cid, action, "proceeding", details=["x" * 1100]).status == 200
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert sorted(len(text) for text in rows[0]["messages"]) == [76, 512, 512]
    assert (
        api.feedback(cid, action, "closed", "failure", details=[f"line {n}" for n in range(50)], quiet=True).status
        == 200
    )
    assert api.action(cid, action)["status"] == "error"


def test_a_device_downloads_only_while_its_action_is_open(api: Api) -> None:
    cid, other = api.targets(2)
    module, ds = api.firmware(content="0123456789")
    action = api.assign(ds, cid)
    path = f"/softwaremodules/{module}/artifacts/image.bin"
    whole = api.ddi("GET", cid, path)
    assert (whole.status, whole.raw) == (200, b"0123456789")
    part = api.ddi("GET", cid, path, headers={"range": "bytes=3-5"})
    assert (part.status, part.raw) == (206, b"345")
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert [row["type"] for row in rows] == ["download", "running"]
    assert api.ddi("GET", cid, f"/softwaremodules/{module}/artifacts/other.bin").status == 404
    assert api.ddi("GET", other, path).status == 404
    listed = api.ddi("GET", cid, f"/softwaremodules/{module}/artifacts")
    assert [a["filename"] for a in listed.body] == ["image.bin"]
    api.feedback(cid, action, "closed", "success", quiet=True)
    assert api.ddi("GET", cid, path).status == 404


def test_a_message_that_holds_a_tag_is_refused_with_all_of_its_feedback(api: Api) -> None:
    """As every traceback of MicroPython does; what only looks like one is taken."""
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    trace = ["Traceback (most recent call last):", '  File "main.py", line 3, in <module>', "ValueError: no"]
    for execution, finished in (("proceeding", "none"), ("closed", "failure")):
        refused = api.feedback(cid, action, execution, finished, details=trace)
        assert (refused.status, refused.body["errorCode"]) == (400, "hawkbit.server.error.repo.constraintViolation")
    for text in ("<!-- x -->", "a <b> c", "<br/>", "<?php?>"):
        assert api.feedback(cid, action, "proceeding", details=[text], quiet=True).status == 400, text
    assert api.action(cid, action)["active"] is True
    for text in ("a < b > c", "1<2", "\u2039module\u203a", "a & b"):
        assert api.feedback(cid, action, "proceeding", details=[text], quiet=True).status == 200, text
    assert api.feedback(cid, action, "closed", "failure").status == 200
    assert api.action(cid, action)["status"] == "error"


def test_a_cancel_is_answered_without_tags_too(api: Api) -> None:
    cid = api.target()
    _, ds = api.firmware()
    action = api.assign(ds, cid)
    assert api.mgmt("DELETE", f"/targets/{cid}/actions/{action}").status == 204
    refused = api.feedback(cid, action, "closed", "success", kind="cancelAction", details=["in <module>"])
    assert refused.status == 400
    assert api.action(cid, action)["status"] == "canceling"
    assert api.feedback(cid, action, "closed", "failure", details=["rolled back"]).status == 200
    assert api.action(cid, action)["status"] == "error"
