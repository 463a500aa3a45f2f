"""The attacker is a publisher himself, or holds a client certificate: another app's devices are none of his."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dfud.testing.daemon import DaemonProcess
from tests.e2e.certificates import Authority

APPS = "/api/registry/v1alpha1/apps"


def anchor(authority: Authority) -> dict[str, Any]:
    pem = ssl.DER_cert_to_PEM_cert(authority.der).encode()
    return {"anchors": [{"certificate": base64.b64encode(pem).decode()}]}


async def test_a_certificate_is_good_for_its_own_device_of_its_own_app(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Over TLS, on the real daemon: who holds lamp1's key is lamp1 of the app whose authority signed, and nobody else."""
    server, ours, theirs = Authority("server"), Authority("ours"), Authority("theirs")
    certificate, key, _ = server.server(tmp_path / "tls")
    cas = tmp_path / "clients.pem"
    cas.write_text("".join(ssl.DER_cert_to_PEM_cert(a.der) for a in (ours, theirs)))
    section = f'certificate = "{certificate}"\nkey = "{key}"\nclient_ca = "{cas}"\n'
    daemon = DaemonProcess(tmp_path / "dfud", extra=section)
    await daemon.init()
    await nursery.start(daemon.run)
    url = daemon.urls["http"].replace("127.0.0.1", "localhost")
    async with daemon.client() as admin:
        for app, authority in (("a", ours), ("b", theirs)):
            body = {"metadata": {"name": app}, "spec": {"trustAnchors": anchor(authority)}}
            assert (await admin.post(APPS, json=body)).status_code == 201
        await admin.post(f"{APPS}/a/devices", json={"metadata": {"name": "lamp1"}})
        await admin.post(f"{APPS}/b/devices", json={"metadata": {"name": "lamp2"}})
        stolen = await admin.put(f"{APPS}/b", json={"metadata": {"name": "b"}, "spec": {"trustAnchors": anchor(ours)}})
        assert stolen.status_code == 409, "b cannot take a's anchor, and a's devices with it"
        kept = await admin.put(f"{APPS}/a", json={"metadata": {"name": "a"}, "spec": {"trustAnchors": anchor(ours), "x": 1}})
        assert kept.status_code == 204

    async def status(authority: Authority, name: str, **query: str) -> int:
        cert, private, _ = authority.server(tmp_path / f"{name}-{id(authority)}", name)
        context = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(server.der))
        context.load_cert_chain(cert, private)
        async with httpx.AsyncClient(base_url=url, verify=context, timeout=60) as device:
            return (await device.post("/v1/temp", params=query, content=b"1")).status_code

    assert await status(ours, "lamp1") == 202
    assert await status(theirs, "lamp2") == 202
    assert await status(ours, "lamp2") == 403
    assert await status(theirs, "lamp1") == 403
    assert await status(ours, "lamp1", **{"as": "lamp2"}) == 403
    with pytest.raises(httpx.TransportError):
        await status(Authority("ours"), "lamp1")  # an authority of the same name, with another key
    nursery.cancel_scope.cancel()
