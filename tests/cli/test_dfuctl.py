"""dfuctl as a user runs it, against the real daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from devicefw.sim.firmware import build
from dfud.testing.daemon import DaemonProcess
from dfud.wire.manifest import decode_envelope_untrusted


class Dfuctl:
    """Runs dfuctl without a terminal. `daemon` is the one that it is logged in to, if the fixture made it; `ended` says so of it."""

    daemon: DaemonProcess
    ended: trio.Event

    def __init__(self, directory: Path) -> None:
        self.config = directory / "config.toml"

    async def __call__(self, *arguments: str, fails: bool = False, code: int | None = None, given: str = "") -> str:
        """Return what it prints; with what it says on standard error if it fails: with exit code 1, or with `code`."""
        command = [sys.executable, "-m", "dfud.cli", "--config", str(self.config), *arguments]
        run = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, stdin=given.encode(), start_new_session=True
        )
        expected = code if code is not None else int(fails)
        told = run.stdout.decode() + (run.stderr.decode() if expected else "")
        assert run.returncode == expected, f"{arguments}: {run.returncode} {told} {run.stderr.decode()}"
        assert "Traceback" not in run.stderr.decode()
        if {"device", "claim", "token"} & {*arguments} and {"create", "secret", "psk"} & {*arguments}:
            for daemon in DaemonProcess.started:  # what was shown once is searched for in the logs afterwards
                daemon.secrets.add(told.strip())
        return told.strip()


@pytest.fixture
async def dfuctl(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Dfuctl]:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    command = Dfuctl(tmp_path)
    command.daemon, command.ended = daemon, trio.Event()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await daemon.run(task_status=task_status)
        command.ended.set()

    await nursery.start(run)
    assert await command("login", daemon.urls["registry"], "--token", daemon.token) == (
        f"Logged in to {daemon.urls['registry']} as admin."
    )
    yield command
    nursery.cancel_scope.cancel()


async def test_the_way_that_help_teaches(dfuctl: Dfuctl, tmp_path: Path) -> None:
    assert dfuctl.config.stat().st_mode & 0o777 == 0o600
    await dfuctl("app", "create", "lamps", "--unsigned", "-l", "team=a")
    await dfuctl("context", "--app", "lamps")
    assert len(await dfuctl("device", "create", "lamp1", "-l", "site=attic")) == 22
    await dfuctl("device", "create", "lamp2", "-l", "site=cellar")
    image = build("print(1)\n", "1.1")
    (tmp_path / "lamp.bin").write_bytes(image)
    told = await dfuctl(
        *("-o", "json", "firmware", "publish", str(tmp_path / "lamp.bin"), "--version", "1.0", "--hardware", "esp32c3")
    )
    assert json.loads(told)["version"] == "1.0", "one JSON value and nothing else"
    published = await dfuctl("firmware", "publish", str(tmp_path / "lamp.bin"), "--version", "1.1", "--hardware", "esp32c3")
    assert f"Published 1.1 for esp32c3, {len(image)} bytes, sequence 2." in published
    assert await dfuctl("update", "lamp1", "1.1") == "lamp1 should run 1.1."
    assert await dfuctl("update", "-l", "site=cellar", "1.1") == (
        "1 device should run 1.1: 1 changed, 0 unchanged."
    )
    assert "should run 1.1" in await dfuctl("update", "--app-default", "1.1")
    assert await dfuctl("status", "lamp1") == "lamp1: ? -> 1.1: never seen"
    listed = json.loads(await dfuctl("-o", "json", "device", "list", "-l", "site=attic"))
    assert [d["metadata"]["name"] for d in listed] == ["lamp1"]
    assert "lamp2" in await dfuctl("device", "list")
    await dfuctl("firmware", "download", "1.1", "-O", str(tmp_path / "copy.bin"))
    assert (tmp_path / "copy.bin").read_bytes() == image
    await dfuctl("follow", "lamp1")
    assert "firmware" not in json.loads(await dfuctl("device", "show", "lamp1"))["spec"]
    found = json.loads(await dfuctl("-o", "json", "follow", "-l", "site=cellar"))
    assert (found["state"], found["changed"], found["firmware"]) == ("done", 1, None)
    told = await dfuctl("job", "list")
    assert "site=cellar  (none of their own)" in told
    assert "1 asked for " in await dfuctl("job", "show", found["job"], "--watch")
    assert "is done already" in await dfuctl("job", "cancel", found["job"], fails=True)
    assert "name a device, or give -l" in await dfuctl("follow", fails=True)
    assert "is no registry of dfud" in await dfuctl("login", dfuctl.daemon.urls["http"], "--token", "x", fails=True)
    url = dfuctl.daemon.urls["registry"]
    told = await dfuctl("login", url, "--token", "x", fails=True)
    assert "does not accept this token. `dfud init` shows the first one" in told and "run `dfuctl login" not in told
    assert "Does it speak TLS? If not: http://" in await dfuctl("login", url.replace("http", "https"), "--token", "x", fails=True)
    assert "wanted by app lamps" in await dfuctl("firmware", "delete", "--yes", "1.1", fails=True)
    await dfuctl("login", url, "--token", dfuctl.daemon.token)  # another token for the same registry: the app stays
    await dfuctl("command", "lamp1", "blink", "-p", "{}")
    await dfuctl("device", "label", "lamp1", "site=roof", "ring=1")
    assert "ring=1,site=roof" in await dfuctl("device", "list")
    assert json.loads(await dfuctl("-o", "json", "history", "lamp1")) == []
    token = await dfuctl("token", "create", "--user", "ci", "--role", "lamps=reader")
    assert token.startswith("drg_")
    assert "roles: no app lamsp; create it first" in await dfuctl("token", "create", "--role", "lamsp=reader", fails=True)
    assert "0 is not in the range 1<=x<=3650" in await dfuctl("token", "create", "--days", "0", code=2)
    async with dfuctl.daemon.client() as client:
        answer = await client.post("/api/tokens/v1alpha1", json={"days": 0})
        assert (answer.status_code, answer.json()["message"]) == (400, "days 0: expected 1 to 3650")
    assert "lamps=reader" in await dfuctl("token", "list", "--all")
    assert "create-token" in await dfuctl("audit")
    await dfuctl("retry", "lamp1")
    await dfuctl("cancel", "lamp1")
    for arguments in (
        ("device", "label", "lamp2", "a=b"),
        ("device", "delete", "lamp2", "--yes"),
        ("retry", "lamp1"),
        ("command", "lamp1", "x"),
        ("update", "lamp1", "1.1"),
        ("firmware", "list"),
        ("firmware", "show", "1.1"),
        ("status", "lamp1"),
        ("token", "list"),
        ("audit",),
        ("app", "list"),
        ("device", "create", "lamp3"),
    ):
        json.loads(await dfuctl("-o", "json", *arguments))
    assert json.loads(await dfuctl("-o", "json", "context"))[0]["app"] == "lamps"


async def test_what_is_answered_is_so(dfuctl: Dfuctl) -> None:
    """Cancelling nothing said "Accepted", and an app that waits for its finalizers was "deleted"."""
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    await dfuctl("device", "create", "lamp1")
    for what in ("cancel", "retry"):
        told = await dfuctl("-o", "json", what, "lamp1", fails=True)
        assert f"no firmware is wanted of device lamp1: there is nothing to {'try again' if what == 'retry' else what}" in told
    assert "cancel" not in await dfuctl("audit", "--what", "cancel")
    found = json.loads(await dfuctl("device", "show", "lamp1"))
    found["metadata"]["finalizers"] = ["inventory"]
    async with dfuctl.daemon.client() as user:
        path = "/api/registry/v1alpha1/apps/lamps/devices/lamp1"
        (await user.put(path, json=found)).raise_for_status()
        told = json.loads(await dfuctl("-o", "json", "device", "delete", "--yes", "lamp1"))
        assert told == {"device": "lamp1", "deleted": False, "finalizers": ["inventory"]}
        left = json.loads(await dfuctl("device", "show", "lamp1"))
        assert left["metadata"]["deletionTimestamp"]
        left["metadata"]["finalizers"] = []
        (await user.put(path, json=left)).raise_for_status()
    assert "no device lamp1" in await dfuctl("device", "delete", "--yes", "lamp1", fails=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("device", "list"), "dfuctl: which app? give --app"),
        (("--app", "nothing", "device", "list"), "dfuctl: no such app, or one that this token may not see"),
        (("--app", "nothing", "status", "x"), "dfuctl: no app nothing"),
        (("app", "create", "Not A Host"), "dfuctl: app name 'Not A Host'"),
        (("app", "list", "-l", "(("), "dfuctl: label selector: cannot read"),
        (("--app", "x", "update", "1.0"), "dfuctl: name a device, or give -l SELECTOR"),
        (("--context", "other", "app", "list"), "dfuctl: no context other"),
        (("login", "http://127.0.0.1:1", "--token", "x"), "dfuctl: http://127.0.0.1:1 cannot be reached"),
        (("login", "http://127.0.0.1:1"), "dfuctl: no token on standard input"),
        (("login", "127.0.0.1:1", "--token", "x"), "dfuctl: URL 127.0.0.1:1: expected http:// or https:// before the host"),
        (("--app", "x", "firmware", "publish", __file__), "dfuctl: give --version and --hardware"),
        (("app", "create", "a", "-l", "x"), "dfuctl: label 'x': expected KEY=VALUE"),
    ],
)
async def test_a_mistake_is_one_sentence(dfuctl: Dfuctl, arguments: tuple[str, ...], message: str) -> None:
    told = await dfuctl(*arguments, fails=True)
    assert told.startswith(message)
    assert len(told.splitlines()) == 1


async def test_without_a_login_the_way_is_shown(tmp_path: Path) -> None:
    assert "run `dfuctl login URL`" in await Dfuctl(tmp_path)("app", "list", fails=True)


async def test_signing_asks_no_registry(tmp_path: Path) -> None:
    dfuctl, key, image = Dfuctl(tmp_path), str(tmp_path / "key.pem"), tmp_path / "lamp.bin"
    image.write_bytes(build("print(1)\n", "1.1"))
    (tmp_path / "passphrase").write_text("a passphrase of a publisher")
    passphrase = ("--passphrase-file", str(tmp_path / "passphrase"))
    await dfuctl("key", "new", key, *passphrase)
    about = (str(image), "--key", key, *passphrase, "--version", "1.1", "--hardware", "esp32c3", "--sequence", "1")
    assert "which app? give --app" in await dfuctl("sign", *about, fails=True)
    assert "Signed 1.1 for esp32c3" in await dfuctl("sign", *about, "--app", "lamps")
    signed = image.with_name("lamp.bin.manifest").read_bytes()
    assert decode_envelope_untrusted(signed)[1].app == "lamps"
    await dfuctl("--app", "lamps", "sign", *about)
    assert image.with_name("lamp.bin.manifest").read_bytes() == signed


def test_help_teaches() -> None:
    run = subprocess.run([sys.executable, "-m", "dfud.cli", "--help"], capture_output=True, text=True)
    assert "dfuctl firmware publish lamp.bin --version 1.1 --hardware esp32c3" in run.stdout
