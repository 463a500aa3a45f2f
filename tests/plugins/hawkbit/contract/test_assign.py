"""Assigning distribution sets: which actions come of it and what they offer."""

from __future__ import annotations

from typing import Any

from tests.plugins.hawkbit.contract.api import Answer, Api, Settings


def _offered(api: Api, cid: str) -> set[str]:
    return set(api.ddi("GET", cid).body.get("_links", {})) - {"configData", "installedBase"}


def test_an_assignment_makes_an_action_that_is_retrieved_and_closed(api: Api) -> None:
    cid = api.target()
    module, ds = api.firmware()
    manifest = [{"key": "manifest", "value": "signed", "targetVisible": True}]
    api.mgmt("POST", f"/softwaremodules/{module}/metadata", manifest, quiet=True)
    made = api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": ds})
    assert (made.status, made.body["assigned"], made.body["alreadyAssigned"], made.body["total"]) == (200, 1, 0, 1)
    action = made.body["assignedActions"][0]["id"]
    assert api.look(cid)["updateStatus"] == "pending"
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").body["id"] == ds
    assert api.action(cid, action)["status"] == "running"
    base = api.ddi("GET", cid)
    link = base.body["_links"]["deploymentBase"]["href"]
    assert f"/deploymentBase/{action}?c=" in link
    order = api.ddi("GET", cid, f"/deploymentBase/{action}")
    deployment = order.body["deployment"]
    assert (order.body["id"], deployment["download"], deployment["update"]) == (str(action), "forced", "forced")
    (chunk,) = deployment["chunks"]
    assert (chunk["part"], chunk["version"]) == ("os", "1")
    assert chunk["metadata"] == [{"key": "manifest", "value": "signed"}]
    assert chunk["artifacts"][0]["size"] == 8
    assert f"/softwaremodules/{module}/artifacts/image.bin" in chunk["artifacts"][0]["_links"]["download-http"]["href"]
    assert api.action(cid, action)["status"] == "retrieved"
    # Retrieving again notes nothing.
    api.ddi("GET", cid, f"/deploymentBase/{action}", quiet=True)
    rows = api.mgmt("GET", f"/targets/{cid}/actions/{action}/status").body["content"]
    assert [row["type"] for row in rows] == ["retrieved", "running"]
    again = api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": ds})
    assert (again.body["assigned"], again.body["alreadyAssigned"], again.body["assignedActions"]) == (0, 1, [])
    assert api.feedback(cid, action, "closed", "success").status == 200
    assert api.look(cid)["updateStatus"] == "in_sync"
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == ds
    closed = api.action(cid, action)
    assert (closed["status"], closed["active"]) == ("finished", False)
    assert api.feedback(cid, action, "closed", "success").status == 410
    assert api.feedback(cid, action, "proceeding").status == 410
    base = api.ddi("GET", cid)
    assert set(base.body["_links"]) == {"installedBase", "configData"}
    assert api.ddi("GET", cid, f"/installedBase/{action}").body["id"] == str(action)
    assert api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": ds}).body["alreadyAssigned"] == 1


def test_many_targets_are_assigned_at_once_and_unknown_ones_are_left_out(api: Api) -> None:
    cids = api.targets(3)
    _, ds = api.firmware()
    rows = [{"id": cid, "type": "soft", "weight": 700} for cid in cids[:2]]
    made = api.mgmt("POST", f"/distributionsets/{ds}/assignedTargets", [*rows, {"id": api.name("nobody")}])
    assert (made.body["assigned"], made.body["alreadyAssigned"], made.body["total"]) == (2, 0, 2)
    again = api.mgmt("POST", f"/distributionsets/{ds}/assignedTargets", [{"id": cid} for cid in cids])
    assert (again.body["assigned"], again.body["alreadyAssigned"], again.body["total"]) == (1, 2, 3)
    found = api.mgmt("GET", f"/targets/{cids[0]}/actions").body["content"]
    assert [(row["forceType"], row["weight"]) for row in found] == [("soft", 700)]
    assert api.mgmt("POST", "/distributionsets/999999/assignedTargets", [{"id": cids[0]}]).status == 404
    assert api.mgmt("POST", f"/targets/{api.name('nobody')}/assignedDS", {"id": ds}).status in (200, 404)


