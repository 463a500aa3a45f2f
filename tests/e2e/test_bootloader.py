"""What only bootloader and agent together can do: installing from the stage, recovery, rotating keys, judging at every boot."""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from bootloader.sim.images import key, key_id, key_record, public, trailer
from devicefw.sim.board import POWER_ON, Board
from devicefw.sim.firmware import build, program
from devicefw.sim.flash import partition
from dfud.wire.manifest import Manifest, sign
from tests.e2e.fleet import APP, Fleet, firmware, fleet
from tests.real_parts import require

CODE = bytes(range(256)) * 300


def manifest(image: bytes, version: str, sequence: int, **fields: Any) -> Manifest:
    return Manifest(APP, version, "esp32c3", sequence, len(image), hashlib.sha256(image).digest(), **fields)


async def publish_signed(f: Fleet, image: bytes, envelope: bytes, directory: Path) -> None:
    """Publish as a user does: dfuctl with a manifest."""
    (directory / "image").write_bytes(image)
    (directory / "manifest").write_bytes(envelope)
    command = [sys.executable, "-m", "dfud.cli", "--config", str(directory / "dfuctl.toml"), "--app", APP]
    await trio.run_process([*command, "login", f.daemon.urls["registry"], "--token", f.daemon.token], capture_stdout=True)
    arguments = ["firmware", "publish", str(directory / "image"), "--manifest", str(directory / "manifest")]
    await trio.run_process([*command, *arguments], capture_stdout=True)


