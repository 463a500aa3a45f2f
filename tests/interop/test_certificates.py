"""Devices and gateways with client certificates over TLS, with certificates as `drg` makes them, and by `drg` itself."""

from __future__ import annotations

import base64
import datetime
import signal
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.support import REGISTRY, Dfud, Drg, running

Key = ec.EllipticCurvePrivateKey


def name_of(common: str, unit: str) -> x509.Name:
    """The order of drg's certificates."""
    oid = x509.NameOID
    parts = ((oid.COMMON_NAME, common), (oid.ORGANIZATION_NAME, "Drogue IoT"), (oid.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])


def certificate(subject: x509.Name, key: Key, issuer: x509.Name, signer: Key, *, days: int = 2) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


def write(directory: Path, name: str, found: x509.Certificate, key: Key) -> None:
    (directory / f"{name}.pem").write_bytes(found.public_bytes(serialization.Encoding.PEM))
    private, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, private, plain))


def self_signed(directory: Path, name: str, subject: x509.Name) -> Key:
    key = ec.generate_private_key(ec.SECP256R1())
    write(directory, name, certificate(subject, key, subject, key), key)
    return key


def device(directory: Path, name: str, anchor: Key, app: str, *, common: str = "", days: int = 2) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = name_of(app, "Cloud")
    write(directory, name, certificate(name_of(common or name, app), key, issuer, anchor, days=days), key)


class Tls:
    """A dfud that speaks TLS to devices and looks at their certificates; `files` has what it and they use."""

    def __init__(self, dfud: Dfud, files: Path) -> None:
        self.dfud = dfud
        self.files = files

    def post(self, name: str, path: str = "/v1/t", auth: tuple[str, str] | None = None) -> httpx.Response:
        """Publish with the certificate <name>.pem; "" without any."""
        context = ssl.create_default_context(cafile=str(self.files / "server.pem"))
        if name:
            context.load_cert_chain(self.files / f"{name}.pem", self.files / f"{name}.key")
        with httpx.Client(verify=context, timeout=60, auth=auth) as client:
            return client.post(self.dfud.http + path, content=b"{}")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    files = tmp_path_factory.mktemp("tls")
    self_signed(files, "server", name_of("localhost", "server"))
    anchor = self_signed(files, "anchor", name_of("app1", "Cloud"))
    stranger = self_signed(files, "stranger-anchor", name_of("app1", "Cloud"))
    device(files, "gate", anchor, "app1")
    device(files, "aliased", anchor, "app1", common="by its subject")
    device(files, "nobody", anchor, "app1")
    device(files, "late", anchor, "app1", common="gate", days=-1)
    device(files, "forged", stranger, "app1", common="gate")
    (files / "ca.pem").write_bytes((files / "anchor.pem").read_bytes())
    extra = f'certificate = "{files}/server.pem"\nkey = "{files}/server.key"\nclient_ca = "{files}/ca.pem"\n'
    with running(tmp_path_factory.mktemp("dfud"), extra + f'[events.log]\npath = "{files}/events.jsonl"\n') as dfud:
        pem = base64.b64encode((files / "anchor.pem").read_bytes()).decode()
        dfud.app("app1", trustAnchors={"anchors": [{"certificate": pem}]})
        dfud.device("app1", "gate", authentication={"credentials": []})
        dfud.device("app1", "other", alias=["CN=by its subject, O=Drogue IoT, OU=app1"])
        dfud.device("app1", "sensor", gatewaySelector={"matchNames": ["gate"]})
        yield Tls(dfud, files)


def test_a_device_is_known_by_its_certificate_alone(tls: Tls) -> None:
    assert tls.post("gate").status_code == 202
    assert tls.post("").status_code == 403
    assert tls.post("nobody").status_code == 403


def test_a_device_is_known_by_the_subject_as_drogue_writes_it(tls: Tls) -> None:
    assert tls.post("aliased", "/v1/subject").status_code == 202
    assert '"subject":"subject"' in (line := (tls.files / "events.jsonl").read_text().splitlines()[-1])
    assert '"device":"other"' in line


@pytest.mark.parametrize("name", ["late", "forged"])
def test_a_certificate_that_is_not_right_is_turned_away_in_the_handshake(tls: Tls, name: str) -> None:
    with pytest.raises(httpx.TransportError):
        tls.post(name)


def test_a_gateway_with_a_certificate_speaks_for_its_devices_and_no_other(tls: Tls) -> None:
    assert tls.post("gate", "/v1/through?as=sensor").status_code == 202
    line = (tls.files / "events.jsonl").read_text().splitlines()[-1]
    assert '"device":"sensor","sender":"gate"' in line
    assert tls.post("gate", "/v1/through?as=other").status_code == 403


def test_credentials_given_beside_a_certificate_count(tls: Tls) -> None:
    assert tls.post("gate", auth=("sensor@app1", "hey")).status_code == 202
    assert tls.post("gate", auth=("sensor@app1", "wrong")).status_code == 403


def test_an_app_that_takes_its_anchor_back_turns_its_devices_away(tls: Tls) -> None:
    before = tls.dfud.read("app1")
    assert tls.post("gate").status_code == 202
    changed = {**before, "spec": {k: v for k, v in before["spec"].items() if k != "trustAnchors"}}
    assert tls.dfud.user.put(f"{REGISTRY}/app1", json=changed).status_code == 204
    try:
        assert tls.post("gate").status_code == 403
    finally:
        again = tls.dfud.read("app1")
        again["spec"] = before["spec"]
        assert tls.dfud.user.put(f"{REGISTRY}/app1", json=again).status_code == 204
    assert tls.post("gate").status_code == 202


@pytest.mark.interop
@pytest.mark.client("drg 0.11.0")
def test_drg_makes_the_app_and_the_device_their_certificates(tls: Tls, tmp_path: Path) -> None:
    drg = Drg(tls.dfud, tmp_path)
    drg("create", "app", "drgs")
    drg("create", "device", "d1", "--app", "drgs")
    drg("create", "app-cert", "--app", "drgs", "--key-output", "ca.key")
    out = ("--key-output", str(tls.files / "d1.key"), "--cert_output", str(tls.files / "d1.pem"))
    drg("create", "device-cert", "d1", "--app", "drgs", "--ca-key", "ca.key", *out)
    assert tls.dfud.read("drgs", "d1")["spec"]["alias"] == ["CN=d1, O=Drogue IoT, OU=drgs"]
    (anchor,) = tls.dfud.read("drgs")["spec"]["trustAnchors"]["anchors"]
    with (tls.files / "ca.pem").open("ab") as file:
        file.write(base64.b64decode(anchor["certificate"]))
    tls.dfud.daemon.signal(signal.SIGHUP)
    for _ in range(600):
        try:
            answer = tls.post("d1")
        except httpx.TransportError:
            continue  # the listener has not read its files again yet
        break
    assert answer.status_code == 202
