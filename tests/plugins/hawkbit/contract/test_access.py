"""Who may ask, and the tenant's settings."""

from __future__ import annotations

from tests.plugins.hawkbit.contract.api import Api


def test_the_management_wants_a_user_and_a_password(api: Api) -> None:
    assert api.mgmt("GET", "/targets", query={"limit": 1}, quiet=True).status == 200
    assert api.mgmt("GET", "/targets", auth="wrong user").status == 401
    assert api.mgmt("GET", "/targets", auth="nobody").status == 401
    assert api.mgmt("POST", "/targets", [{"controllerId": api.name("dev")}], auth="wrong user").status == 401


def test_devices_and_gateways_have_tokens(api: Api) -> None:
    cid = api.target()
    assert api.ddi("GET", cid, quiet=True).status == 200
    for auth in ("wrong gateway", "wrong target", "nobody", "user"):
        assert api.ddi("GET", cid, auth=auth).status == 401, auth
    assert api.ddi("PUT", cid, "/configData", {"data": {"a": "1"}}, auth="wrong gateway").status == 401
    assert api.ddi("GET", cid, auth=f"target {cid}").status == 200
    other = api.target("other")
    assert api.ddi("GET", other, auth=f"target {cid}").status == 401
    # An unknown device is not registered with a token that is not the gateway's.
    assert api.ddi("GET", api.name("new"), auth="wrong target").status == 401
    assert api.mgmt("GET", f"/targets/{api.name('new')}").status == 404


def test_a_gateway_token_can_be_taken_away_and_given_again(api: Api) -> None:
    cid = api.target()
    path = "/system/configs/authentication.gatewaytoken.enabled"
    try:
        assert api.mgmt("PUT", path, {"value": False}).status in (200, 204)
        assert api.ddi("GET", cid).status == 401
    finally:
        assert api.mgmt("PUT", path, {"value": True}).status in (200, 204)
    assert api.ddi("GET", cid, quiet=True).status == 200


def test_settings_are_read_written_and_put_back(api: Api) -> None:
    path = "/system/configs/pollingTime"
    standard = api.mgmt("GET", path).body
    assert standard["global"] is True
    try:
        assert api.mgmt("PUT", path, {"value": "00:01:30"}).status in (200, 204)
        own = api.mgmt("GET", path).body
        assert (own["value"], own["global"]) == ("00:01:30", False)
        assert api.ddi("GET", api.target()).body["config"]["polling"]["sleep"] == "00:01:30"
        assert api.mgmt("PUT", path, {"value": "not a time"}).status == 400
    finally:
        assert api.mgmt("DELETE", path).status in (200, 204)
    assert api.mgmt("GET", path).body["value"] == standard["value"]
    keys = api.mgmt("GET", "/system/configs", quiet=True).body
    for key in ("repository.actions.autoclose.enabled", "user.confirmation.flow.enabled", "implicit.lock.enabled"):
        assert keys[key]["value"] in (True, False)
    several = {"repository.actions.autoclose.enabled": True, "user.confirmation.flow.enabled": False}
    try:
        assert api.mgmt("PUT", "/system/configs", several).status in (200, 204)
        assert api.mgmt("GET", "/system/configs/repository.actions.autoclose.enabled").body["value"] is True
    finally:
        for key in several:
            assert api.mgmt("DELETE", f"/system/configs/{key}").status in (200, 204)
    assert api.mgmt("GET", "/system/configs/no.such.setting").status in (400, 403, 404)


def test_a_client_that_asks_too_often_gets_a_429_without_a_word(api: Api) -> None:
    path = "/system/configs/pollingTime"
    if not api.server.limits_clients:
        assert api.mgmt("GET", path, headers={"x-forwarded-for": "198.51.100.7"}, quiet=True).status == 200
        return
    headers = {"x-forwarded-for": "198.51.100.7"}
    limited = api.until(lambda a: a.status == 429, "GET", path, headers=headers, pause_s=0)
    assert (limited.raw, "retry-after" in limited.headers) == (b"", False)
    # Others are not concerned.
    assert api.mgmt("GET", path, headers={"x-forwarded-for": "127.0.0.1"}, quiet=True).status == 200
    assert api.mgmt("GET", path, quiet=True).status == 200
