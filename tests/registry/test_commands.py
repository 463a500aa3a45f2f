"""A user's command from outside: answered with 202 it is there after `kill -9`, handed on once, and on record once."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import trio

from dfud.testing.daemon import DaemonProcess
from tests.registry.served import APPS, DFU

SEND = "/api/command/v1alpha1/apps/a/devices/d"


async def stop(daemon: DaemonProcess, number: signal.Signals) -> None:
    daemon.signal(number)
    with trio.fail_after(60):
        while daemon.exit_code is None:
            await trio.sleep(0.05)


async def test_a_command_that_was_accepted_outlives_a_kill_and_a_stop(tmp_path: Path, nursery: trio.Nursery) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as user:
        (await user.post(APPS, json={"metadata": {"name": "a"}})).raise_for_status()
        made = {"metadata": {"name": "d", "application": "a"}, "spec": {}}
        (await user.post(f"{APPS}/a/devices", json=made)).raise_for_status()
        secret = (await user.post(f"{DFU}/secret/d")).json()["secret"]
        answer = await user.post(SEND, params={"command": "blink", "expires": "3600"}, content=bytes(range(256)))
        assert answer.status_code == 202
        answer = await user.post(SEND, params={"command": "blink", "expires": "999999"}, content=b"")
        assert answer.status_code == 400 and "604800" in answer.text
    await stop(daemon, signal.SIGKILL)
    await nursery.start(daemon.run)
    async with daemon.client() as user:
        answer = await user.post(SEND, params={"command": "beep", "expires": "3600"}, content=b"2")
        assert answer.status_code == 202
    await stop(daemon, signal.SIGTERM)
    await nursery.start(daemon.run)
    async with daemon.client() as user, httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as device:
        got = [await device.post("/v1/temp", content=b"1", auth=("d@a", secret)) for _ in range(3)]
        assert [(a.status_code, a.headers.get("command", "")) for a in got] == [(200, "blink"), (200, "beep"), (202, "")]
        assert got[0].content == bytes(range(256))
        entries = (await user.get("/api/dfu/v1/audit", params={"what": "command"})).json()
        assert [e["detail"] for e in entries] == ["blink", "beep"]
    await stop(daemon, signal.SIGKILL)
    await nursery.start(daemon.run)
    async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as device:
        assert (await device.post("/v1/temp", content=b"1", auth=("d@a", secret))).status_code == 202
