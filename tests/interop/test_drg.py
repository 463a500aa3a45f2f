"""Every command of the real drg 0.11 against a real dfud: what it prints, and what then is in the registry.

The devices behind `-o wide` and `command` speak HTTP as Drogue's do.
"""

from __future__ import annotations

import base64
import json
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.interop.ajour import AjourDevice
from tests.interop.support import Dfud, Drg

pytestmark = [pytest.mark.interop, pytest.mark.client("drg 0.11.0")]
SPEC = '{"authentication":{"credentials":[{"pass":"hey"}]}}'


@pytest.fixture
def drg(dfud: Dfud, tmp_path: Path) -> Drg:
    return Drg(dfud, tmp_path)


@pytest.fixture
def app(dfud: Dfud, request: pytest.FixtureRequest) -> str:
    """An app of the test's own, with the devices dev1 and dev2."""
    name = "a" + format(random.Random(request.node.name).randrange(1 << 40), "x")
    dfud.app(name)
    for device in ("dev1", "dev2"):
        dfud.device(name, device)
    return name


def publish(dfud: Dfud, user: str, password: str, path: str = "/v1/t") -> int:
    return httpx.post(dfud.http + path, content=b"1", auth=(user, password), timeout=60).status_code


def test_login_with_an_access_token(dfud: Dfud, tmp_path: Path) -> None:
    drg = Drg(dfud, tmp_path, login=False)
    text = drg("login", dfud.registry, "--access-token", "admin:drg_000000_wrong", code=None)
    assert "Authentication failed" in text
    assert "uccess" in drg("login", dfud.registry, "--access-token", f"admin:{dfud.token}")
    assert dfud.registry in drg("config", "show")


def test_login_as_somebody_else_with_the_same_token_fails(dfud: Dfud, tmp_path: Path) -> None:
    drg = Drg(dfud, tmp_path, login=False)
    drg("login", dfud.registry, "--access-token", f"mallory:{dfud.token}", code=None)


def test_version(drg: Drg) -> None:
    assert "Connected drogue-cloud service: v0.11.0" in drg("version")
    assert json.loads(drg("version", "-o", "json"))["connected_cloud"] == "0.11.0"


def test_whoami_and_its_endpoints(dfud: Dfud, drg: Drg) -> None:
    assert dfud.registry.removeprefix("http://") in drg("whoami")
    assert dfud.registry in drg("whoami", "endpoints")


def test_create_and_get_an_app(dfud: Dfud, drg: Drg) -> None:
    assert "Application created" in drg("create", "app", "made", "--spec", '{"x":{"y":1}}')
    assert "made" in drg("get", "apps")
    found = json.loads(drg("get", "app", "made", "-o", "json"))
    assert found["spec"] == {"x": {"y": 1}}
    assert found["metadata"]["generation"] == 1
    # What drg prints went through its strict parser of metadata; what dfud has beside it must be the same.
    assert found["metadata"]["resourceVersion"] == dfud.read("made")["metadata"]["resourceVersion"]
    assert "Conflict" not in drg("get", "app", "made")
    assert "exists" in drg("create", "app", "made", code=None)


def test_create_an_app_and_a_device_from_files(dfud: Dfud, drg: Drg, tmp_path: Path) -> None:
    (tmp_path / "app.json").write_text('{"metadata":{"name":"filed","labels":{"k":"v"}},"spec":{"n":1}}')
    drg("create", "app", "-f", "app.json")
    device = {"metadata": {"name": "d", "application": "filed", "annotations": {"note": "x"}}, "spec": {}}
    (tmp_path / "device.json").write_text(json.dumps(device))
    drg("create", "device", "--app", "filed", "-f", "device.json")
    assert dfud.read("filed")["metadata"]["labels"] == {"k": "v"}
    assert dfud.read("filed", "d")["metadata"]["annotations"] == {"note": "x"}


