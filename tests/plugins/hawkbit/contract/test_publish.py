"""Firmware in hawkBit: modules, artifacts, metadata, distribution sets."""

from __future__ import annotations

import hashlib

from tests.plugins.hawkbit.contract.api import Api

CONTENT = "0123456789" * 10
SHA256 = hashlib.sha256(CONTENT.encode()).hexdigest()
SHA1 = hashlib.sha1(CONTENT.encode(), usedforsecurity=False).hexdigest()
QUOTA = "hawkbit.server.error.quota.tooManyEntries"


def test_a_new_tenant_has_types_for_firmware(api: Api) -> None:
    rows = api.mgmt("GET", "/softwaremoduletypes", query={"sort": "key:ASC"}).body["content"]
    assert {"os", "application"} <= {row["key"] for row in rows}
    rows = api.mgmt("GET", "/distributionsettypes", query={"sort": "key:ASC"}).body["content"]
    assert {"os", "os_app", "app"} <= {row["key"] for row in rows}


def test_modules_are_made_found_and_unique(api: Api) -> None:
    name = api.name("fw")
    row = {"name": name, "version": "1.0", "type": "os", "vendor": "v", "description": "text"}
    made = api.mgmt("POST", "/softwaremodules", [row])
    assert made.status == 201
    number = made.body[0]["id"]
    again = api.mgmt("POST", "/softwaremodules", [row])
    assert (again.status, again.body["errorCode"]) == (409, "hawkbit.server.error.repo.entityAlreadyExists")
    assert api.mgmt("POST", "/softwaremodules", [{**row, "version": "2.0"}]).status == 201
    assert api.mgmt("POST", "/softwaremodules", [{**row, "type": "application"}]).status == 201
    found = api.mgmt("GET", "/softwaremodules", query={"q": f"name=={name};version==1.0;type==os"})
    assert [row["id"] for row in found.body["content"]] == [number]
    quoted = api.mgmt("GET", "/softwaremodules", query={"q": f"name=='{name}';version=='1.0'", "sort": "id:ASC"})
    assert quoted.body["total"] == 2
    assert api.mgmt("GET", f"/softwaremodules/{number}").body["locked"] is False
    assert api.mgmt("POST", "/softwaremodules", [{**row, "type": "no-such-type"}]).status == 404
    missing = api.mgmt("GET", "/softwaremodules/999999")
    assert (missing.status, missing.body["errorCode"]) == (404, "hawkbit.server.error.repo.entityNotFound")


def test_artifacts_are_checked_against_their_hash_and_downloaded_whole_or_in_part(api: Api) -> None:
    row = {"name": api.name("fw"), "version": "1", "type": "os"}
    module = api.mgmt("POST", "/softwaremodules", [row], quiet=True).body[0]["id"]
    path = f"/softwaremodules/{module}/artifacts"
    upload = {"filename": "image.bin", "content": CONTENT}
    wrong = api.mgmt("POST", path, upload=upload, query={"sha256sum": "0" * 64})
    assert (wrong.status, wrong.body["errorCode"].split(".")[-2:]) == (400, ["sha256", "match"])
    made = api.mgmt("POST", path, upload=upload, query={"filename": "fw.bin", "sha256sum": SHA256})
    assert made.status == 201
    assert made.body["hashes"]["sha256"] == SHA256
    assert (made.body["providedFilename"], made.body["size"]) == ("fw.bin", 100)
    again = api.mgmt("POST", path, upload=upload, query={"filename": "fw.bin", "sha256sum": SHA256})
    assert again.status == 409
    assert [row["id"] for row in api.mgmt("GET", path).body] == [made.body["id"]]
    one = f"{path}/{made.body['id']}"
    assert api.mgmt("GET", one).body["hashes"]["sha1"] == SHA1
    whole = api.mgmt("GET", f"{one}/download")
    assert (whole.status, whole.raw.decode(), whole.headers["etag"]) == (200, CONTENT, f'"{SHA1}"')
    part = api.mgmt("GET", f"{one}/download", headers={"range": "bytes=10-14"})
    assert (part.status, part.raw, part.headers["content-range"]) == (206, b"01234", "bytes 10-14/100")
    rest = api.mgmt("GET", f"{one}/download", headers={"range": "bytes=95-"})
    assert (rest.status, rest.raw) == (206, b"56789")
    same = api.mgmt("GET", f"{one}/download", headers={"range": "bytes=95-", "if-range": f'"{SHA1}"'})
    assert same.status == 206
    other = api.mgmt("GET", f"{one}/download", headers={"range": "bytes=95-", "if-range": '"other"'})
    assert (other.status, other.raw.decode()) == (200, CONTENT)
    assert api.mgmt("GET", f"{one}/download", headers={"range": "bytes=100-"}).status == 416
    assert api.mgmt("HEAD", f"{one}/download").status == 200
    assert api.mgmt("GET", f"{path}/999999/download").status == 404
    assert api.mgmt("DELETE", one).status in (200, 204)
    assert api.mgmt("GET", path).body == []


