"""A re-signed manifest reaches devices that run its image: floor and keys come into force there, over power cuts, too."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import trio

from bootloader.sim.images import KEYS_AT, Flash, key, key_id, key_record, public
from devicefw.sim.board import POWER_ON, Board
from devicefw.sim.flash import partition
from dfud.wire.manifest import sign
from tests.e2e.fleet import APP, firmware, fleet
from tests.e2e.test_bootloader import _trailer, manifest, publish_signed
from tests.real_parts import require


def stands(board: Board) -> Flash:
    """Return the board's flash, to be read as the simulator's images are."""
    flash = Flash()
    flash.put(0, board.flash.read(0, board.flash.size))
    return flash


@pytest.mark.parametrize(("install", "cuts"), [("", ()), ("bootloader", ()), ("", (3, 9, 14))])
async def test_floor_and_keys_of_a_newer_manifest_come_into_force(tmp_path: Path, install: str, cuts: tuple[int, ...]) -> None:
    require("micropython")
    require("riscv-gcc")
    first, second = key(1), key(2)
    async with fleet(tmp_path) as f:
        image = firmware("good", "1.0")
        board = await f.board("lamp1", image, install=install)
        board.flash.program(partition("dfu_keys")[0], key_record(first, second))
        _trailer(board, 0, sign(manifest(image, "1.0", 1), first))
        keys = [base64.b64encode(public(k)).decode() for k in (first, second)]
        app = {"metadata": {"name": APP}, "spec": {"signing": {"mode": "required", "keys": keys}}}
        await f.request("PUT", f"/api/registry/v1alpha1/apps/{APP}", json=app)
        await publish_signed(f, image, sign(manifest(image, "1.0", 1), first), tmp_path)
        await f.want("lamp1", "1.0")

        async def run() -> None:
            left = list(cuts)
            while await board.run_once():
                if left and board.flash.cut_at is None and "app: confirmed 1.0" in board.console:
                    board.flash.cut_at = left.pop(0)

        if cuts:
            board.flash.cut_at = cuts[0]
        f.nursery.start_soon(run)
        found: dict[str, Any] = {}
        with trio.fail_after(120):
            while not found.get("actual"):
                await trio.sleep(0.1)
                found = await f.status("lamp1")
        assert {c["type"]: c["status"] for c in found["conditions"]}["InSync"] == "True"
        await publish_signed(f, image, sign(manifest(image, "1.0", 6, floor=5, revoke=(key_id(second),)), first), tmp_path)
        await f.wait("lamp1", "done")
        flash = stands(board)
        assert (flash.state()["slot"], flash.state()["floor"], flash.state()["accept"]) == (1, 5, 6)
        # It is over: the same is not sent again, and the next start changes the keys.
        asked = len(board.boots)
        board.reset(POWER_ON)
        with trio.fail_after(120):
            while len(board.boots) == asked or stands(board).records(KEYS_AT, 256, 2, 0x4B554644)[-1][144:152] != key_id(second):
                await trio.sleep(0.1)
        await trio.sleep(1)
        assert await f.history("lamp1") == ["pending", "notified", "fetching", "written", "trial", "done"] or cuts
        found = await f.status("lamp1")
        assert (found["deployment"]["state"], len(board.boots)) == ("done", asked + 1)
        assert {c["type"]: c["status"] for c in found["conditions"]}["InSync"] == "True"
        f.nursery.cancel_scope.cancel()
