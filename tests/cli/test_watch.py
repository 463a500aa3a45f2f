"""`update --watch` and `status --watch` against the real daemon: they end, and the exit code says how."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from devicefw.sim.firmware import build
from dfud.model.text import hidden
from dfud.testing.device import HttpDevice
from tests.cli.test_dfuctl import Dfuctl, dfuctl

__all__ = ["dfuctl"]
TEXT = "Traceback:\n  File \x1b]0;x\x07[/bold]\u202e\nZeroDivisionError"


@pytest.fixture
async def lamps(dfuctl: Dfuctl) -> Dfuctl:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    for version in ("1.1", "1.2"):
        path = dfuctl.config.with_name(f"{version}.bin")
        path.write_bytes(build(f"print({version})\n", version))
        await dfuctl("firmware", "publish", str(path), "--version", version, "--hardware", "esp32c3")
    return dfuctl


@asynccontextmanager
async def device(lamps: Dfuctl, name: str, *labels: str) -> AsyncIterator[HttpDevice]:
    secret = await lamps("device", "create", name, *(word for label in labels for word in ("-l", label)))
    async with httpx.AsyncClient(
        base_url=lamps.daemon.urls["http"], auth=httpx.BasicAuth(f"{name}@lamps", secret), timeout=60
    ) as client:
        yield HttpDevice(client, b"old", "1.0")


async def test_a_group_is_watched_to_its_end(lamps: Dfuctl) -> None:
    async with device(lamps, "lamp1", "site=attic") as lamp1, device(lamps, "lamp2", "site=attic") as lamp2:

        async def updated() -> None:
            await lamp1.update()
            await lamp2.update(good=False, text=TEXT)

        told = await watching(lamps, "update", "-l", "site=attic", "1.1", "--watch", at="lamp2: ?", then=updated, code=3)
    lines = told.splitlines()
    assert lines[0] == "2 devices should run 1.1: 2 changed, 0 unchanged."
    assert "lamp1: 1.1 -> 1.1: in sync" in lines
    assert [line for line in lines if line.startswith("lamp2: rolled back")]
    assert r"  |   File \x1b]0;x\x07[/bold]\u202e" in lines
    assert "  It is not sent again by itself; `dfuctl retry lamp2` lets it try again." in lines
    assert "2 devices: 1 in sync, 1 rolled back." in lines
    assert not [c for c in told if hidden(c) and c != "\n"]
    # It is known from the beginning how that ends; for programs, as one JSON value a line.
    told = await lamps("-o", "json", "update", "-l", "site=attic", "1.1", "--watch", code=3)
    values = [json.loads(line) for line in told.splitlines()]
    assert (values[0]["state"], values[0]["changed"], values[0]["unchanged"]) == ("done", 0, 2)
    assert {v["device"]: v["current"] for v in values[1:-1]} == {"lamp1": "1.1", "lamp2": "1.0"}
    outcomes = values[-1]["outcomes"]
    assert {name: o["outcome"] for name, o in outcomes.items()} == {"lamp1": "in sync", "lamp2": "rolled back"}
    assert "1 in sync, 1 rolled back" in await lamps("status", "-l", "site=attic", "--watch", code=3)


async def test_a_watch_ends_with_the_time_and_with_the_wish(lamps: Dfuctl) -> None:
    async with device(lamps, "lamp1", "site=attic") as lamp1:
        told = await lamps("update", "lamp1", "1.1", "--watch", "--timeout", "1", code=4)
        assert told.splitlines()[:2] == ["lamp1 should run 1.1.", "lamp1: ? -> 1.1: never seen"]
        assert "lamp1: not finished" in told

        async def superseded() -> None:
            await lamps("update", "lamp1", "1.2")

        told = await watching(lamps, "update", "lamp1", "1.1", "--watch", at="never seen", then=superseded, code=3)
        assert "lamp1: superseded: it should run 1.2 now" in told
        await lamps("update", "lamp1", "1.1", "--download-only")
        command = await lamp1.poll()
        assert command is not None and command.version == "1.1"

        async def deleted() -> None:
            await lamps("device", "delete", "lamp1", "--yes")

        told = await watching(lamps, "status", "lamp1", "--watch", at="1.0 -> 1.1", then=deleted, code=3)
        assert "lamp1: deleted" in told


async def test_a_watch_outlives_a_restart(lamps: Dfuctl, nursery: trio.Nursery) -> None:
    async with device(lamps, "lamp1") as lamp1:

        async def restarted() -> None:
            lamps.daemon.signal(signal.SIGTERM)
            await lamps.ended.wait()
            await nursery.start(lamps.daemon.run)
            await lamp1.update()

        told = await watching(lamps, "update", "lamp1", "1.1", "--watch", at="never seen", then=restarted, code=0)
        assert told.splitlines()[-1] == "lamp1: 1.1 -> 1.1: in sync"


async def test_ctrl_c_ends_a_watch_without_a_trace(lamps: Dfuctl) -> None:
    async with device(lamps, "lamp1"):
        process: list[trio.Process] = []

        async def interrupted() -> None:
            process[0].send_signal(signal.SIGINT)

        told = await watching(
            lamps, "update", "lamp1", "1.1", "--watch", at="never seen", then=interrupted, code=130, started=process.append
        )
        assert "Traceback" not in told


async def test_nobody_is_no_success(lamps: Dfuctl) -> None:
    async with device(lamps, "lamp1", "site=attic"):
        for arguments in (("update", "-l", "site=roof", "1.1"), ("follow", "-l", "site=roof"), ("status", "-l", "site=roof")):
            told = await lamps(*arguments, code=5)
            assert told == "dfuctl: no device of app lamps matches 'site=roof'; nothing was done"
        assert json.loads(await lamps("-o", "json", "job", "list")) == []
        assert "leave one of them out" in await lamps("update", "lamp1", "1.1", "--hold", "--watch", fails=True)
        assert "name a device, or give -l" in await lamps("status", fails=True)


async def watching(
    lamps: Dfuctl,
    *arguments: str,
    at: str,
    then: Callable[[], Awaitable[None]],
    code: int,
    started: Callable[[trio.Process], object] = lambda _: None,
) -> str:
    """Run dfuctl, do `then` when it has printed `at`, and return all that it prints until it ends with `code`."""
    command = [sys.executable, "-m", "dfud.cli", "--config", str(lamps.config), *arguments]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started(process)
    assert process.stdout is not None
    told, done = b"", False
    with trio.fail_after(200):
        async with process.stdout:
            while data := await process.stdout.receive_some(65536):
                told += data
                if at.encode() in told and not done:
                    done = True
                    await then()
        assert await process.wait() == code, told.decode()
    return told.decode()
