"""What app banks take of a chip's heap, counted as in test_heap32.py: started, and with an application of two lines running."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from dfud.board.appimage import build
from dfud.board.flashmap import LAYOUTS, find
from dfud.board.image import app_envelope_of
from dfud.board.records import encode_trailer
from tests.devicefw.test_heap32 import HERE, agent, board, compiled
from tests.real_parts import require

STARTED_MAX, RUNNING_MAX = 3 * 1024, 7 * 1024
RUN = """
from dfu.apprun import run
print("runs", await run(agent), agent.apps is not None)
await count("running")
await count("running")
"""


def counted(folder: Path, *, banks: bool) -> dict[str, int]:
    """Return the heap in use, of a board that has banks and runs what is in one, or has none."""
    agent(folder / "agent")
    board(folder / "board")
    compiled((HERE.parents[1] / "devicefw" / "board" / "pack.py").read_text(), "pack", folder / "agent" / "pack.mpy")
    if banks:
        parts = LAYOUTS["4MB"]
        start = json.loads((folder / "board" / "board.json").read_text())
        (folder / "board" / "board.json").write_text(json.dumps(start | {"partitions": parts}))
        app = folder.with_name("app")
        app.mkdir()
        (app / "main.py").write_text("async def main():\n    pass\n")
        image, bank = build(app).data, find(parts, "app_a")
        trailer = encode_trailer(app_envelope_of(image, "1.0", "pump", "esp32c3", b"", []))
        flash = bytearray((folder / "board" / "flash.bin").read_bytes().ljust(4 << 20, b"\xff"))
        flash[bank.offset : bank.offset + len(image)] = image
        flash[bank.end - 4096 : bank.end - 4096 + len(trailer)] = trailer
        (folder / "board" / "flash.bin").write_bytes(flash)
    program = (HERE / "heapcheck.py").read_text()
    program = program[: program.rindex('await count("idle")')] + 'await count("idle")\n' + RUN
    (folder / "check.py").write_text(program)
    command = [require("node"), str(HERE / "heap32.mjs"), require("micropython-32"), str(folder), str(folder / "check.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert f"runs {banks} {banks}" in run.stdout
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith("heap ")]
    found = {what: int(size) for _, what, size in rows}
    return {what: size - found["before"] for what, size in found.items()}


def test_banks_take_little_of_the_heap(tmp_path: Path) -> None:
    require("riscv-gcc")
    require("esptool")
    (tmp_path / "plain").mkdir()
    (tmp_path / "banks").mkdir()
    plain, with_banks = counted(tmp_path / "plain", banks=False), counted(tmp_path / "banks", banks=True)
    started, running = (with_banks["idle"] - plain["idle"], with_banks["running"] - plain["idle"])
    print(f"started {started}, running {running} bytes more than without banks")
    assert 0 < started <= STARTED_MAX
    assert 0 < running <= RUNNING_MAX
