"""`make demo`: images of realistic size, through dfud and dfuctl as a user has them; `make demo-rollout`, with fewer boards."""

from __future__ import annotations

import pytest
import trio

from tests import warm
from tests.real_parts import require


@pytest.mark.parametrize("transport", ["http", "coap", "serial"])
async def test_the_demonstration_ends_as_it_promises(transport: str) -> None:
    require("micropython")
    require("riscv-gcc")
    command = warm.module("devicefw.sim.demo", "--transport", transport)
    with trio.fail_after(550):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    told = run.stdout.decode()
    assert run.returncode == 0, told + run.stderr.decode()
    assert "lamp-1.0.bin: 1,3" in told, "images of more than a megabyte"
    assert "1.0 -> 1.1: in sync" in told.replace("1.1 -> 1.1", "1.0 -> 1.1")
    assert "ZeroDivisionError: divide by zero" in told
    assert "Done: one update arrived, one bad one was left with its reason on record." in told


async def test_a_small_fleet_takes_the_good_version_in_waves_and_stops_the_bad_one_at_the_first() -> None:
    require("micropython")
    require("riscv-gcc")
    command = warm.module("devicefw.sim.demo_rollout", "--boards", "4")
    with trio.fail_after(280):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    told = run.stdout.decode()
    assert run.returncode == 0, told + run.stderr.decode()
    assert "4 devices match: 4 would be told" in told
    assert "good: finished, wave 3: " in told and "finish -> finished, wave 3" in told
    top = told.split("$ dfuctl rollout show bad\n")[-1].splitlines()
    assert "rolled-back in wave 1, crashed: ZeroDivisionError in " in top[0] and "Traceback" in top[1]
    assert any(line.startswith("bad: 1.2, paused") for line in top)
    assert "Done: a good version reached every board in three waves, a bad one stopped at the first" in told


async def test_a_bare_board_is_taken_to_a_roll_back() -> None:
    require("micropython")
    require("riscv-gcc")
    command = warm.module("devicefw.sim.demo_board")
    with trio.fail_after(280):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    told = run.stdout.decode()
    assert run.returncode == 0, told + run.stderr.decode()
    assert "lamp1 | wifi: joined attic" in told and "lamp1 | app: the lamp is on" in told
    assert "v1.25.0, app 0: in sync" in told and "AttributeError" in told
    assert "Done: a bare board became a device, one update arrived, one bad one was left" in told
    assert "lamp1 | app: the lamp is blue" in told and "ZeroDivisionError" in told
    assert "correct horse" not in told and "dfc_" not in told
