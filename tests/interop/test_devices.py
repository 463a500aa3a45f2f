"""Device-side clients of Drogue's family, as they are published, updated by a real dfud over HTTP."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

import pytest

from tests.interop.support import CLIENT_S, Dfud, tool

pytestmark = pytest.mark.interop
# No multiple of the block, nor of a word: the last block is short.
IMAGE = random.Random(7).randbytes(3 * 256 + 77)
EMBEDDED_UPDATE = pytest.mark.client("embedded-update 0.12.0")
DRGDFU = pytest.mark.client("drgdfu 0.6.0")


def prepare(dfud: Dfud, app: str, image: bytes = IMAGE) -> None:
    dfud.app(app)
    dfud.device(app, "dev1")
    dfud.publish(app, "2.0", image)
    dfud.want(app, "dev1", {"version": "2.0"})


def run_device(dfud: Dfud, app: str, file: Path, form: str, after: str, version: str = "1.0") -> list[str]:
    """Run the program of tests/interop/embedded-update; return what it was told, a line each."""
    host = dfud.http.removeprefix("http://")
    arguments = [host, f"dev1@{app}", "hey", version, str(file), form, after]
    done = subprocess.run([tool("dfud-interop-device"), *arguments], capture_output=True, timeout=CLIENT_S)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode().splitlines()


@EMBEDDED_UPDATE
@pytest.mark.parametrize("form", ["named", "packed"])
def test_embedded_update_writes_the_image_byte_for_byte_and_syncs(dfud: Dfud, tmp_path: Path, form: str) -> None:
    app, flash = f"eu-{form}", tmp_path / "flash"
    prepare(dfud, app)
    told = run_device(dfud, app, flash, form, "boots")
    assert told == ["start 2.0", f"swap 2.0 {hashlib.sha256(IMAGE).hexdigest()}", "synced 2.0", "poll Some(300)"]
    assert flash.read_bytes() == IMAGE
    status = dfud.firmware(app, "dev1")
    assert (status["current"], status["conditions"][0]["status"]) == ("2.0", "True")
    assert status["deployment"]["state"] == "done"
    # Started again, it hears that it is in sync, and nothing else.
    assert run_device(dfud, app, flash, form, "boots", "2.0") == ["synced 2.0", "poll Some(300)"]


@EMBEDDED_UPDATE
def test_embedded_update_that_reverts_is_not_updated_again(dfud: Dfud, tmp_path: Path) -> None:
    prepare(dfud, "eu-reverts")
    told = run_device(dfud, "eu-reverts", tmp_path / "flash", "packed", "reverts")
    assert told[:2] == ["start 2.0", f"swap 2.0 {hashlib.sha256(IMAGE).hexdigest()}"]
    assert told[2:] == ["wait Some(300)"] * 3
    status = dfud.firmware("eu-reverts", "dev1")
    assert (status["deployment"]["state"], status["deployment"]["blocked"]) == ("rolled-back", True)


@DRGDFU
def test_drgdfu_updates_its_simulated_device_from_the_cloud(dfud: Dfud) -> None:
    # It pauses for five seconds after each block of 256.
    image = IMAGE[:300]
    prepare(dfud, "drgdfu-app", image)
    device = ["--application", "drgdfu-app", "--device", "dev1", "--password", "hey"]
    command = [tool("drgdfu"), "upload", "simulated", "--version", "1.0", "cloud", "--http", dfud.http, *device]
    done = subprocess.run(command, capture_output=True, timeout=CLIENT_S)
    assert (done.returncode, done.stdout.decode().splitlines()) == (0, ["Firmware updated"]), done.stderr.decode()
    status = dfud.firmware("drgdfu-app", "dev1")
    assert (status["current"], status["conditions"][0]["status"]) == ("2.0", "True")
    assert [e["state"] for e in history(dfud, "drgdfu-app")] == ["done", "written", "fetching", "notified", "pending"]


def history(dfud: Dfud, app: str) -> list[dict[str, str]]:
    answer = dfud.user.get(f"/api/dfu/v1/apps/{app}/history/dev1")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, str]] = answer.json()
    return found