@pytest.mark.parametrize("name", ["plain", "with space", "sla/sh", "per%cent", "ümläut", "a+b@c"])
def test_create_get_and_delete_a_device_of_any_name(dfud: Dfud, drg: Drg, app: str, name: str) -> None:
    assert "Device created" in drg("create", "device", name, "--app", app, "--spec", SPEC)
    assert name in drg("get", "devices", "--app", app)
    found = json.loads(drg("get", "device", name, "--app", app, "-o", "json"))
    assert (found["metadata"]["name"], found["metadata"]["application"]) == (name, app)
    assert "Device deleted" in drg("delete", "device", name, "--app", app)
    assert "was not found" in drg("get", "device", name, "--app", app, code=None)


def test_create_a_device_with_a_certificates_alias(dfud: Dfud, drg: Drg, app: str) -> None:
    drg("create", "device", "x509", "--app", app, "--cert", "--spec", '{"alias":[]}')
    assert dfud.read(app, "x509")["spec"]["alias"] == [f"CN=x509, O=Drogue IoT, OU={app}"]


def test_what_is_not_there_or_not_right_reads_as_drgs_own_errors(dfud: Dfud, drg: Drg, app: str) -> None:
    for arguments, text in (
        (("get", "app", "none"), "The application or device was not found"),
        (("get", "devices", "--app", "none"), "The application or device was not found"),
        (("get", "device", "none", "--app", app), "The application or device was not found"),
        (("delete", "app", "none"), "The application or device was not found"),
        (("delete", "device", "none", "--app", app), "The application or device was not found"),
        (("set", "alias", "none", "x", "--app", app), "The application or device was not found"),
        (("create", "device", "d", "--app", "none"), "Referenced a non-existing entity"),
        (("create", "device", "dev1", "--app", app), "Error from drogue cloud"),
        (("create", "app", "Not A Name"), "expected a lower-case host name"),
        (("command", "none", "c", "--app", app, "-p", "{}"), "no device none"),
    ):
        assert text in drg(*arguments, code=None), arguments
    found = json.loads(drg("create", "app", app, "-o", "json", code=None))
    assert (found["status"], found["http_status"]) == ("failure", 409)


def test_a_token_that_may_read_only_is_refused_with_drgs_own_words(dfud: Dfud, app: str, tmp_path: Path) -> None:
    made = dfud.user.post("/api/tokens/v1alpha1", json={"user": "bob", "roles": {app: "reader"}}).json()["token"]
    drg = Drg(dfud, tmp_path, login=False)
    drg("login", dfud.registry, "--access-token", f"bob:{made}")
    assert "dev1" in drg("get", "devices", "--app", app)
    assert drg("get", "apps").count("\n") == 2, "a heading and the one app that bob may see"
    for arguments in (
        ("create", "device", "d", "--app", app),
        ("label", "device", "dev1", "--app", app, "a=b"),
        ("delete", "device", "dev1", "--app", app),
        ("command", "dev1", "c", "--app", app, "-p", "{}"),
    ):
        assert "this needs the role manager" in drg(*arguments, code=None), arguments
    assert "this needs the role admin" in drg("delete", "app", app, code=None)


def script(directory: Path, expression: str) -> str:
    """Return an editor that does what `expression` says to sed. It writes in place: drg holds the file open."""
    path = directory / "editor"
    path.write_text(f"#!/bin/sh\nnew=$(sed '{expression}' \"$1\") && echo \"$new\" > \"$1\"\n")
    path.chmod(0o755)
    return str(path)


def test_edit_an_app_and_a_device_in_an_editor(dfud: Dfud, drg: Drg, tmp_path: Path) -> None:
    drg("create", "app", "edited", "--spec", '{"colour":"red"}')
    drg("create", "device", "d", "--app", "edited", "--spec", '{"colour":"red"}')
    editor = script(tmp_path, "s/colour: red/colour: blue/")
    before = dfud.read("edited", "d")["metadata"]
    assert "pplication updated" in drg("edit", "app", "edited", editor=editor)
    assert "evice updated" in drg("edit", "device", "d", "--app", "edited", editor=editor)
    after = dfud.read("edited", "d")
    assert dfud.read("edited")["spec"] == after["spec"] == {"colour": "blue"}
    assert after["metadata"]["generation"] == before["generation"] + 1
    assert after["metadata"]["resourceVersion"] != before["resourceVersion"]
    assert after["metadata"]["uid"] == before["uid"]
    assert "No changes made" in drg("edit", "device", "d", "--app", "edited", editor="true", code=None)


