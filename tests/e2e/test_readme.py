"""The device's part of README.md, as it is printed, on a simulated board."""

from __future__ import annotations

import re
from pathlib import Path

from devicefw.sim.firmware import build
from tests.e2e.fleet import firmware, fleet
from tests.real_parts import require

README = Path(__file__).parents[2] / "README.md"
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
sys.modules["lamp"] = lamp
"""


def example(version: str, before: str = "") -> bytes:
    """Return a firmware of the README's example behind `before`, with the board's configuration in place of the printed one."""
    text = re.search(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None
    program, count = re.subn(r'\{"url": .*?\}', "CONFIG", text[1])
    assert count == 1
    return build(f"VERSION = {version!r}\nCONFIG = {{}}\n{before}{program}", version)


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
