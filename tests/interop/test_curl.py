"""Scripts with curl, as Drogue's documentation and its users write them: the HTTP endpoint, the registry, commands."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from tests.interop.support import CLIENT_S, REGISTRY, Dfud
from tests.real_parts import require

pytestmark = pytest.mark.client("curl")


@pytest.fixture
def app(dfud: Dfud, request: pytest.FixtureRequest) -> str:
    name = "u" + format(random.Random(request.node.name).randrange(1 << 40), "x")
    dfud.app(name)
    user = {"user": {"username": "carol", "password": "theirs"}}
    dfud.device(name, "dev1", authentication={"credentials": [{"pass": "hey"}, user]})
    return name


class Answer:
    """What curl -i printed."""

    def __init__(self, text: bytes) -> None:
        head, _, self.body = text.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}


def curl(url: str, *arguments: str) -> Answer:
    command = [require("curl"), "--silent", "--show-error", "--include", *arguments, url]
    return Answer(subprocess.run(command, check=True, capture_output=True, timeout=CLIENT_S).stdout)


JSON = ("-H", "Content-Type: application/json", "-d", '{"temp": 42}')


@pytest.mark.parametrize(
    ("query", "user"),
    [
        ("", "dev1@{app}:hey"),
        ("?application={app}", "dev1:hey"),
        ("?application={app}&device=dev1", "carol:theirs"),
        ("?device=dev1", "carol@{app}:theirs"),
    ],
)
def test_a_device_publishes_with_each_form_of_basic_credentials(dfud: Dfud, app: str, query: str, user: str) -> None:
    url, user = dfud.http + "/v1/foo" + query.format(app=app), user.format(app=app)
    found = curl(url, "-u", user, *JSON)
    assert (found.status, found.body) == (202, b"")
    wrong = curl(url, "-u", user + "x", *JSON)
    assert (wrong.status, json.loads(wrong.body)) == (
        403,
        {"code": 403, "error": "AuthenticationError", "message": "Authentication failed"},
    )
    assert "www-authenticate" not in wrong.headers


def test_what_is_published_is_judged_by_its_content_type(dfud: Dfud, app: str) -> None:
    url, user = dfud.http + "/v1/foo", ("-u", f"dev1@{app}:hey")
    for kind, body, status in (
        ("application/json", "{", 406),
        ("application/json; charset=utf-8", "{", 406),
        ("text/json", "{", 406),
        ("application/x+json", "{", 406),
        ("application/json", "{}", 202),
        ("text/plain", "{", 202),
        ("", "{", 202),
        ("", "{}", 202),
    ):
        found = curl(url, *user, "-H", f"Content-Type: {kind}" if kind else "Content-Type:", "-d", body)
        assert (found.status, found.body) == (status, b""), (kind, body)


def test_a_published_topic_and_schema_a_malformed_wait_and_other_methods(dfud: Dfud, app: str) -> None:
    user = ("-u", f"dev1@{app}:hey")
    assert curl(f"{dfud.http}/v1/foo/bar/baz?data_schema=urn:x", *user, *JSON).status == 202
    found = curl(f"{dfud.http}/v1/foo?ct=soon", *user, *JSON)
    assert (found.status, json.loads(found.body)["code"]) == (400, 400)
    assert curl(f"{dfud.http}/").status == 200
    assert curl(f"{dfud.http}/v1/foo", *user, "-X", "PUT", *JSON).status == 405
    assert curl(f"{dfud.http}/v1/foo?ct=1", *user, *JSON).status == 202, "nothing came"


def test_a_command_comes_with_its_name_and_without_a_content_type(dfud: Dfud, app: str) -> None:
    command = f"{dfud.registry}/api/command/v1alpha1/apps/{app}/devices/dev1?command=set-temp"
    sent = curl(command, "-u", f"admin:{dfud.token}", *JSON)
    assert (sent.status, sent.body) == (202, b"")
    found = curl(f"{dfud.http}/v1/foo?ct=30", "-u", f"dev1@{app}:hey", *JSON)
    assert (found.status, found.headers["command"], found.body) == (200, "set-temp", b'{"temp": 42}')
    assert "content-type" not in found.headers


@pytest.mark.parametrize("form", ["basic", "bearer"])
def test_the_registry_with_basic_and_bearer(dfud: Dfud, app: str, form: str) -> None:
    user = ("-u", f"admin:{dfud.token}") if form == "basic" else ("-H", f"Authorization: Bearer {dfud.token}")
    url = f"{dfud.registry}{REGISTRY}/{app}/devices"
    made = curl(url, *user, "-H", "Content-Type: application/json", "-d", f'{{"metadata":{{"name":"d2","application":"{app}"}}}}')
    assert (made.status, made.headers["location"], made.body) == (201, f"{REGISTRY}/{app}/devices/d2", b"")
    found = json.loads(curl(f"{url}/d2", *user).body)
    assert sorted(found["metadata"]) == [
        "application", "creationTimestamp", "generation", "name", "resourceVersion", "uid"
    ]  # fmt: skip
    stale = json.dumps({"preconditions": {"uid": found["metadata"]["uid"], "resourceVersion": "another"}})
    kept = curl(f"{url}/d2", *user, "-X", "DELETE", "-d", stale)
    assert (kept.status, json.loads(kept.body)["error"]) == (409, "Conflict")
    right = json.dumps({"preconditions": {"resourceVersion": found["metadata"]["resourceVersion"]}})
    assert curl(f"{url}/d2", *user, "-X", "DELETE", "-d", right).status == 204
    assert curl(f"{url}/d2", *user).status == 404


def test_a_token_in_the_address_is_not_taken(dfud: Dfud, app: str) -> None:
    """Drogue took it; addresses end up in logs."""
    assert curl(f"{dfud.registry}{REGISTRY}?token={dfud.token}").status == 403
    assert curl(f"{dfud.registry}{REGISTRY}?username=admin&api_key={dfud.token}").status == 403


def test_where_things_are(dfud: Dfud) -> None:
    found = json.loads(curl(f"{dfud.registry}/.well-known/drogue-endpoints").body)
    assert found["registry"] == {"url": dfud.registry}, "drg needs it without a slash at its end"
    assert found["issuer_url"] == found["api"] == dfud.registry
    assert json.loads(curl(f"{dfud.registry}/.well-known/drogue-version").body)["version"] == "0.11.0"
    openid = json.loads(curl(f"{dfud.registry}/.well-known/openid-configuration").body)
    assert curl(openid["authorization_endpoint"]).status == 501
