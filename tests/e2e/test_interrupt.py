"""A developer at the console: Ctrl-C during a trial is no hang."""

from __future__ import annotations

from pathlib import Path

import trio

from bootloader.sim.images import Flash
from devicefw.sim.board import USB
from devicefw.sim.flash import partition
from tests.e2e.fleet import firmware, fleet
from tests.real_parts import require


async def test_a_trial_that_is_interrupted_at_the_console_is_no_crash(tmp_path: Path) -> None:
    """The watchdog is stopped, MicroPython waits at its prompt, and the start counts as one that was not confirmed."""
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        await f.publish(firmware("unconfirmed", "1.1"), "1.1")
        board = await f.board("lamp1", old, confirm_s=600)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        await f.wait("lamp1", "trial")
        with trio.fail_after(60):
            while not board._watchdog_s:
                await trio.sleep(0.05)
            board.interrupt()
            while board._watchdog_s:
                await trio.sleep(0.05)
        assert any("KeyboardInterrupt" in line for line in board.console[-20:])
        boots = len(board.boots)
        # mpremote has done its work, and resets the board.
        board.reset(USB)
        with trio.fail_after(60):
            while len(board.boots) == boots or not board._watchdog_s:
                await trio.sleep(0.05)
        assert (len(board.boots), board.boots[-1].slot) == (boots + 1, 1)
        assert "-- watchdog reset --" not in board.console
        offset, size = partition("dfu_state")
        flash = Flash()
        flash.put(offset, board.flash.read(offset, size))
        found = flash.state()
        assert (found["phase"], found["crashes"], found["starts"]) == (1, 0, 16), "the second of its starts"
        f.nursery.cancel_scope.cancel()