async def test_the_bootloader_installs_what_the_agent_staged(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0", code=CODE)
        await f.publish(old, "1.0")
        await f.publish(firmware("good", "1.1", code=CODE[:5000] + b"xyz!" + CODE[5000:]), "1.1")
        board = await f.board("lamp1", old, install="bootloader")
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        await f.wait("lamp1", "done")
        assert "dfud boot: installing into slot 1" in board.console
        assert "dfud boot: boot on trial slot 1" in board.console
        assert board.version_line() == "app: confirmed 1.1"


@pytest.mark.parametrize("how", ["before", "half"])
async def test_a_staged_transfer_survives_power_cuts(tmp_path: Path, how: str) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        code = Random(1).randbytes(60000)
        new = firmware("good", "1.1", code=code)
        await f.publish(new, "1.1")
        board = await f.board("lamp1", old, install="bootloader")
        await f.want("lamp1", "1.1")
        board.flash.cut_how = how
        board.flash.cut_at = 9
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                at = 9
                while await board.run_once():
                    if board.flash.cut_at is None and at < 60:
                        at += 11
                        board.flash.cut_at = at

            nursery.start_soon(run)
            await f.wait("lamp1", "done", timeout_s=60)
            nursery.cancel_scope.cancel()
        assert board.console.count("-- power cut --") >= 4
        offset, _ = partition("ota_1")
        assert board.flash.read(offset, len(new)) == new


async def test_a_stage_that_was_damaged_is_told(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        await f.publish(firmware("good", "1.1", code=Random(2).randbytes(30000)), "1.1")
        board = await f.board("lamp1", old, install="bootloader")
        await f.want("lamp1", "1.1")

        async def run() -> None:
            while await board.run_once():
                if not any("not installed" in line for line in board.console):
                    board.flash.program(partition("dfu_stage")[0] + 4096 + 6000, bytes(64))

        f.nursery.start_soon(run)
        result: dict[str, Any] = {}
        with trio.fail_after(20):
            while not result:
                await trio.sleep(0.1)
                result = (await f.status("lamp1")).get("deployment", {}).get("result") or {}
        # A chunk may come right another time: dfud tries again later.
        assert (result["reason"], (await f.status("lamp1"))["current"]) == ("chunk", "1.0")
        assert "bootloader's error 1" in result["text"]


async def test_an_image_that_never_reaches_the_agent_is_left_and_told_unconfirmed(tmp_path: Path) -> None:
    """Its import fails before dfu.run(): it stays at the prompt, on trial. Whoever is there switches it off and on."""
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        await f.publish(build("import a_driver_that_is_not_there\n" + program("good", "1.1"), "1.1"), "1.1")
        board = await f.board("lamp1", old)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        failed = 0
        result: dict[str, Any] = {}
        with trio.fail_after(120):
            while not result:
                now = sum("a_driver_that_is_not_there" in line and "Error" in line for line in board.console)
                if now > failed:
                    failed = now
                    board.reset(POWER_ON)
                await trio.sleep(0.05)
                result = (await f.status("lamp1")).get("deployment", {}).get("result") or {}
        assert failed == 10
        assert "dfud boot: never confirmed" in board.console
        assert (result["reason"], (await f.status("lamp1"))["current"]) == ("unconfirmed", "1.0"), result
        assert bytes.fromhex(result["record"])[12:16] == bytes.fromhex("02000cdf")


@pytest.mark.parametrize("kind", ["program refused", "program ignored"])
async def test_a_board_whose_state_wears_out_starts_no_trial_and_goes_on(tmp_path: Path, kind: str) -> None:
    """Nothing could count such a trial. The old image runs, and the server hears from it."""
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        await f.publish(firmware("unconfirmed", "1.1"), "1.1")
        board = await f.board("lamp1", old, confirm_s=60)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        with trio.fail_after(200):
            while "dfud boot: boot on trial slot 1" not in board.console:
                await trio.sleep(0.05)
            first = partition("dfu_state")[0] // 4096
            board.flash.faults = {first: kind, first + 1: kind}
            for _ in range(3):
                starts = len(board.boots)
                while len(board.boots) == starts:
                    board.reset(POWER_ON)
                    await trio.sleep(0.05)
                assert board.boots[-1].slot == 0, board.console
        assert "dfud boot: the state cannot be written" in board.console


async def test_a_board_with_no_bootable_slot_is_recovered_over_its_line(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        image = firmware("good", "1.0")
        rescue = firmware("good", "2.0")
        await f.publish(rescue, "2.0")
        board = await f.board("lamp1", image)
        board.flash.load("ota_0", b"\0" * 4096)
        await f.want("lamp1", "2.0")
        f.nursery.start_soon(board.run)
        with trio.fail_after(20):
            while board.recovery_port is None:
                await trio.sleep(0.02)
        port = board.recovery_port
        (tmp_path / "r.bin").write_bytes(rescue)
        arguments = ["--app", APP, "recover", "--port", port, str(tmp_path / "r.bin"), "--version", "2.0"]
        command = [sys.executable, "-m", "dfud.cli", "--config", str(tmp_path / "c.toml"), *arguments]
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        assert run.returncode == 0, run.stderr
        with trio.fail_after(20):
            while (await f.status("lamp1")).get("current") != "2.0" or "app: confirmed 2.0" not in board.console:
                await trio.sleep(0.1)
        assert board.boots[-1].slot == 0
        assert board.version_line() == "app: confirmed 2.0"


async def test_keys_are_rotated_on_the_device_by_signed_manifests(tmp_path: Path) -> None:
    """A new key comes with a manifest that the old one signed; afterwards the old one is refused, by agent and bootloader."""
    require("micropython")
    require("riscv-gcc")
    first, second = key(1), key(2)
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        board = await f.board("lamp1", old)
        offset, _ = partition("dfu_keys")
        board.flash.program(offset, key_record(first))
        _trailer(board, 0, sign(manifest(old, "1.0", 1), first))
        added = firmware("good", "1.1")
        revoking = firmware("good", "1.2")
        late = firmware("good", "1.3")
        keys = [base64.b64encode(public(k)).decode() for k in (first, second)]
        app = {"metadata": {"name": APP}, "spec": {"signing": {"mode": "required", "keys": keys}}}
        await f.request("PUT", f"/api/registry/v1alpha1/apps/{APP}", json=app)
        await publish_signed(f, added, sign(manifest(added, "1.1", 2, add=(public(second),)), first), tmp_path)
        await publish_signed(f, revoking, sign(manifest(revoking, "1.2", 3, revoke=(key_id(first),)), second), tmp_path)
        await publish_signed(f, late, sign(manifest(late, "1.3", 4), first), tmp_path)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        await f.wait("lamp1", "done")
        await board_restart(board)
        await f.want("lamp1", "1.2")
        with trio.fail_after(30):
            while (await f.status("lamp1")).get("current") != "1.2" or (await f.status("lamp1"))["deployment"]["state"] != "done":
                await trio.sleep(0.1)
        await board_restart(board)
        await f.want("lamp1", "1.3")
        status = await f.wait("lamp1", "failed")
        assert status["deployment"]["result"]["reason"] == "signature"
        assert status["current"] == "1.2"
        assert sum("the set of keys changes" in line for line in board.console) == 2


async def board_restart(board: Board) -> None:
    """Reset the board from outside: keys change at a start."""
    boots = len(board.boots)
    board.reset()
    with trio.fail_after(10):
        while len(board.boots) == boots:
            await trio.sleep(0.02)


def _trailer(board: Board, slot: int, envelope: bytes) -> None:
    offset, size = partition(f"ota_{slot}")
    board.flash.program(offset + size - 4096, trailer(envelope))
