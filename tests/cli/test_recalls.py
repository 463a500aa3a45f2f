"""Several images, ways and recalls from the command line, with devices over real HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from dfud.testing.device import HttpDevice
from dfud.wire.messages import Phase, Progress, Type
from tests.cli.test_dfuctl import Dfuctl, dfuctl  # noqa: F401  # a fixture

IMAGES = {"1.0": b"old image " * 300, "1.1": b"mid image " * 300, "1.2": b"new image " * 300}
REV2 = b"for rev 2 " * 300


@pytest.fixture
async def lamps(dfuctl: Dfuctl, tmp_path: Path) -> Dfuctl:  # noqa: F811
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    for version, image in IMAGES.items():
        (tmp_path / version).write_bytes(image)
        await dfuctl("firmware", "publish", str(tmp_path / version), "--raw", "--version", version, "--hardware", "esp32c3")
    (tmp_path / "rev2").write_bytes(REV2)
    return dfuctl


async def test_one_version_has_an_image_for_each_board(lamps: Dfuctl, tmp_path: Path) -> None:
    publish = ("firmware", "publish", str(tmp_path / "rev2"), "--raw", "--version", "1.2", "--hardware", "esp32c3")
    assert "exists already, with another image for esp32c3" in await lamps(*publish, fails=True)
    assert "attribute 'rev'" in await lamps(*publish, "--attribute", "rev", fails=True)
    assert await lamps(*publish, "--attribute", "rev=2") == (
        f"Published 1.2 for esp32c3 with rev=2, {len(REV2)} bytes, sequence 3. It has 1 more image."
    )
    rows = [line.split() for line in (await lamps("firmware", "list")).splitlines()]
    assert [row[:4] for row in rows[1:3]] == [["1.2", "esp32c3", "3", "3000"], ["esp32c3", "with", "rev=2", "3"]]
    shown = json.loads(await lamps("firmware", "show", "1.2"))
    assert [i["attributes"] for i in shown["images"]] == [{}, {"rev": "2"}]
    download = ("firmware", "download", "1.2", "-O", str(tmp_path / "out"))
    assert "has images for esp32c3; esp32c3 with rev=2: say for which" in await lamps(*download, fails=True)
    await lamps(*download, "--hardware", "esp32c3", "--attribute", "rev=2")
    assert (tmp_path / "out").read_bytes() == REV2

    secret = await lamps("device", "create", "d")
    await lamps("update", "d", "1.2")
    async with httpx.AsyncClient(base_url=lamps.daemon.urls["http"], auth=("d@lamps", secret), timeout=60) as client:
        board = HttpDevice(client, IMAGES["1.0"], "1.0")
        board.status = msgspec.structs.replace(board.status, attributes={"rev": "2"})
        await board.update()
        assert (board.version, board.image) == ("1.2", REV2)
    assert "wanted by device d" in await lamps("firmware", "delete", "1.2", "--hardware", "esp32c3", "--yes", fails=True)
    await lamps("follow", "d")
    await lamps("firmware", "delete", "1.2", "--hardware", "esp32c3", "--attribute", "rev=2", "--yes")
    assert "images" not in json.loads(await lamps("firmware", "show", "1.2"))


async def test_a_recalled_version_is_given_to_nobody(lamps: Dfuctl) -> None:
    assert "--reason" in await lamps("firmware", "recall", "1.1", "--yes", code=2)
    await lamps("firmware", "recall", "1.1", "--reason", "it burns", "--yes")
    assert "recalled: it burns" in await lamps("firmware", "list")
    await lamps("device", "create", "d")
    for refused in (("update", "d", "1.1"), ("rollout", "create", "r", "1.1"), ("channel", "set", "beta", "1.1")):
        assert "1.1 is recalled: it burns" in await lamps(*refused, fails=True)
    await lamps("firmware", "unrecall", "1.1")
    assert "is not recalled" in await lamps("firmware", "unrecall", "1.1", fails=True)
    await lamps("update", "d", "1.1")
    told = await lamps("-o", "json", "audit")
    assert [e["what"] for e in json.loads(told) if "recall" in e["what"]] == ["recall", "unrecall"]


async def test_a_device_is_led_over_a_version_that_may_not_be_skipped(lamps: Dfuctl) -> None:
    await lamps("firmware", "ways", "1.1", "--stop")
    await lamps("firmware", "ways", "1.2", "--from", "1.1")
    found = json.loads(await lamps("-o", "json", "firmware", "ways", "1.2", "--stop"))
    assert (found["requires"], found["stop"]) == ({"from": 2, "to": 4294967295}, True)
    assert "requires.from: sequence 3, expected less" in await lamps("firmware", "ways", "1.2", "--from", "#3", fails=True)
    assert "from sequence 2" in await lamps("firmware", "list")
    secret = await lamps("device", "create", "d")
    await lamps("update", "d", "1.2")
    async with httpx.AsyncClient(base_url=lamps.daemon.urls["http"], auth=("d@lamps", secret), timeout=60) as client:
        board = HttpDevice(client, IMAGES["1.0"], "1.0")
        command = await board.poll()
        assert command is not None and command.version == "1.1"
        told = await lamps("explain", "d")
        assert "That is step 1 of 2: 1.1; 1.2 cannot follow directly." in told
        status = json.loads(await lamps("-o", "json", "status", "d"))
        assert status["deployment"]["route"] == {"toward": "1.2", "step": 1, "steps": 2}
        await board.update()
        assert board.version == "1.1"
        await board.update()
        assert board.version == "1.2"


async def test_a_rollout_is_activated_tried_again_and_aborted_with_its_updates(lamps: Dfuctl) -> None:
    secret = await lamps("device", "create", "d")
    async with httpx.AsyncClient(base_url=lamps.daemon.urls["http"], auth=("d@lamps", secret), timeout=60) as client:
        board = HttpDevice(client, IMAGES["1.0"], "1.0")
        await board.poll()
        create = ("rollout", "create", "r", "1.1", "--waves", "100", "--mode", "download-only")
        assert "--soak: it is of the waves" in await lamps("rollout", "create", "r", "1.1", "--soak", "5", fails=True)
        assert "only" in await lamps(*create, "--offer-until", "2036-12-01T00:00:00Z", fails=True)
        await lamps(*create, "--attempts", "2", "--backoff", "60")
        with trio.fail_after(120):
            while (command := await board.poll()) is None or command.type is not Type.UPDATE:
                await trio.sleep(0.1)
        written = Progress(command.package, command.chunks, Phase.WRITTEN)
        answer = await board.poll(progress=written)
        assert answer is not None and (answer.type, answer.reason) == (Type.WAIT, "download only")
        with trio.fail_after(120):
            while json.loads(await lamps("-o", "json", "rollout", "show", "r"))["status"]["state"] != "waiting-for-activation":
                await trio.sleep(0.1)
        assert json.loads(await lamps("-o", "json", "rollout", "show", "r"))["status"]["waves"][0]["written"] == 1
        await lamps("rollout", "activate", "r", "--yes")
        answer = await board.poll(progress=written)
        assert answer is not None and answer.type is Type.UPDATE
        told = json.loads(await lamps("-o", "json", "rollout", "abort", "r", "--call-back", "--yes", "--reason", "no"))
        assert (told["status"]["state"], told["status"]["calledBack"]) == ("aborted", True)
        answer = await board.poll(progress=written)
        assert answer is not None and answer.type is Type.STOP
        assert "is aborted: retry does nothing there" in await lamps("rollout", "retry", "r", fails=True)
