"""What the agent takes of the heap, counted on real MicroPython while it installs a mapped delta with all it needs loaded."""

from __future__ import annotations

from pathlib import Path

from bench.corpus import own_pair
from devicefw.sim.board import HEAP
from dfud.wire.messages import Kind
from tests.e2e.fleet import fleet
from tests.e2e.test_mapped import made
from tests.real_parts import require

# What an application has loaded anyway; then what is left of that after each step.
PROGRAM = """
import asyncio, binascii, gc, hashlib, json, random, socket, ssl, struct, time
def count(what):
    gc.collect()
    print("app: heap", what, gc.mem_alloc())
count("before")
import dfu
count("imported")
CONFIG = {}
async def main():
    CONFIG["progress"] = lambda done, total: count("chunk")
    dfu.start(CONFIG)
    await asyncio.sleep_ms(50)
    dfu.confirm()
    count("started")
    while True:
        count("running")
        await asyncio.sleep_ms(20)
dfu.run(main())
"""
# Bytes on 64-bit MicroPython, whose objects are larger than a chip's; tests/devicefw/test_heap32.py counts those of 32 bits.
IMPORT_MAX, IDLE_MAX, UPDATE_MAX = 19 * 1024, 63 * 1024, 87 * 1024


async def test_what_the_agent_takes_idle_and_in_an_update(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    require("esptool")
    pair = own_pair((f"VERSION = '1.0'\n{PROGRAM}", f"VERSION = '1.1'\n{PROGRAM}"))
    async with fleet(tmp_path) as f:
        await f.publish(pair.old, "1.0")
        await f.publish(pair.new, "1.1")
        board = await f.board("lamp1", pair.old, payload=4112)
        assert board.heap == HEAP == "118K"
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        await f.wait("lamp1", "done", timeout_s=120)
        assert [package.kind for package in made(f)] == [Kind.MAPPED]
    counted: dict[str, list[int]] = {}
    for line in board.console:
        if line.startswith("app: heap "):
            counted.setdefault(line.split()[2], []).append(int(line.split()[3]))
    most = {what: max(sizes) - counted["before"][0] for what, sizes in counted.items()}
    print(most)
    assert len(counted["chunk"]) >= 2 and len(counted["running"]) > 20
    assert most["imported"] < IMPORT_MAX
    assert most["started"] < IDLE_MAX
    assert max(most["chunk"], most["running"]) < UPDATE_MAX
