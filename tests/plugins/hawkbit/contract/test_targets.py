"""Targets: making them, finding them, what they say of themselves."""

from __future__ import annotations

from tests.plugins.hawkbit.contract.api import Api

QUOTA = "hawkbit.server.error.quota.tooManyEntries"


def test_targets_are_made_found_changed_and_deleted(api: Api) -> None:
    cid = api.name("app:dev")
    made = api.mgmt(
        "POST", "/targets", [{"controllerId": cid, "name": "a name", "securityToken": "tok", "description": "d"}]
    )
    assert made.status == 201
    assert (made.body[0]["updateStatus"], made.body[0]["requestAttributes"]) == ("unknown", True)
    again = api.mgmt("POST", "/targets", [{"controllerId": cid}])
    assert (again.status, again.body["errorCode"]) == (409, "hawkbit.server.error.repo.entityAlreadyExists")
    # One that exists spoils the whole request.
    both = api.mgmt("POST", "/targets", [{"controllerId": api.name("other")}, {"controllerId": cid}])
    assert both.status == 409
    assert api.mgmt("GET", f"/targets/{api.name('other')}").status == 404
    assert api.look(cid)["name"] == "a name"
    found = api.mgmt("GET", "/targets", query={"q": f"controllerId=={cid}"})
    assert [row["controllerId"] for row in found.body["content"]] == [cid]
    assert api.mgmt("PUT", f"/targets/{cid}", {"name": "another"}).body["name"] == "another"
    assert api.mgmt("GET", f"/targets/{cid}/attributes").status == 204
    assert api.mgmt("GET", f"/targets/{cid}/assignedDS").status == 204
    assert api.mgmt("GET", f"/targets/{cid}/installedDS").status == 204
    assert api.mgmt("GET", f"/targets/{cid}/actions").body["total"] == 0
    assert api.mgmt("DELETE", f"/targets/{cid}").status in (200, 204)
    gone = api.mgmt("GET", f"/targets/{cid}")
    assert (gone.status, gone.body["errorCode"]) == (404, "hawkbit.server.error.repo.entityNotFound")
    assert api.mgmt("DELETE", f"/targets/{cid}").status == 404


def test_pages_of_targets_have_at_most_500_rows(api: Api) -> None:
    cids = sorted(api.name(f"dev{n:03}") for n in range(502))
    made = api.mgmt("POST", "/targets", [{"controllerId": cid} for cid in cids[:250]], quiet=True)
    assert made.status == 201
    assert api.mgmt("POST", "/targets", [{"controllerId": cid} for cid in cids[250:]], quiet=True).status == 201
    query = {"q": f"controllerId==*-{api.run}", "sort": "controllerId:ASC"}
    first = api.mgmt("GET", "/targets", query={**query, "limit": 1000}, quiet=True).body
    assert (first["total"], first["size"]) == (502, 500)
    rest = api.mgmt("GET", "/targets", query={**query, "limit": 500, "offset": 500}).body
    assert [row["controllerId"] for row in rest["content"]] == cids[500:]
    assert api.mgmt("GET", "/targets", query=query, quiet=True).body["size"] == 50


def test_targets_are_sorted_by_the_name_that_they_have(api: Api) -> None:
    one, two = api.target("zz"), api.target("aa")
    query = {"q": f"controllerId==*-{api.run}"}
    for sort, wanted in (("id:ASC", [two, one]), ("controllerId:DESC", [one, two]), ("createdAt:ASC", [one, two])):
        rows = api.mgmt("GET", "/targets", query={**query, "sort": sort}).body["content"]
        assert [row["controllerId"] for row in rows] == wanted, sort


def test_targets_have_metadata_and_groups(api: Api) -> None:
    cid = api.name("dev")
    assert api.mgmt("POST", "/targets", [{"controllerId": cid, "group": f"{api.run}/east"}]).status == 201
    path = f"/targets/{cid}/metadata"
    assert api.mgmt("GET", path).status == 200
    assert api.mgmt("POST", path, [{"key": "dfud", "value": "x"}]).status == 201
    assert api.mgmt("PUT", f"{path}/dfud", {"key": "dfud", "value": "y"}).status in (200, 204)
    assert api.mgmt("GET", path).body["content"] == [{"key": "dfud", "value": "y"}]
    assert api.mgmt("GET", "/targets", query={"q": f"metadata.dfud==y;controllerId=={cid}"}).body["total"] == 1
    assert api.mgmt("GET", "/targets", query={"q": f"metadata.dfud==z;controllerId=={cid}"}).body["total"] == 0
    assert api.mgmt("GET", "/targets", query={"q": f"group=='{api.run}/east'"}).body["total"] == 1


def test_queries_know_and_or_values_in_quotes_and_any_case(api: Api) -> None:
    one, two = api.targets(2)
    for query, wanted in (
        (f"controllerId=={one},controllerId=={two}", [one, two]),
        (f"controllerId=in=({one},{two})", [one, two]),
        (f"controllerId==*{api.run};controllerId!={two}", [one]),
        (f"(controllerId=={one},controllerId=={two});name=={two}", [two]),
        (f"controllerId=='{one}'", [one]),
        (f'controllerId=="DEV0-{api.run}"', [one]),
        (f"controllerId=={one};updatestatus==unknown", [one]),
        (f"controllerId==*{api.run};updatestatus==in_sync", []),
        (f"controllerId=out=({one});name==*{api.run}", [two]),
    ):
        rows = api.mgmt("GET", "/targets", query={"q": query, "sort": "controllerId:ASC"}).body["content"]
        assert [row["controllerId"] for row in rows] == wanted, query
    unknown = api.mgmt("GET", "/targets", query={"q": "nothing==1"})
    assert (unknown.status, unknown.body["errorCode"]) == (400, "hawkbit.server.error.rest.param.rsqlInvalidField")
    broken = api.mgmt("GET", "/targets", query={"q": "controllerId=="})
    assert (broken.status, broken.body["errorCode"]) == (400, "hawkbit.server.error.rest.param.rsqlParamSyntax")


