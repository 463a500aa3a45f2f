"""Boards without dfud's bootloader, from end to end: ESP-IDF's second stage, esp32.Partition, the real agent and a real dfud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from devicefw.sim.board import Board
from devicefw.sim.espidf import EspIdf
from devicefw.sim.firmware import build, program
from dfud.cli.main import main
from tests.devicefw.otherboards import flashed
from tests.e2e.fleet import APP, CONFIRM_S, Fleet, fleet
from tests.real_parts import require

NAME = "lamp1"


def firmware(kind: str, version: str, chip: str) -> bytes:
    return build(program(kind, version), version, chip=chip)


async def publish(f: Fleet, image: bytes, version: str, hardware: str) -> None:
    await f.request(
        "POST", f"/api/dfu/v1/apps/{APP}/firmware", params={"version": version, "hardware": hardware}, content=image
    )


async def board(f: Fleet, chip: str, *, rollback: bool = True, **config: Any) -> Board:
    """Make the device and its board with version 1.0 of it; its configuration names no hardware."""
    settings: dict[str, Any] = {"url": f.daemon.urls["http"], "app": APP, "device": NAME, "secret": await f.add_device(NAME)}
    settings |= {"confirm_s": CONFIRM_S, "watchdog_s": 3, "backoff_ms": 300, "update_backoff_ms": 300, **config}
    image = flashed(firmware("good", "1.0", chip))
    made = Board(f.directory / NAME, settings, flash=image, other=EspIdf(chip, rollback=rollback))
    f.boards.append(made)
    return made


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in found["conditions"] if c["type"] == kind), {})


async def dfuctl(f: Fleet, *command: str) -> str:
    """Run dfuctl, logged in."""
    environment = {"DFUCTL_CONFIG": str(f.directory / "dfuctl.toml")}
    told = ""
    for one in (("login", f.daemon.urls["registry"], "--token", f.daemon.token), ("--app", APP, *command)):
        found = await trio.to_thread.run_sync(lambda one=one: CliRunner().invoke(main, one, env=environment))  # type: ignore[misc]
        assert found.exit_code == 0, found.output
        told = found.output
    return told


@pytest.mark.parametrize("chip", ["esp32s3", "esp32"])
async def test_a_board_without_dfuds_bootloader_is_updated_confirms_and_leaves_what_crashes(tmp_path: Path, chip: str) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        lamp = await board(f, chip)
        for version, kind in (("1.0", "good"), ("1.1", "good"), ("1.2", "crash"), ("1.3", "good")):
            await publish(f, firmware(kind, version, chip), version, chip)
        f.nursery.start_soon(lamp.run)
        await f.want(NAME, "1.1")
        found = await f.wait(NAME, "done", timeout_s=60)
        assert (found["current"], found["actual"]["hardware"]) == ("1.1", chip), "the chip says its name"
        weaker = condition(found, "DfudBootloader")
        assert weaker["status"] == "False" and "one trial" in weaker["message"] and "no signature" in weaker["message"]
        assert "does not go back" not in weaker["message"]
        assert any("not dfud's bootloader: a new image has one trial" in line for line in lamp.console)
        assert [boot.slot for boot in lamp.boots] == [0, 1]

        await f.want(NAME, "1.2")
        found = await f.wait(NAME, "rolled-back", timeout_s=60)
        result = found["deployment"]["result"]
        assert (result["reason"], result["crashes"], found["current"]) == ("crashed", 1, "1.1")
        assert "ZeroDivisionError" in result["text"]
        assert [boot.slot for boot in lamp.boots] == [0, 1, 0, 1], "one trial"
        assert "not dfud's bootloader: a new firmware has one trial" in await dfuctl(f, "status", NAME)

        await f.want(NAME, "1.3")
        found = await f.wait(NAME, "done", timeout_s=60)
        assert found["current"] == "1.3" and [boot.slot for boot in lamp.boots][-2:] == [1, 0]


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        ("hang", "crashed", "reset by a watchdog"),
        ("unconfirmed", "unconfirmed", "not confirmed in time"),
        ("selftest", "self-test", "the lamp does not light"),
        ("noimport", "crashed", "ImportError"),
    ],
)
async def test_each_end_of_a_trial_is_told_by_the_image_that_it_goes_back_to(
    tmp_path: Path, kind: str, reason: str, said: str
) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        lamp = await board(f, "esp32c6")
        await publish(f, firmware("good", "1.0", "esp32c6"), "1.0", "esp32c6")
        await publish(f, firmware(kind, "1.1", "esp32c6"), "1.1", "esp32c6")
        await f.want(NAME, "1.1")
        f.nursery.start_soon(lamp.run)
        found = await f.wait(NAME, "rolled-back", timeout_s=60)
        result = found["deployment"]["result"]
        assert (result["reason"], found["current"]) == (reason, "1.0"), result
        assert said in result["text"], result
        assert [boot.slot for boot in lamp.boots] == [0, 1, 0]


async def test_where_the_bootloader_does_not_roll_back_the_agent_does_and_says_so(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        lamp = await board(f, "esp32s2", rollback=False)
        for version, kind in (("1.0", "good"), ("1.1", "crash"), ("1.2", "good")):
            await publish(f, firmware(kind, version, "esp32s2"), version, "esp32s2")
        await f.want(NAME, "1.1")
        f.nursery.start_soon(lamp.run)
        found = await f.wait(NAME, "rolled-back", timeout_s=60)
        assert "ZeroDivisionError" in found["deployment"]["result"]["text"]
        assert [boot.slot for boot in lamp.boots] == [0, 1, 1, 0], "the second start of the trial went back"
        await f.want(NAME, "1.2")
        found = await f.wait(NAME, "done", timeout_s=60)
        assert "does not go back by itself" in condition(found, "DfudBootloader")["message"]
        assert any("this bootloader does not roll back" in line for line in lamp.console)


@pytest.mark.parametrize("steps", [(4, 6, 9, 8), (5, 12, 11, 10)])
async def test_power_cuts_from_the_first_byte_to_the_confirmation_end_with_the_new_image_or_the_old_one(
    tmp_path: Path, steps: tuple[int, ...]
) -> None:
    """On real MicroPython, where the exploration of tests/devicefw/test_other_boards.py has a model of the agent's surroundings."""
    require("micropython")
    async with fleet(tmp_path) as f:
        lamp = await board(f, "esp32s3")
        for version in ("1.0", "1.1"):
            await publish(f, firmware("good", version, "esp32s3"), version, "esp32s3")
        async def powered() -> None:
            for count in steps:
                # Counted from the start on, in which a commit to NVS is one, too.
                lamp.flash.cut_at, lamp.flash.cut_how = lamp.flash.operations + count, "half"
                await lamp.run_once()
            lamp.flash.cut_at = None
            await lamp.run()

        await f.want(NAME, "1.1")
        f.nursery.start_soon(powered)
        found: dict[str, Any] = {}
        with trio.fail_after(90):
            while found.get("deployment", {}).get("state") not in ("done", "rolled-back", "failed"):
                found = await f.status(NAME)
                await trio.sleep(0.1)
        state, cuts = found["deployment"]["state"], lamp.console.count("-- power cut --")
        print(f"{state} after {cuts} power cuts, {len(lamp.boots)} starts")
        assert cuts >= 2
        if state == "done":
            assert found["current"] == "1.1"
        else:
            # The power went away on trial, which is the end of one here.
            assert (found["current"], found["deployment"]["result"]["reason"]) == ("1.0", "unconfirmed")
