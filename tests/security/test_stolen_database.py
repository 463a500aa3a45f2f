"""The attacker has a copy of the store: every record and image, but not the key file. The real daemon made it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import trio

from dfud.model.credentials import verify
from dfud.testing.daemon import DaemonProcess
from dfud.wire.enrol import Enrolment, encode_enrolment

APPS = "/api/registry/v1alpha1/apps"
OWN_PSK = b"sixteen bytes!!!"
OWN = "a secret that the device made"


async def used(daemon: DaemonProcess, nursery: trio.Nursery) -> dict[str, str]:
    """Use everything that is secret; return it by what it is."""
    await daemon.init()
    await nursery.start(daemon.run)
    secrets = {"admin token": daemon.token}
    async with daemon.client() as admin:

        async def post(path: str, **options: Any) -> Any:
            answer = await admin.post(path, **options)
            assert answer.is_success, answer.text
            return answer.json() if answer.content else None

        body = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "optional"}}}
        await post(APPS, json=body)
        spec = {"authentication": {"credentials": [{"pass": "a password of the user's choice"}]}}
        await post(f"{APPS}/a/devices", json={"metadata": {"name": "d"}, "spec": spec})
        secrets["chosen password"] = "a password of the user's choice"
        secrets["device secret"] = (await post("/api/dfu/v1/apps/a/secret/d"))["secret"]
        secrets["pre-shared key"] = (await post("/api/dfu/v1/apps/a/psk/d"))["psk"]
        own = {"authentication": {"credentials": [{"psk": {"key": base64.b64encode(OWN_PSK).decode()}}]}}
        await post(f"{APPS}/a/devices", json={"metadata": {"name": "p"}, "spec": own})
        secrets["chosen key"] = OWN_PSK.decode()
        for name in ("d", "p"):
            shown = (await admin.get(f"{APPS}/a/devices/{name}")).text
            for secret in secrets.values():
                assert not any(form.decode("latin-1") in shown for form in forms(secret)), "nothing is shown a second time"
        secrets["claim code"] = (await post("/api/dfu/v1/apps/a/claims", json={"uses": 2}))["code"]
        secrets["reader token"] = (await post("/api/tokens/v1alpha1", json={"roles": {"a": "reader"}}))["token"]
        async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as device:
            message = encode_enrolment(Enrolment("a", "e", secrets["claim code"], OWN))
            assert (await device.post("/v1/enrol", content=message)).status_code == 200
        secrets["enrolled secret"] = OWN
    return secrets


def forms(secret: str) -> list[bytes]:
    """Return the forms in which a secret could lie around."""
    raw = secret.encode()
    if len(secret) == 32 and all(c in "0123456789abcdef" for c in secret):  # a key, shown as hexadecimal
        key = bytes.fromhex(secret)
        return [raw, key, base64.b64encode(key)]
    return [raw, base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"="), raw.hex().encode()]


async def test_no_secret_stands_in_the_store(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    secrets = await used(daemon, nursery)
    files = [p for p in (tmp_path / "dfud" / "state").rglob("*") if p.is_file()]
    held = b"".join(p.read_bytes() for p in files)
    assert b"credentials" in held and len(held) > 10_000, "the store was not where it was looked for"
    for what, secret in secrets.items():
        for form in forms(secret):
            assert form not in held, f"the {what} stands in the store"
    logged = json.dumps(daemon.lines)
    for what, secret in secrets.items():
        for form in forms(secret):
            assert form.decode("latin-1") not in logged, f"the {what} is in the log"
    nursery.cancel_scope.cancel()


async def test_guesses_cannot_be_tried_without_the_key_file(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    secrets = await used(daemon, nursery)
    async with daemon.client() as admin:
        spec = (await admin.get(f"{APPS}/a/devices/d")).json()["spec"]
    key = (tmp_path / "dfud" / "credential.key").read_bytes()
    assert verify(spec, None, secrets["device secret"], key)
    for wrong in (bytes(32), key[::-1], b""):
        assert not verify(spec, None, secrets["device secret"], wrong), "even the right guess is not confirmed"
    mode = (tmp_path / "dfud" / "credential.key").stat().st_mode
    assert mode & 0o077 == 0, "nobody else reads the key file"
    nursery.cancel_scope.cancel()


async def test_records_can_be_read_and_are_no_secret(nursery: trio.Nursery, tmp_path: Path) -> None:
    """What he can do: read names, states, history and images."""
    daemon = DaemonProcess(tmp_path / "dfud")
    await used(daemon, nursery)
    async with daemon.client() as admin:
        parameters = {"version": "1.0", "hardware": "x", "kind": "raw"}
        assert (await admin.post("/api/dfu/v1/apps/a/firmware", params=parameters, content=b"an image")).is_success
    held = [p.read_bytes() for p in (tmp_path / "dfud" / "state").rglob("*") if p.is_file()]
    assert b"an image" in held
    nursery.cancel_scope.cancel()