def test_the_kinds_of_actions_say_how_urgent_they_are(api: Api) -> None:
    cids = api.targets(4)
    _, ds = api.firmware()
    soft = api.assign(ds, cids[0], type="soft")
    assert api.action(cids[0], soft)["forceType"] == "soft"
    order = api.ddi("GET", cids[0], f"/deploymentBase/{soft}").body["deployment"]
    assert (order["download"], order["update"]) == ("attempt", "attempt")
    changed = api.mgmt("PUT", f"/targets/{cids[0]}/actions/{soft}", {"forceType": "forced"})
    assert (changed.status, changed.body["forceType"]) == (200, "forced")
    assert api.mgmt("PUT", f"/targets/{cids[0]}/actions/{soft}", {"forceType": "soft"}).status == 400
    order = api.ddi("GET", cids[0], f"/deploymentBase/{soft}").body["deployment"]
    assert (order["download"], order["update"]) == ("forced", "forced")
    later = api.assign(ds, cids[1], type="timeforced", forcetime=api.symbols.at(3_600_000))
    assert api.action(cids[1], later)["forceType"] == "timeforced"
    assert api.ddi("GET", cids[1], f"/deploymentBase/{later}").body["deployment"]["update"] == "attempt"
    over = api.assign(ds, cids[2], type="timeforced", forcetime=api.symbols.at(-60_000))
    assert api.ddi("GET", cids[2], f"/deploymentBase/{over}").body["deployment"]["update"] == "forced"
    only = api.assign(ds, cids[3], type="downloadonly")
    order = api.ddi("GET", cids[3], f"/deploymentBase/{only}").body["deployment"]
    assert (order["download"], order["update"]) == ("forced", "skip")
    assert api.feedback(cids[3], only, "downloaded").status == 200
    assert api.look(cids[3])["updateStatus"] == "in_sync"
    done = api.action(cids[3], only)
    assert (done["status"], done["active"]) == ("downloaded", False)
    assert api.mgmt("GET", f"/targets/{cids[3]}/installedDS").status == 204
    assert api.feedback(cids[3], only, "closed", "success").status in (200, 410)


