"""`python -m devicefw.sim.run`: the file of `dfuctl board image` on a simulated board."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import serial
import trio

from tests.board.test_refusals import Desk, desk

__all__ = ["desk"]


async def test_a_board_without_a_network_has_its_serial_line(desk: Desk, tmp_path: Path, nursery: trio.Nursery) -> None:
    """Its agent ended with `module 'chip' has no attribute 'UART'`, three times."""
    desk.image(server=["--serial", "4,5"], code=0)
    command = [sys.executable, "-m", "devicefw.sim.run", str(desk.target), "--directory", str(tmp_path / "board")]
    port = tmp_path / "board" / "tty"
    async with await trio.open_file(tmp_path / "said", "wb") as said:
        nursery.start_soon(partial(trio.run_process, command, stdout=said.wrapped, check=False))
        with trio.fail_after(120):
            while not port.exists():
                await trio.sleep(0.05)
            with serial.Serial(str(port), timeout=0) as line:
                while b"\xc0" not in line.read(256):  # a frame: it asks for a status
                    await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    text = (tmp_path / "said").read_text()
    assert f"dfuctl bridge --port {port} --server URL" in text and "AttributeError" not in text