def test_a_poll_registers_a_device_that_nobody_made(api: Api) -> None:
    cid = api.name("dev")
    base = api.ddi("GET", cid)
    assert base.status == 200
    assert set(base.body["_links"]) == {"configData"}
    assert base.body["config"]["polling"]["sleep"].count(":") == 2
    seen = api.look(cid)
    assert (seen["updateStatus"], seen["pollStatus"]["overdue"]) == ("registered", False)
    assert api.ddi("GET", api.name("nobody"), "/deploymentBase/999999").status == 404
    assert api.mgmt("GET", f"/targets/{api.name('nobody')}").status == 404


def test_attributes_are_merged_replaced_and_removed(api: Api) -> None:
    cid = api.target()
    assert api.ddi("PUT", cid, "/configData", {"mode": "merge", "data": {"a": "1", "b": "2"}}).status == 200
    assert api.mgmt("GET", f"/targets/{cid}/attributes").body == {"a": "1", "b": "2"}
    assert api.ddi("GET", cid).body.get("_links") is None
    assert api.ddi("PUT", cid, "/configData", {"data": {"b": "3", "c": "4"}}).status == 200
    assert api.mgmt("GET", f"/targets/{cid}/attributes").body == {"a": "1", "b": "3", "c": "4"}
    assert api.ddi("PUT", cid, "/configData", {"mode": "remove", "data": {"c": ""}}).status == 200
    assert api.ddi("PUT", cid, "/configData", {"mode": "replace", "data": {"d": "5"}}).status == 200
    assert api.mgmt("GET", f"/targets/{cid}/attributes").body == {"d": "5"}
    assert api.mgmt("GET", "/targets", query={"q": f"attribute.d==5;controllerId=={cid}"}).body["total"] == 1
    long = api.ddi("PUT", cid, "/configData", {"mode": "merge", "data": {"k" * 128: "v" * 128}}, quiet=True)
    assert long.status == 200
    longer = api.ddi("PUT", cid, "/configData", {"mode": "merge", "data": {"k": "v" * 129}})
    assert (longer.status, longer.body["errorCode"]) == (400, "hawkbit.server.error.repo.invalidTargetAttributes")
    assert api.ddi("PUT", cid, "/configData", {"mode": "merge", "data": {"k" * 129: "v"}}).status == 400
    many = {f"k{n}": "v" for n in range(101)}
    over = api.ddi("PUT", cid, "/configData", {"mode": "replace", "data": many}, quiet=True)
    assert (over.status, over.body["errorCode"]) == (429, QUOTA)
    assert api.mgmt("GET", f"/targets/{cid}/attributes", quiet=True).body["d"] == "5"
    assert api.ddi("PUT", cid, "/configData", {"mode": "other", "data": {}}).status == 400
    assert api.ddi("PUT", api.name("nobody"), "/configData", {"data": {"a": "1"}}).status == 404
    # What other clients send is taken: swupdate's has an id and a status beside the data.
    other = {
        "id": "",
        "status": {"result": {"finished": "success"}, "execution": "closed", "details": [""]},
        "data": {"z": "1"},
    }
    assert api.ddi("PUT", cid, "/configData", other).status == 200


def test_a_poll_tells_the_address_of_the_device_that_it_is_for(api: Api) -> None:
    cid = api.target()
    for forwarded, shown in (
        ("203.0.113.7", "http://203.0.113.7"),
        ("203.0.113.7, 10.0.0.1", "http://203.0.113.7"),
        ("2001:0db8:0000:0000:0000:0000:0000:0001", "http://[2001:0db8:0000:0000:0000:0000:0000:0001]"),
    ):
        assert api.ddi("GET", cid, headers={"x-forwarded-for": forwarded}, quiet=True).status == 200
        assert api.look(cid)["address"] == shown


def test_attributes_that_the_management_asks_for_are_asked_of_the_device(api: Api) -> None:
    cid = api.target()
    assert api.ddi("PUT", cid, "/configData", {"data": {"a": "1"}}).status == 200
    assert api.ddi("GET", cid).body.get("_links") is None
    assert api.mgmt("PUT", f"/targets/{cid}", {"requestAttributes": True}, quiet=True).status == 200
    assert set(api.ddi("GET", cid).body["_links"]) == {"configData"}
    assert api.look(cid)["requestAttributes"] is True
    assert api.ddi("PUT", cid, "/configData", {"data": {"a": "1"}}).status == 200
    assert api.look(cid)["requestAttributes"] is False


def test_a_target_keeps_the_description_that_it_is_given(api: Api) -> None:
    cid = api.name("dev")
    assert api.mgmt("POST", "/targets", [{"controllerId": cid, "description": "one"}], quiet=True).status == 201
    assert api.look(cid)["description"] == "one"
    assert api.mgmt("PUT", f"/targets/{cid}", {"description": "two"}, quiet=True).status == 200
    assert api.look(cid)["description"] == "two"
