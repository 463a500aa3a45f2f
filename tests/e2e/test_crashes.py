"""Firmware that crashes after it was confirmed: counted, shown, left where there is something better, and never sent in a circle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from devicefw.sim.board import SOFTWARE, USB, Board
from devicefw.sim.firmware import build
from dfud.api import Code, Reply, Request, Waiting
from tests.e2e.fleet import Fleet, firmware, fleet
from tests.real_parts import require
from tests.security.hostile import HostileEndpoint, hostile_server

OLD = firmware("good", "1.0")
PROGRAM = """
import asyncio, dfu
CONFIG = {}
def brightness(percent, steps):
    return percent // steps
async def main():
    agent = dfu.start(CONFIG)
    trial = agent.trial
    print("app: running", VERSION)
    if trial or CONFIRMS:
        await asyncio.sleep_ms(50)
        dfu.confirm()
    while trial and not CONFIRMS:
        await asyncio.sleep(1)
    brightness(80, 0)
dfu.run(main())
"""


def crashing(version: str, *, confirms: bool) -> bytes:
    """Return a firmware that crashes at each start: after it has confirmed, or at all but the first and before it confirms."""
    return build(f"VERSION, CONFIRMS = {version!r}, {confirms}\n{PROGRAM}", version)


async def updated(f: Fleet, new: bytes) -> Board:
    await f.publish(OLD, "1.0")
    await f.publish(new, "1.1")
    board = await f.board("lamp1", OLD)
    await f.want("lamp1", "1.1")
    f.nursery.start_soon(board.run)
    return board


async def test_firmware_that_confirms_and_crashes_at_each_start_is_shown_as_crashed_with_its_reason(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        board = await updated(f, crashing("1.1", confirms=True))
        found: dict[str, Any] = {}
        with trio.move_on_after(120):
            while found.get("actual", {}).get("health", {}).get("image", {}).get("crashes", 0) < 4:
                found = await f.status("lamp1")
                await trio.sleep(0.1)
        health, condition = found["actual"]["health"], next(c for c in found["conditions"] if c["type"] == "Healthy")
        assert health["image"]["crashes"] >= 4, "\n".join(f.consoles())
        assert (condition["status"], condition["reason"]) == ("False", "Crashed")
        assert "ZeroDivisionError: divide by zero" in condition["message"]
        assert "starts of 1.1 ended in a crash" in condition["message"]
        assert (found["current"], found["deployment"]["state"], health["reset"]) == ("1.1", "done", SOFTWARE)
        assert health["image"]["crashes"] < health["image"]["starts"] <= health["starts"] <= len(board.boots)
        assert (await f.history("lamp1")).count("written") == 1, "sent once"


async def test_firmware_that_confirms_and_later_crashes_is_left_blocked_and_its_traceback_kept(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        board = await updated(f, crashing("1.1", confirms=False))
        await f.wait("lamp1", "done", timeout_s=120)
        board.reset(USB)
        found = await f.wait("lamp1", "rolled-back", timeout_s=120)
        result = found["deployment"]["result"]
        assert (result["reason"], result["crashes"], found["current"]) == ("crashed", 3, "1.0")
        assert "in brightness\nZeroDivisionError: divide by zero" in result["text"]
        # It asks again and again, and gets nothing: the image is blocked there.
        seen = found["actual"]["seen"]
        for _ in range(3):
            board.reset(USB)
            with trio.fail_after(120):
                while (found := await f.status("lamp1"))["actual"]["seen"] == seen:
                    await trio.sleep(0.1)
            seen = found["actual"]["seen"]
        assert [boot.slot for boot in board.boots[:6]] == [0, 1, 1, 1, 1, 0]
        assert {boot.slot for boot in board.boots[6:]} == {0}
        assert "brightness" in found["deployment"]["result"]["text"], "the next status did not take it away"
        assert found["actual"]["health"]["crashes"] == 3
        assert found["actual"]["health"]["image"]["crashes"] == 0, "they were another image's"
        states = await f.history("lamp1")
        assert (states.count("written"), states.count("rolled-back")) == (1, 1)


class Losing(HostileEndpoint):
    """Hears results and does not answer the first ones. `numbers` are theirs."""

    def __init__(self, answers_from: int) -> None:
        super().__init__([])
        self.answers_from = answers_from
        self.numbers: list[int] = []

    async def post(self, request: Request) -> Reply | Waiting:
        answer = await super().post(request)
        result = self.statuses[-1].result
        if result is not None:
            self.numbers.append(result.number)
            if len(self.numbers) < self.answers_from:
                return Reply(Code.AWAY)
        return answer


async def test_a_result_whose_answer_was_lost_is_told_again_under_its_number_over_a_restart_too(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    endpoint = Losing(answers_from=6)
    async with fleet(tmp_path) as f, hostile_server(endpoint) as url:
        board = await updated(f, firmware("crash", "1.1"))

        def hear(line: str) -> None:
            if "crashed, time" in line:
                board.config["url"] = url  # from the next start on it does not reach dfud, but the one that loses answers

        board._on_line = hear
        with trio.fail_after(120):
            while len(endpoint.numbers) < 2:
                await trio.sleep(0.05)
            board.reset(USB)
            while endpoint.statuses[-1].result is not None:
                await trio.sleep(0.05)
    assert [boot.slot for boot in board.boots] == [0, 1, 1, 1, 0, 0]
    assert len(endpoint.numbers) >= 6
    assert len(set(endpoint.numbers)) == 1 and endpoint.numbers[0]
