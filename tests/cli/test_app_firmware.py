"""App firmware from the command line to a device over real HTTP: published, signed, sent as a delta, tried, left, explained."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dfud.testing.device import HttpDevice
from dfud.wire.manifest import FLAG_APP, decode_envelope_untrusted
from dfud.wire.messages import Kind, Type
from tests.cli.test_dfuctl import Dfuctl, dfuctl

__all__ = ["dfuctl"]
SYSTEMS = {"1.0": b"old system " * 400, "1.1": b"new system " * 400}
APPS = {f"3.{n}": bytes(range(256)) * 40 + f"main.py {n} ".encode() * 30 for n in range(4)}


@pytest.fixture
async def lamps(dfuctl: Dfuctl, tmp_path: Path) -> Dfuctl:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    for version, image in {**SYSTEMS, **APPS}.items():
        (tmp_path / version).write_bytes(image)
    for version in SYSTEMS:
        await dfuctl("firmware", "publish", str(tmp_path / version), "--raw", "--version", version, "--hardware", "esp32c3")
    for version in ("3.0", "3.1"):
        await publish(dfuctl, tmp_path, version)
    return dfuctl


async def publish(lamps: Dfuctl, tmp_path: Path, version: str, *more: str, **how: Any) -> str:
    path = str(tmp_path / version)
    told: str = await lamps(
        "firmware", "publish", path, "--kind", "app", "--version", version, "--hardware", "esp32c3", *more, **how
    )
    return told


@asynccontextmanager
async def device(lamps: Dfuctl, name: str = "lamp1", *, banks: bool = True) -> AsyncIterator[HttpDevice]:
    secret = await lamps("device", "create", name)
    async with httpx.AsyncClient(base_url=lamps.daemon.urls["http"], auth=(f"{name}@lamps", secret), timeout=60) as client:
        board = HttpDevice(client, SYSTEMS["1.0"], "1.0", app=(APPS["3.0"], "3.0") if banks else None)
        board.manifests = {"system": 1, "app": 1} if banks else {"system": 1}
        yield board


async def test_an_app_is_published_sent_as_a_delta_and_shown(lamps: Dfuctl, tmp_path: Path) -> None:
    size = len(APPS["3.2"])
    assert await publish(lamps, tmp_path, "3.2", "--with", "1..4") == (
        f"Published app 3.2 for esp32c3, {size} bytes, sequence 3."
    ), "apps count for themselves"
    assert "app; with 1 to 4" in await lamps("firmware", "list")
    shown = json.loads(await lamps("firmware", "show", "3.2"))
    assert (shown["kind"], shown["with"], shown["sequence"]) == ("app", [1, 4], 3)
    async with device(lamps) as board:
        await board.poll()
        assert await lamps("update", "lamp1", "--app", "3.2") == "lamp1 should run app 3.2."
        spec = json.loads(await lamps("device", "show", "lamp1"))["spec"]
        assert spec["firmware"] == {"app": "3.2"}
        with trio.fail_after(120):
            while (command := await board.poll()) is None or command.type is not Type.UPDATE:
                await trio.sleep(0.05)  # its package is being made
        assert command.kind == Kind.DELTA
        assert command.total_bytes < size // 5, "a delta from the app that runs"
        told = await lamps("status", "lamp1")
        assert told.splitlines()[0] == "lamp1: 1.0, app 3.0 -> 3.2: notified"
        await board.update()
        assert board.app == (APPS["3.2"], "3.2") and board.version == "1.0"
        status = json.loads(await lamps("-o", "json", "status", "lamp1"))
        assert (status["current"], status["target"]) == ("1.0", "")
        assert (status["app"]["current"], status["app"]["target"], status["app"]["inSync"]) == ("3.2", "3.2", {"status": "True"})
        assert status["app"]["actual"]["manifest"] == 3 and status["deployment"]["kind"] == "app"
        row = (await lamps("device", "list")).splitlines()[1]
        assert row.split("  ")[1:3] == ["1.0 app 3.2", "app 3.2"] or "1.0 app 3.2  app 3.2  in sync" in " ".join(row.split("  "))
        assert "APP" in await lamps("fleet") and json.loads(await lamps("-o", "json", "fleet"))["apps"] == {"3.2": 1}
        told = await lamps("explain", "lamp1")
        assert "It runs what it should, app 3.2." in told and "with app 3.2, as it said" in told
        # The system is said beside it, and keeps the app.
        await lamps("update", "lamp1", "1.1")
        spec = json.loads(await lamps("device", "show", "lamp1"))["spec"]
        assert spec["firmware"] == {"version": "1.1", "app": "3.2"}
        await board.update()
        assert (board.version, board.app and board.app[1]) == ("1.1", "3.2")
        assert "in sync" in await lamps("status", "lamp1", "--watch")


async def test_a_bad_app_is_left_and_says_why(lamps: Dfuctl) -> None:
    async with device(lamps) as board:
        await board.poll()
        await lamps("update", "lamp1", "1.1", "--app", "3.1")
        await board.update()
        assert board.version == "1.1"
        await board.update(good=False, text="Traceback (most recent call last):\nOSError: no such sensor")
        assert board.app == (APPS["3.0"], "3.0")
        answer = await board.poll()
        assert answer is not None and answer.type is Type.WAIT
        told = await lamps("status", "lamp1", "--watch", code=3)
        assert "rolled back" in told and "OSError: no such sensor" in told
        assert "3.1 is not sent again" in await lamps("explain", "lamp1")
        assert "no such sensor" in await lamps("fleet")
        drifting = json.loads(await lamps("-o", "json", "drift"))["drifting"]
        assert list(drifting) == ["left"]
        await lamps("retry", "lamp1")
        await board.update()
        assert board.app == (APPS["3.1"], "3.1")


async def test_what_is_asked_for_is_judged_before_it_is_stored(lamps: Dfuctl, tmp_path: Path) -> None:
    await publish(lamps, tmp_path, "3.2", "--with", "7..9")
    await lamps("device", "create", "lamp1")
    for words, arguments in {
        "3.1 is app firmware, it stands in spec.firmware.app": ("update", "lamp1", "3.1"),
        "1.1 is system firmware, it stands in spec.firmware.version": ("update", "lamp1", "--app", "1.1"),
        "no firmware 9 in app lamps": ("update", "lamp1", "--app", "9"),
        "3.2 and 1.1 do not run together: 3.2 takes sequences 7 to 9": ("update", "lamp1", "1.1", "--app", "3.2"),
        "expected system firmware": ("rollout", "create", "r", "3.1"),
        "which firmware?": ("rollout", "create", "r"),
        "do not run together": ("rollout", "create", "r", "1.1", "--app", "3.2"),
        "name a device": ("update", "--app", "3.1"),
    }.items():
        assert words in await lamps(*arguments, fails=True), arguments
    assert "firmware" not in json.loads(await lamps("device", "show", "lamp1"))["spec"]
    assert "exists already as app firmware" in await lamps(
        "firmware", "publish", str(tmp_path / "1.1"), "--raw", "--version", "3.1", "--hardware", "esp32c3", fails=True
    )
    assert "expected LOW..HIGH" in await publish(lamps, tmp_path, "3.3", "--with", "4..1", code=2)
    assert "leave --raw out" in await publish(lamps, tmp_path, "3.3", "--raw", fails=True)
    await lamps("update", "--app-default", "1.0", "--app", "3.0")
    await lamps("update", "--app-default", "--app", "3.1")
    assert json.loads(await lamps("app", "show", "lamps"))["spec"]["firmware"] == {"version": "1.0", "app": "3.1"}
    for version in ("1.0", "3.1"):
        assert "is wanted by app lamps" in await lamps("firmware", "delete", version, "--yes", fails=True)
    await lamps("update", "lamp1", "--app", "3.2")
    assert "is wanted by device lamp1" in await lamps("firmware", "delete", "3.2", "--yes", fails=True)


async def test_a_channel_and_a_group_run_an_app(lamps: Dfuctl) -> None:
    await lamps("channel", "set", "beta", "--app", "3.1")
    assert "app 3.1" in await lamps("channel", "list")
    assert "which firmware?" in await lamps("channel", "set", "beta", fails=True)
    async with device(lamps) as board:
        await board.poll()
        await lamps("device", "label", "lamp1", "channel=beta")
        await board.update()
        assert board.app == (APPS["3.1"], "3.1") and board.version == "1.0"
        told = await lamps("explain", "lamp1")
        assert "It should run app 3.1: rule 1 says so." in told
        assert "should run app 3.0" in await lamps("update", "-l", "channel=beta", "--app", "3.0")
        assert "app 3.0" in await lamps("job", "list")
        await board.update()
        assert board.app == (APPS["3.0"], "3.0")


async def test_an_app_is_signed_and_the_manifest_says_what_it_is(lamps: Dfuctl, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse")
    key = ("--passphrase-file", str(secret))
    public = await lamps("key", "new", str(tmp_path / "key"), *key)
    await lamps("app", "create", "signed", "--key", public.strip())
    sign: tuple[str, ...] = ("sign", str(tmp_path / "3.3"), "--key", str(tmp_path / "key"), *key, "--app", "signed")
    sign += ("--version", "3.3", "--hardware", "esp32c3", "--sequence", "7", "--kind", "app", "--with", "2..")
    await lamps(*sign)
    manifest = decode_envelope_untrusted((tmp_path / "3.3.manifest").read_bytes())[1]
    assert (manifest.flags, manifest.beside) == (FLAG_APP, (2, 4294967295))
    publish = ("--app", "signed", "firmware", "publish", str(tmp_path / "3.3"))
    signed = (*publish, "--manifest", str(tmp_path / "3.3.manifest"))
    assert "with 1..1 was given, the manifest says 2..4294967295" in await lamps(*signed, "--with", "1..1", fails=True)
    assert "takes signed firmware only" in await lamps(
        *publish, "--kind", "app", "--version", "3.3", "--hardware", "esp32c3", fails=True
    )
    await lamps(*signed, "--kind", "app")
    shown = json.loads(await lamps("--app", "signed", "firmware", "show", "3.3"))
    assert (shown["kind"], shown["trust"], shown["with"]) == ("app", "signed", [2, 4294967295])


async def test_a_rollout_brings_both_kinds(lamps: Dfuctl) -> None:
    async with device(lamps) as board, device(lamps, "plain", banks=False) as plain:
        for one in (board, plain):
            await one.poll()
        spec = ("1.1", "--app", "3.1", "--waves", "100", "--soak", "0")
        plan = json.loads(await lamps("-o", "json", "rollout", "plan", *spec))
        assert (plan["firmware"], plan["app"], plan["devices"]["told"]) == ("1.1", "3.1", 1)
        assert {(b["from"], b["to"]) for b in plan["bytes"]["bases"]} == {("1.0", "1.1"), ("3.0", "3.1")}
        assert plan["codes"]["no-banks"]["devices"] == ["plain"]
        await lamps("rollout", "create", "r", *spec)
        assert "1.1 app 3.1" in await lamps("rollout", "list")
        with trio.fail_after(120):
            while (board.version, board.app and board.app[1]) != ("1.1", "3.1"):
                await board.update()
                await trio.sleep(0.05)
        await plain.poll()
        found = json.loads(await lamps("-o", "json", "rollout", "show", "r"))
        wave = found["status"]["waves"][0]
        assert (found["spec"]["firmware"], found["spec"]["app"], wave["done"], wave["failed"]) == ("1.1", "3.1", 1, 1)
        assert plain.version == "1.0", "half of a pair is not for it"
        assert [e["version"] for e in json.loads(await lamps("-o", "json", "history", "lamp1")) if e["event"] == "created"] == [
            "3.1",
            "1.1",
        ]
