"""The search for secrets in the logs of the whole test run finds what it looks for: it is tried with a log that leaks."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest
import trio

from dfud.testing.daemon import DaemonProcess
from tests.conftest import leaks


@pytest.mark.parametrize(
    "line",
    [
        "drg_aB3dE6_0123456789abcdefghijABCDEFGHIJabc",
        "dfc_aB3dE6_0123456789abcdefghijAB",
        "a header Authorization: Basic ZGV2MUBhcHAxOnNlY3JldA==",
        "Bearer abcdefghijklmnop",
        "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJldmUifQ.c2lnbmF0dXJl",
        "-----BEGIN PRIVATE KEY-----",
        "in clear: the device's own",
        "as base64: " + base64.b64encode(b"the device's own").decode(),
        "as hexadecimal: " + b"the device's own".hex(),
    ],
)
def test_a_leak_is_found_whatever_it_looks_like(tmp_path: Path, line: str) -> None:
    daemon = DaemonProcess(tmp_path)
    DaemonProcess.started.clear()  # its log is meant to leak
    daemon.secrets = {"the device's own"}
    daemon.lines = [{"event": "harmless", "prefix": "drg_aB3dE6"}]
    assert leaks(daemon) == []
    daemon.lines.append({"event": "x", "extra": line})
    assert leaks(daemon)


async def test_every_secret_that_is_shown_is_looked_for_and_at_debug_level_none_is_logged(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        for path, body in (
            ("/api/registry/v1alpha1/apps", {"metadata": {"name": "a"}}),
            ("/api/registry/v1alpha1/apps/a/devices", {"metadata": {"name": "d"}}),
            ("/api/dfu/v1/apps/a/secret/d", {}),
            ("/api/dfu/v1/apps/a/claims", {}),
            ("/api/tokens/v1alpha1", {}),
        ):
            assert (await admin.post(path, json=body)).is_success
    assert len(daemon.secrets) == 4
    async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as client:
        for secret in daemon.secrets:
            for headers in ({"authorization": f"Bearer {secret}"}, {"authorization": f"Basic {secret}"}):
                await client.post("/v1/dfu", headers=headers, content=secret.encode())
                await client.post("/v1/enrol", headers=headers, content=secret.encode())
                async with httpx.AsyncClient(base_url=daemon.urls["registry"], headers=headers, timeout=60) as user:
                    await user.get(f"/api/dfu/v1/apps/{secret}/firmware")
                    await user.post("/api/registry/v1alpha1/apps", content=secret.encode())
    nursery.cancel_scope.cancel()
    # The log is searched after the test, as every test's is.