def test_edit_is_refused_if_somebody_else_was_faster(dfud: Dfud, drg: Drg, app: str, tmp_path: Path) -> None:
    stale = tmp_path / "stale.json"
    stale.write_text(json.dumps({**dfud.read(app, "dev1"), "spec": {"mine": True}}))
    drg("label", "device", "dev1", "--app", app, "by=another")
    assert "has changed since it was read" in drg("edit", "device", "--app", app, "-f", "stale.json", code=None)
    assert "mine" not in dfud.read(app, "dev1")["spec"]
    drg("edit", "device", "--app", app, "-f", str(fresh(dfud, app, tmp_path)))
    assert dfud.read(app, "dev1")["spec"] == {"mine": True}


def fresh(dfud: Dfud, app: str, directory: Path) -> Path:
    path = directory / "fresh.json"
    path.write_text(json.dumps({**dfud.read(app, "dev1"), "spec": {"mine": True}}))
    return path


def test_edit_with_a_firmware_that_cannot_be_is_refused_with_the_reason(dfud: Dfud, drg: Drg, app: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    device = dfud.read(app, "dev1")
    device["spec"]["firmware"] = {"version": 7}
    path.write_text(json.dumps(device))
    assert "spec.firmware.version" in drg("edit", "device", "--app", app, "-f", "d.json", code=None)


def test_label_and_select(dfud: Dfud, drg: Drg, app: str) -> None:
    drg("label", "device", "dev1", "--app", app, "zone=eu", "tier=gold")
    drg("label", "device", "dev2", "--app", app, "zone=us")
    drg("label", "app", app, f"team={app}")
    assert app in drg("get", "apps", "-l", f"team={app}")
    assert app not in drg("get", "apps", "-l", "team=none")
    for selector, names in (
        ("zone=eu", {"dev1"}), ("zone!=eu", {"dev2"}), ("zone in (eu,us)", {"dev1", "dev2"}),
        ("zone notin (eu)", {"dev2"}), ("tier", {"dev1"}), ("!tier", {"dev2"}), ("zone=eu,tier=gold", {"dev1"}),
    ):  # fmt: skip
        found = json.loads(drg("get", "devices", "--app", app, "-l", selector, "-o", "json"))
        assert {d["metadata"]["name"] for d in found} == names, selector
    assert dfud.read(app, "dev1")["metadata"]["generation"] == 1, "labels are no spec"


def test_apply_a_file_a_directory_and_a_conflict(dfud: Dfud, drg: Drg, tmp_path: Path) -> None:
    one = tmp_path / "app.json"
    one.write_text('{"metadata":{"name":"applied"},"spec":{"n":1}}')
    assert "Success creating app applied" in drg("apply", "-f", "app.json")
    many = tmp_path / "many"
    many.mkdir()
    for name in ("d1", "d2"):
        body: dict[str, Any] = {"metadata": {"name": name, "application": "applied"}, "spec": {"n": 1}}
        (many / f"{name}.json").write_text(json.dumps(body))
    text = drg("apply", "-f", "many")
    assert "Success creating device d1" in text
    assert "Success creating device d2" in text
    (many / "d1.json").write_text(json.dumps({"metadata": {"name": "d1", "application": "applied"}, "spec": {"n": 2}}))
    assert "Success updating device d1" in drg("apply", "-f", "many")
    found = dfud.read("applied", "d1")
    assert found["spec"] == {"n": 2}
    old = {**found, "spec": {"n": 3}}
    old["metadata"] = {**found["metadata"], "resourceVersion": "another"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert "has changed since it was read" in drg("apply", "-f", "old.json")
    assert dfud.read("applied", "d1")["spec"] == {"n": 2}
    assert "Success updating device d1" in drg("apply", "--ignore-conflict", "-f", "old.json")
    assert dfud.read("applied", "d1")["spec"] == {"n": 3}
    # Of YAML drg reads the same.
    (tmp_path / "app.yml").write_text("metadata:\n  name: applied\nspec:\n  n: 4\n")
    drg("apply", "-f", "app.yml")
    assert dfud.read("applied")["spec"] == {"n": 4}


def test_set_password_also_for_a_user(dfud: Dfud, drg: Drg, app: str) -> None:
    drg("set", "password", "dev1", "new", "--app", app)
    assert publish(dfud, f"dev1@{app}", "new") == 202
    drg("set", "password", "dev2", "theirs", "--username", "carol", "--app", app)
    assert publish(dfud, f"carol@{app}", "theirs", "/v1/t?device=dev2") == 202
    assert publish(dfud, "carol", "theirs", f"/v1/t?application={app}&device=dev2") == 202
    assert publish(dfud, f"carol@{app}", "wrong", "/v1/t?device=dev2") == 403
    assert "theirs" not in drg("get", "device", "dev2", "--app", app, "-o", "json")


def test_set_alias(dfud: Dfud, drg: Drg, app: str) -> None:
    drg("set", "alias", "dev1", "other", "--app", app)
    assert publish(dfud, f"other@{app}", "hey") == 202
    taken = "is the name or an alias of device dev1"
    assert taken in drg("create", "device", "other", "--app", app, code=None)
    assert taken in drg("set", "alias", "dev2", "other", "--app", app, code=None)
    assert taken in drg("set", "alias", "dev2", "dev1", "--app", app, code=None)
    drg("set", "alias", "dev1", "more", "--app", app)
    assert dfud.read(app, "dev1")["spec"]["alias"] == ["other", "more"]


def test_set_gateway_lets_a_device_speak_for_another(dfud: Dfud, drg: Drg, app: str) -> None:
    assert publish(dfud, f"dev2@{app}", "hey", "/v1/t?as=dev1") == 403
    drg("set", "gateway", "dev1", "dev2", "--app", app)
    assert dfud.read(app, "dev1")["spec"]["gatewaySelector"] == {"matchNames": ["dev2"]}
    assert publish(dfud, f"dev2@{app}", "hey", "/v1/t?as=dev1") == 202


def test_set_psk_is_kept_beside_the_other_credentials(dfud: Dfud, drg: Drg, app: str) -> None:
    drg("set", "psk", "dev1", "0123456789abcdef", "--app", app)
    held = dfud.read(app, "dev1")["spec"]["authentication"]["credentials"]
    assert any("psk" in credential for credential in held)
    assert publish(dfud, f"dev1@{app}", "hey") == 202


def test_tokens_are_made_shown_used_and_deleted(dfud: Dfud, drg: Drg, tmp_path: Path) -> None:
    text = drg("create", "token", "--description", "for the test")
    token = next(word for word in text.split() if word.startswith("drg_"))
    prefix = token[:10]
    assert any(prefix in line and "for the test" in line for line in drg("get", "tokens").splitlines())
    other = tmp_path / "other"
    other.mkdir()
    second = Drg(dfud, other, login=False)
    second("login", dfud.registry, "--access-token", f"admin:{token}")
    second("get", "apps")
    drg("delete", "token", prefix)
    assert prefix not in drg("get", "tokens")
    assert "Authentication failed" in second("get", "apps", code=None)


def test_command_with_a_payload_reaches_a_waiting_device(dfud: Dfud, drg: Drg, app: str, tmp_path: Path) -> None:
    answers: list[httpx.Response] = []

    def wait() -> None:
        url = f"{dfud.http}/v1/state?ct=120"
        answers.append(httpx.post(url, content=b"{}", auth=(f"dev1@{app}", "hey"), timeout=150))

    device = threading.Thread(target=wait)
    device.start()
    assert "Command accepted" in drg("command", "dev1", "blink", "--app", app, "-p", '{"times": 3}')
    device.join()
    (answer,) = answers
    assert (answer.status_code, answer.headers["command"]) == (200, "blink")
    assert json.loads(answer.content) == {"times": 3}
    (tmp_path / "payload.json").write_text('[1, "two"]')
    drg("command", "dev1", "list", "--app", app, "-f", "payload.json")
    kept = httpx.post(f"{dfud.http}/v1/state", content=b"{}", auth=(f"dev1@{app}", "hey"), timeout=60)
    assert (kept.status_code, kept.headers["command"], kept.json()) == (200, "list", [1, "two"])


def test_get_wide_shows_firmware_before_during_and_after_an_update(dfud: Dfud, drg: Drg, app: str) -> None:
    image = random.Random(1).randbytes(2000)

    def row() -> list[str]:
        lines = drg("get", "devices", "--app", app, "-o", "wide").splitlines()
        (found,) = [line.split() for line in lines if line.startswith("dev1 ")]
        return found[2:]

    # drg knows yes and no alone: dfud's "Unknown" reads so.
    assert row() == ["NotInSync"]
    with AjourDevice(dfud.http, f"dev1@{app}", "hey", "1.0") as device:
        device.ask()
        assert row() == ["NotInSync", "1.0"]
        dfud.publish(app, "2.0", image)
        dfud.want(app, "dev1", {"version": "2.0"})
        assert row() == ["NotInSync", "1.0", "2.0"]
        device.ask()
        device.ask({0: b"2.0", 1: 500})
        assert row() == ["Updating", "(25.0)", "1.0", "2.0"]
        device.update()
        assert device.flash == image
        assert row() == ["Updating", "(100.0)", "1.0", "2.0"]
        device.version = "2.0"
        device.ask()
        assert row() == ["InSync", "2.0", "2.0"]


def test_app_cert_puts_a_trust_anchor_into_the_app(dfud: Dfud, drg: Drg, app: str, tmp_path: Path) -> None:
    drg("create", "app-cert", "--app", app, "--key-output", "ca.key")
    (anchor,) = dfud.read(app)["spec"]["trustAnchors"]["anchors"]
    assert base64.b64decode(anchor["certificate"]).startswith(b"-----BEGIN CERTIFICATE")
    assert "PRIVATE KEY" in (tmp_path / "ca.key").read_text()


def test_delete_waits_for_finalizers(dfud: Dfud, drg: Drg, app: str, tmp_path: Path) -> None:
    device: dict[str, Any] = {"metadata": {"name": "held", "application": app, "finalizers": ["f"]}, "spec": {}}
    (tmp_path / "held.json").write_text(json.dumps(device))
    drg("apply", "-f", "held.json")
    assert "Device deleted" in drg("delete", "device", "held", "--app", app)
    found = json.loads(drg("get", "device", "held", "--app", app, "-o", "json"))
    assert found["metadata"]["deletionTimestamp"]
    assert "was not found" in drg("delete", "device", "held", "--app", app, code=None)
    found["metadata"]["finalizers"] = []
    (tmp_path / "held.json").write_text(json.dumps(found))
    assert "Success updating device held" in drg("apply", "-f", "held.json")
    assert "was not found" in drg("get", "device", "held", "--app", app, code=None)


def test_a_command_that_nobody_takes_reads_as_dfuds_error(drg: Drg, app: str) -> None:
    for _ in range(8):
        drg("command", "dev1", "c", "--app", app, "-p", "{}")
    text = drg("command", "dev1", "c", "--app", app, "-p", "{}", code=None)
    assert "the device is not waiting, and the command is not kept" in text


def test_delete_an_app_with_its_devices(dfud: Dfud, drg: Drg, app: str) -> None:
    assert "pplication deleted" in drg("delete", "app", app)
    assert "was not found" in drg("get", "app", app, code=None)
    assert "was not found" in drg("get", "devices", "--app", app, code=None)
    assert "ignoring" in drg("delete", "--ignore-missing", "app", app)


@pytest.mark.parametrize("arguments", [("get", "members"), ("transfer", "init", "bob")])
def test_what_dfud_does_not_have_ends_with_an_error(drg: Drg, app: str, arguments: tuple[str, ...]) -> None:
    drg(*arguments, "--app", app, code=None)


def test_stream_ends_with_an_error(drg: Drg, app: str) -> None:
    drg("stream", "--app", app, code=None)
