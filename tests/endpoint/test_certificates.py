"""Certificates that cannot be read, whole or in part: whoever stored or shows one is the only one who notices."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from dfud.api import App, AppChanged, Code, Credentials, Metadata, PeerError, PutApp, Reply
from dfud.endpoint.certificates import issued
from dfud.model.anchors import anchors_of, check_anchors_untrusted
from tests.endpoint.test_endpoint import certificate
from tests.endpoint.world import start_world

KEY = ec.generate_private_key(ec.SECP256R1())
# What is changed in the part that is signed, all of the same length.
DAMAGE = {
    "version 2": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
    "version 6": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"),
    "a name that is no text": (b"\x0c\x06anchor", b"\x0c\x06anch\xff\xff"),
    "a name that is a bit string": (b"\x0c\x06anchor", b"\x03\x06\x00nchor"),
    "an unknown kind of key": (bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0277")),
    "an unknown curve": (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030177")),
    "a date that is none": (b"", b""),
    "nothing": (b"", b""),
}
BROKEN = sorted(DAMAGE.keys() - {"nothing"})


def tagged(tag: int, data: bytes) -> bytes:
    size = bytes([len(data)]) if len(data) < 128 else b"\x82" + len(data).to_bytes(2, "big")
    return bytes([tag]) + size + data


def damaged(kind: str) -> bytes:
    """Return an anchor, right but for one thing, and signed with that."""
    whole = certificate("CN=anchor", "CN=anchor", KEY, KEY)
    der, signed = whole.public_bytes(Encoding.DER), whole.tbs_certificate_bytes
    old, new = DAMAGE[kind]
    if kind == "a date that is none":
        old = signed[signed.index(b"Z\x17\r") - 12 :][:12]
        new = b"99" + old[2:4] + b"99" + old[6:]
    assert old in signed and len(old) == len(new)
    changed = signed.replace(old, new)
    algorithm = der[der.index(signed) + len(signed) :]
    algorithm = algorithm[: 2 + algorithm[1]]
    signature = KEY.sign(changed, ec.ECDSA(hashes.SHA256()))
    return tagged(0x30, changed + algorithm + tagged(3, b"\0" + signature))


def anchors(*ders: bytes) -> dict[str, Any]:
    pems = [b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n" for der in ders]
    return {"trustAnchors": {"anchors": [{"certificate": base64.b64encode(pem).decode()} for pem in pems]}}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_anchor_that_cannot_be_read_is_refused_where_it_is_stored_and_none_elsewhere(kind: str) -> None:
    good = certificate("CN=anchor", "CN=anchor", KEY, KEY).public_bytes(Encoding.DER)
    check_anchors_untrusted(anchors(good))
    with pytest.raises(PeerError, match=r"spec.trustAnchors.anchors\[1\].certificate: no certificate that can be read"):
        check_anchors_untrusted(anchors(good, damaged(kind)))
    assert [a.public_bytes(Encoding.DER) for a in anchors_of(anchors(good, damaged(kind)))] == [good]


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_stored_anchor_that_cannot_be_read_costs_the_devices_of_other_apps_nothing(
    tmp_path: Path, nursery: trio.Nursery, kind: str
) -> None:
    world = await start_world(nursery, tmp_path)
    ours, device = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    good = certificate("CN=ours", "CN=ours", ours, ours).public_bytes(Encoding.DER)
    # As from a backup, or by a dfud whose libraries read more.
    for app, spec in (("app1", anchors(good)), ("app2", anchors(damaged(kind)))):
        await world.store.commit([PutApp(App(Metadata(app), spec))])
        world.bus.publish(AppChanged(app))

    async def code(der: bytes) -> Code:
        found = await world.post(Credentials(certificate=der))
        assert isinstance(found, Reply)
        return found.code

    mine = certificate("CN=dev1,O=x", "CN=ours", device, ours).public_bytes(Encoding.DER)
    assert await code(mine) is Code.ACCEPTED
    assert await code(damaged(kind)) is Code.DENIED
    theirs = certificate("CN=dev1,O=x", "CN=anchor", device, KEY).public_bytes(Encoding.DER)
    assert await code(theirs) is Code.DENIED
    nursery.cancel_scope.cancel()


def test_what_is_damaged_is_right_but_for_that() -> None:
    whole = x509.load_der_x509_certificate(damaged("nothing"))
    assert issued(whole, whole)


def test_a_key_that_nobody_knows_has_issued_nothing() -> None:
    anchor = x509.load_der_x509_certificate(damaged("an unknown curve"))
    assert not issued(anchor, certificate("CN=dev1", "CN=anchor", KEY, KEY))
