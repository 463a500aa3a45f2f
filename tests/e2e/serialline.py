"""A board whose only link is a serial line, and `dfuctl bridge` at its other end, as a process of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import trio

from devicefw.sim.board import Board
from devicefw.sim.cable import LINE, Cable
from tests.e2e.fleet import Fleet


class Bridge:
    """`dfuctl bridge`; `lines` is what it said. stop() ends it as a terminal or systemd does, kill() as a power cut."""

    def __init__(self, server: str, *ports: Path, options: tuple[str, ...] = ()) -> None:
        self.command = [sys.executable, "-m", "dfud.cli", "bridge", "--server", server, *options]
        for port in ports:
            self.command += ["--port", str(port)]
        self.lines: list[str] = []
        self._process: trio.Process | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> int:
        process = await trio.lowlevel.open_process(self.command, stdout=-1, stderr=-2)
        self._process = process
        task_status.started()
        try:
            rest = b""
            assert process.stdout is not None
            async with process.stdout:
                while data := await process.stdout.receive_some(65536):
                    *lines, rest = (rest + data).split(b"\n")
                    self.lines += [line.decode() for line in lines]
            return await process.wait()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def stop(self, number: int = signal.SIGINT) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return await self._process.wait()

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def says(self, text: str, timeout_s: float = 60) -> str:
        with trio.move_on_after(timeout_s):
            while True:
                for line in self.lines:
                    if text in line:
                        return line
                await trio.sleep(0.05)
        raise AssertionError(f"{text!r} is not in {self.lines}")


async def wired(f: Fleet, name: str, image: bytes, **config: Any) -> tuple[Board, Cable]:
    """Return a board with no other link than a cable, which is plugged in."""
    board = await f.board(name, image, transport="serial", line=LINE, url="", **config)
    cable = Cable(f.directory / f"tty-{name}")
    board.uart = cable.board
    f.nursery.start_soon(cable.run)
    return board, cable