def test_the_highest_weight_is_offered_first_and_then_the_oldest(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1", requiredMigrationStep=True)
    _, two = api.firmware("2", requiredMigrationStep=True)
    _, three = api.firmware("3", requiredMigrationStep=True)
    first, second = api.assign(one, cid, weight=500), api.assign(two, cid, weight=500)
    third = api.assign(three, cid, weight=900)
    for action in (third, first, second):
        assert f"/deploymentBase/{action}?" in api.ddi("GET", cid).body["_links"]["deploymentBase"]["href"]
        assert api.feedback(cid, action, "closed", "success", quiet=True).status == 200
    assert _offered(api, cid) == set()


def test_a_new_assignment_cancels_the_one_under_way_which_is_asked_for_first(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    old = api.assign(one, cid)
    api.ddi("GET", cid, f"/deploymentBase/{old}", quiet=True)
    new = api.assign(two, cid)
    cancelled = api.action(cid, old)
    assert (cancelled["status"], cancelled["type"], cancelled["active"]) == ("canceling", "cancel", True)
    base = api.ddi("GET", cid)
    assert set(base.body["_links"]) == {"cancelAction", "configData"}
    assert api.ddi("GET", cid, f"/deploymentBase/{old}").status == 404
    assert api.feedback(cid, old, "closed", "success", kind="cancelAction").status == 200
    base = api.ddi("GET", cid)
    assert f"/deploymentBase/{new}?" in base.body["_links"]["deploymentBase"]["href"]
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").body["id"] == two
    assert api.look(cid)["updateStatus"] == "pending"


def test_a_heavier_assignment_is_offered_while_the_old_cancel_is_open(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    old = api.assign(one, cid, weight=500)
    new = api.assign(two, cid, weight=900)
    base = api.ddi("GET", cid)
    assert f"/deploymentBase/{new}?" in base.body["_links"]["deploymentBase"]["href"]
    assert api.feedback(cid, new, "closed", "success").status == 200
    base = api.ddi("GET", cid)
    assert f"/cancelAction/{old}" in base.body["_links"]["cancelAction"]["href"]
    assert api.look(cid)["updateStatus"] == "in_sync"
    assert api.feedback(cid, old, "closed", "success", kind="cancelAction").status == 200
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").body["id"] == two


def test_with_autoclose_the_old_action_is_over_at_once(api: Api, settings: Settings) -> None:
    settings({"repository.actions.autoclose.enabled": True})
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    old = api.assign(one, cid)
    new = api.assign(two, cid)
    closed = api.action(cid, old)
    assert (closed["status"], closed["active"]) == ("canceled", False)
    assert api.feedback(cid, old, "closed", "success").status == 410
    assert f"/deploymentBase/{new}?" in api.ddi("GET", cid).body["_links"]["deploymentBase"]["href"]


def test_an_offline_assignment_records_what_is_installed(api: Api) -> None:
    cid = api.target()
    _, one = api.firmware("1")
    _, two = api.firmware("2")
    made = api.mgmt("POST", f"/distributionsets/{one}/assignedTargets", [{"id": cid}], query={"offline": "true"})
    assert (made.status, made.body["assigned"]) == (200, 1)
    assert api.look(cid)["updateStatus"] == "in_sync"
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == one
    assert _offered(api, cid) == set()
    row = {"name": api.name("fw"), "version": "2"}
    assert api.ddi("PUT", cid, "/installedBase", row).status == 201
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == two
    assert api.look(cid)["updateStatus"] == "in_sync"
    assert api.ddi("PUT", cid, "/installedBase", row).status == 200
    rows = api.mgmt("GET", f"/targets/{cid}/actions").body["content"]
    assert [(r["status"], r["active"]) for r in rows] == [("finished", False)] * 2
    assert api.ddi("PUT", cid, "/installedBase", {"name": api.name("nothing"), "version": "1"}).status >= 400
    # While an action is open it changes nothing.
    api.assign(one, cid)
    api.firmware("3")
    assert api.ddi("PUT", cid, "/installedBase", {"name": api.name("fw"), "version": "3"}).status == 200
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").body["id"] == two


def test_a_set_of_several_modules_offers_all_of_them(api: Api) -> None:
    name = api.name("fw")
    rows = [{"name": name, "version": "1", "type": "os"}, {"name": name, "version": "1", "type": "application"}]
    os_, app = (row["id"] for row in api.mgmt("POST", "/softwaremodules", rows).body)
    for module, filename in ((os_, "rootfs.img"), (os_, "boot.img"), (app, "app.bin")):
        api.mgmt("POST", f"/softwaremodules/{module}/artifacts", upload={"filename": filename, "content": filename})
    row = {"name": name, "version": "1", "type": "os_app", "modules": [{"id": os_}, {"id": app}]}
    ds = api.mgmt("POST", "/distributionsets", [row]).body[0]["id"]
    cid = api.target()
    action = api.assign(ds, cid)
    chunks = {c["part"]: c for c in _chunks(api.ddi("GET", cid, f"/deploymentBase/{action}", quiet=True))}
    assert set(chunks) == {"os", "bApp"}
    assert sorted(a["filename"] for a in chunks["os"]["artifacts"]) == ["boot.img", "rootfs.img"]


def _chunks(answer: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer.body["deployment"]["chunks"]
    return found
