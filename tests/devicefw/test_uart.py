"""The simulator's machine.UART does what MicroPython says of an ESP32's: read, any, write, and a buffer that is full."""

from __future__ import annotations

import json
import os
import subprocess
import tty
from pathlib import Path

from devicefw.sim.compile import SHIMS
from tests.real_parts import require

PROGRAM = """
import sys
sys.path.insert(0, {shims!r})
import uart
uart = uart.UART(1, 115200, tx=4, rx=5, rxbuf=20)
print("nothing", uart.read(5), uart.any())
print("took", uart.write(memoryview(b"hello")))
sys.stdin.readline()
print("some", uart.any(), uart.read(3), uart.read(), uart.read())
sys.stdin.readline()
print("full", uart.any(), uart.read(99))
"""


def test_read_gives_what_there_is_and_what_is_beyond_the_buffer_is_lost(tmp_path: Path) -> None:
    end, line = os.openpty()
    tty.setraw(line)
    flash = tmp_path / "flash.bin"
    flash.write_bytes(b"\xff" * 4096)
    start = {"flash": str(flash), "slot": 0, "reset_reason": 1, "partitions": [], "operations": 0, "cut_at": None, "cut_how": ""}
    (tmp_path / "board.json").write_text(json.dumps({**start, "uart": os.ttyname(line)}))
    (tmp_path / "operations").write_bytes(b"%12d" % 0)
    (tmp_path / "rtc").write_bytes(bytes(32))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(shims=str(SHIMS)))
    command = [require("micropython"), str(program), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None and run.stdout is not None
        assert run.stdout.readline() == "nothing None 0\n"
        assert run.stdout.readline() == "took 5\n"
        assert os.read(end, 100) == b"hello", "as it is: no carriage return, no echo"
        os.write(end, b"\x00\x03\xff\r\n")
        run.stdin.write("\n")
        run.stdin.flush()
        assert run.stdout.readline() == "some 5 b'\\x00\\x03\\xff' b'\\r\\n' None\n"
        os.write(end, bytes(range(50)))
        run.stdin.write("\n")
        run.stdin.flush()
        assert run.stdout.readline() == f"full 20 {bytes(range(20))!r}\n"
    os.close(end)
    os.close(line)