def test_module_metadata_is_overwritten_in_silence_and_has_a_limit(api: Api) -> None:
    row = {"name": api.name("fw"), "version": "1", "type": "os"}
    module = api.mgmt("POST", "/softwaremodules", [row], quiet=True).body[0]["id"]
    path = f"/softwaremodules/{module}/metadata"
    assert api.mgmt("GET", path).body["content"] == []
    assert api.mgmt("POST", path, [{"key": "manifest", "value": "one", "targetVisible": True}]).status == 201
    assert api.mgmt("POST", path, [{"key": "hidden", "value": "x"}]).status == 201
    assert api.mgmt("POST", path, [{"key": "manifest", "value": "two", "targetVisible": True}]).status == 201
    rows = {r["key"]: (r["value"], r["targetVisible"]) for r in api.mgmt("GET", path).body["content"]}
    assert rows == {"manifest": ("two", True), "hidden": ("x", False)}
    one = api.mgmt("GET", f"{path}/manifest")
    assert one.body["value"] == "two"
    assert api.mgmt("GET", f"{path}/nothing").status == 404
    put = api.mgmt("PUT", f"{path}/manifest", {"value": "three", "targetVisible": True})
    assert put.status in (200, 204)
    assert api.mgmt("GET", f"{path}/manifest").body["value"] == "three"
    long = [{"key": "long", "value": "v" * 4000, "targetVisible": True}]
    assert api.mgmt("POST", path, long, quiet=True).status == 201
    longer = api.mgmt("POST", path, [{"key": "longer", "value": "v" * 4001, "targetVisible": True}], quiet=True)
    assert longer.status == 400
    assert api.mgmt("DELETE", f"{path}/hidden").status in (200, 204)
    assert api.mgmt("DELETE", f"{path}/hidden").status == 404
    many = [{"key": f"k{n}", "value": "v"} for n in range(99)]
    over = api.mgmt("POST", path, many)
    assert (over.status, over.body["errorCode"]) == (429, QUOTA)
    assert api.mgmt("POST", path, many[:98], quiet=True).status == 201


def test_sets_are_made_of_modules_found_and_unique(api: Api) -> None:
    name = api.name("fw")
    module = api.mgmt("POST", "/softwaremodules", [{"name": name, "version": "1", "type": "os"}], quiet=True).body[0][
        "id"
    ]
    row = {"name": name, "version": "1", "type": "os", "modules": [{"id": module}], "description": "text"}
    made = api.mgmt("POST", "/distributionsets", [row])
    assert made.status == 201 and made.body[0]["complete"] is True
    number = made.body[0]["id"]
    again = api.mgmt("POST", "/distributionsets", [row])
    assert (again.status, again.body["errorCode"]) == (409, "hawkbit.server.error.repo.entityAlreadyExists")
    found = api.mgmt("GET", "/distributionsets", query={"q": f"name=={name};version==1"})
    assert [row["id"] for row in found.body["content"]] == [number]
    assert found.body["content"][0]["modules"][0]["id"] == module
    assert api.mgmt("GET", f"/distributionsets/{number}").body["modules"][0]["name"] == name
    assert api.mgmt("GET", "/distributionsets/999999").status == 404
    assert api.mgmt("POST", "/distributionsets", [{**row, "version": "2", "type": "no-such-type"}]).status == 404
    assert api.mgmt("POST", "/distributionsets", [{**row, "version": "3", "modules": [{"id": 999999}]}]).status == 404
    # Until it has what its type demands it can be made, but not assigned.
    empty = api.mgmt("POST", "/distributionsets", [{"name": name, "version": "4", "type": "os"}])
    assert empty.body[0]["complete"] is False
    cid = api.target()
    refused = api.mgmt("POST", f"/targets/{cid}/assignedDS", {"id": empty.body[0]["id"]})
    assert (refused.status, refused.body["errorCode"]) == (400, "hawkbit.server.error.distributionset.incomplete")
    assert api.mgmt("POST", f"/distributionsets/{empty.body[0]['id']}/assignedSM", [{"id": module}]).status in (
        200,
        204,
    )
    assert api.mgmt("GET", f"/distributionsets/{empty.body[0]['id']}").body["complete"] is True


def test_an_assigned_set_is_locked_with_its_modules_and_can_be_unlocked(api: Api) -> None:
    module, ds = api.firmware()
    cid = api.target()
    assert api.mgmt("GET", f"/distributionsets/{ds}").body["locked"] is False
    action = api.assign(ds, cid)
    assert api.mgmt("GET", f"/distributionsets/{ds}").body["locked"] is True
    assert api.mgmt("GET", f"/softwaremodules/{module}").body["locked"] is True
    path = f"/softwaremodules/{module}"
    refused = api.mgmt("POST", f"{path}/artifacts", upload={"filename": "b.bin", "content": "b"})
    assert (refused.status, refused.body["errorCode"]) == (423, "hawkbit.server.error.locked")
    artifact = api.mgmt("GET", f"{path}/artifacts").body[0]["id"]
    assert api.mgmt("DELETE", f"{path}/artifacts/{artifact}").status == 423
    assert api.mgmt("POST", f"{path}/metadata", [{"key": "k", "value": "v", "targetVisible": True}]).status == 201
    assert api.mgmt("PUT", path, {"locked": False}).body["locked"] is False
    assert api.mgmt("POST", f"{path}/artifacts", upload={"filename": "b.bin", "content": "b"}).status == 201
    assert api.ddi("GET", cid, f"/deploymentBase/{action}").status == 200


def test_a_deleted_set_or_module_keeps_its_name(api: Api) -> None:
    module, ds = api.firmware()
    name = api.name("fw")
    api.assign(ds, api.target())
    assert api.mgmt("DELETE", f"/distributionsets/{ds}").status in (200, 204)
    gone = api.mgmt("GET", f"/distributionsets/{ds}")
    assert gone.status in (200, 404)
    row = {"name": name, "version": "1", "type": "os", "modules": [{"id": module}]}
    assert api.mgmt("POST", "/distributionsets", [row]).status == 409
    assert api.mgmt("GET", "/distributionsets", query={"q": f"name=={name}"}).body["total"] == 0
    assert api.mgmt("DELETE", f"/softwaremodules/{module}").status in (200, 204)
    assert api.mgmt("POST", "/softwaremodules", [{"name": name, "version": "1", "type": "os"}]).status == 409
    assert api.mgmt("GET", "/softwaremodules", query={"q": f"name=={name}"}).body["total"] == 0
