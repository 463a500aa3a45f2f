"""The simulator's serial cable: pulled while bytes are under way."""

from __future__ import annotations

import os
from pathlib import Path

import trio
import trio.testing

from devicefw.sim.cable import Cable

PULLED = 30  # which of the two woken tasks runs first is chance


async def test_a_cable_is_pulled_in_the_moment_in_which_bytes_have_come(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "port")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cable.run)
        for n in range(PULLED):
            await trio.testing.wait_all_tasks_blocked()
            assert cable._host is not None
            ours, theirs = os.dup(cable._host[0]), os.open(cable.port, os.O_RDWR | os.O_NOCTTY)
            os.write(theirs, b"%d" % n)
            await trio.lowlevel.wait_readable(ours)
            cable.unplug()
            os.close(ours)
            os.close(theirs)
            with open(tmp_path / "other", "wb"):  # takes the number of the end that was closed
                await trio.testing.wait_all_tasks_blocked()
            cable.plug()
        board = os.open(cable.board, os.O_RDWR | os.O_NOCTTY)
        host = os.open(cable.port, os.O_RDWR | os.O_NOCTTY)
        os.write(host, b"still there")
        heard = b""
        with trio.fail_after(60):
            while not heard.endswith(b"still there"):
                await trio.lowlevel.wait_readable(board)
                heard += os.read(board, 100)
        os.close(host)
        os.close(board)
        nursery.cancel_scope.cancel()
