"""Devices that do not stay on the line: `dfu.once`, and `wait_s` 0."""

from __future__ import annotations

from pathlib import Path

import trio

from devicefw.sim.board import Board
from devicefw.sim.firmware import build
from tests.e2e.fleet import fleet
from tests.real_parts import require

SLEEPER = """
import asyncio, dfu, machine
CONFIG = {}
async def main():
    print("app: awake", VERSION)
    seconds = await dfu.once(CONFIG)
    print("app: again in", seconds)
    dfu.confirm()
    await asyncio.sleep_ms(50)
    machine.reset()
dfu.run(main())
"""
# Its transport answers at once that there is nothing to do for 77 s; what the agent sleeps is told, and over at once.
POLLER = """
import asyncio, dfu
from dfu.pack import pack
CONFIG = {}
real = asyncio.sleep_ms
async def slept(ms):
    if ms > 5000:
        print("app: sleeps", (ms + 500) // 1000)
    await real(0 if ms > 5000 else ms)
asyncio.sleep_ms = slept
class Fake:
    asked = 0
    def __init__(self, config):
        pass
    async def close(self):
        pass
    async def status(self, message, wait_s, buffer):
        Fake.asked += 1
        print("app: asks, to wait for", wait_s)
        if Fake.asked > 4:
            await real(3600000)
        data = pack({0: Fake.asked % 2, 1: 77})
        buffer[: len(data)] = data
        return len(data)
CONFIG["transport"] = Fake
dfu.run(asyncio.sleep(3600), CONFIG)
"""


async def test_a_device_that_wakes_polls_once_and_sleeps_is_updated(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    images = [build(f"VERSION = {v!r}\n{SLEEPER}", v) for v in ("1.0", "1.1")]
    async with fleet(tmp_path) as f:
        for image, version in zip(images, ("1.0", "1.1"), strict=True):
            await f.publish(image, version)
        board = await f.board("lamp1", images[0])
        f.nursery.start_soon(board.run)
        with trio.fail_after(120):
            while not any(line.startswith("app: again in") for line in board.console):
                await trio.sleep(0.05)
        await f.want("lamp1", "1.1")
        found = await f.wait("lamp1", "done")
        assert (found["current"], board.boots[-1].slot) == ("1.1", 1)
        assert "app: awake 1.1" in board.console
        # Between two wakes nothing of the agent's goes on: it says when to come again, as the daemon wants it.
        seconds = {int(line.split()[-1]) for line in board.console if line.startswith("app: again in")}
        assert 270 <= max(seconds) <= 330, seconds  # 300, and what spreads devices
        f.nursery.cancel_scope.cancel()


async def test_without_waiting_it_asks_as_often_as_dfud_says(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    board = Board(tmp_path, {"app": "lamps", "device": "lamp1", "secret": "s", "wait_s": 0}, image=build(POLLER, "1.0"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        with trio.fail_after(60):
            while sum("asks" in line for line in board.console) < 5:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert [line for line in board.console if line.startswith("app: ")] == [
        *["app: asks, to wait for 0", "app: sleeps 77"] * 4,
        "app: asks, to wait for 0",
    ]
