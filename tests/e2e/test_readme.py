"""The device's part of README.md and of docs/agent.md, as they are printed, on simulated boards."""

from __future__ import annotations

import re
from pathlib import Path

from devicefw.sim.firmware import build
from tests.e2e.fleet import firmware, fleet
from tests.real_parts import require

ROOT = Path(__file__).parents[2]
README, AGENT = ROOT / "README.md", ROOT / "docs" / "agent.md"
LAMP = """
import sys, asyncio
class lamp:
    @staticmethod
    async def begin():
        print("app: began", VERSION)
    @staticmethod
    async def run():
        print("app: runs", VERSION)
        while True:
            await asyncio.sleep(1)
    @staticmethod
    def connect_wifi():
        print("app: connected", VERSION)
    @staticmethod
    async def main():
        import dfu
        dfu.start(CONFIG)
        dfu.confirm()
        await lamp.run()
sys.modules["lamp"] = lamp
"""
# Wi-Fi that is not there: set-up that blocks fails before anything of the agent runs.
AWAY = LAMP.replace("""        print("app: connected", VERSION)""", """        raise OSError("Wi-Fi Internal Error")""")


def examples(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def example(version: str, before: str = "") -> bytes:
    """Return a firmware of the README's example behind `before`, with the board's configuration in place of the printed one."""
    program, count = re.subn(r'\{"url": .*?\}', "CONFIG", examples(README)[0])
    assert count == 1
    return build(f"VERSION = {version!r}\nCONFIG = {{}}\n{before}{program}", version)


def guarded(version: str, before: str) -> bytes:
    """Return a firmware of the agent's manual's main.py behind `before`."""
    program = examples(AGENT)[1]
    assert program.startswith("# main.py") and program.endswith("dfu.guard(app)\n")
    return build(f"VERSION = {version!r}\nCONFIG = {{}}\n{before}{program}", version)


def test_the_readme_and_the_agent_s_manual_show_the_same_application() -> None:
    assert examples(README)[0] == examples(AGENT)[0]


async def test_the_manual_s_guard_confirms_and_set_up_that_fails_goes_back(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        board = await f.board("lamp1", firmware("good", "1.0"))
        await f.publish(guarded("1.1", LAMP), "1.1")
        await f.publish(guarded("1.2", AWAY), "1.2")
        f.nursery.start_soon(board.run)
        await f.want("lamp1", "1.1")
        assert (await f.wait("lamp1", "done", timeout_s=100))["current"] == "1.1"
        assert "app: connected 1.1" in board.console
        await f.want("lamp1", "1.2")
        found = await f.wait("lamp1", "rolled-back", timeout_s=100)
        assert found["current"] == "1.1"
        assert "OSError: Wi-Fi Internal Error" in found["deployment"]["result"]["text"]


async def test_the_readme_s_application_confirms_and_a_failed_import_goes_back(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        board = await f.board("lamp1", old)
        await f.publish(example("1.1", LAMP), "1.1")
        await f.publish(example("1.2"), "1.2")
        f.nursery.start_soon(board.run)
        await f.want("lamp1", "1.1")
        assert (await f.wait("lamp1", "done", timeout_s=100))["current"] == "1.1"
        assert board.version_line() == "app: runs 1.1"
        await f.want("lamp1", "1.2")
        found = await f.wait("lamp1", "rolled-back", timeout_s=100)
        assert found["current"] == "1.1"
        assert "ImportError: no module named 'lamp'" in found["deployment"]["result"]["text"]
