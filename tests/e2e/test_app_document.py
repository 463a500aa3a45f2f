"""docs/app.md from hello to a fleet: each command as it is printed, on a simulated board."""

from __future__ import annotations

import re
from pathlib import Path

import trio

from devicefw.sim.board import Board
from tests.board.support import download
from tests.board.test_document import Desk, commands
from tests.e2e.boards import STOCK
from tests.e2e.fleet import APP, fleet
from tests.real_parts import require

PAGE = (Path(__file__).parents[2] / "docs" / "app.md").read_text()
HELLO = PAGE.split("## From hello to a fleet")[1].split("\n## ")[0]


async def test_each_command_from_hello_to_a_fleet(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    (tmp_path / "ESP32_GENERIC_C3-20241129-v1.24.1.bin").write_bytes(download(STOCK))
    (tmp_path / "app").mkdir()
    (shown,) = re.findall(r"^```python\n(.*?)^```$", HELLO, re.MULTILINE | re.DOTALL)
    (tmp_path / "app" / "main.py").write_text(shown)
    async with fleet(tmp_path) as f:
        desk = Desk(f, tmp_path)
        await desk(f"dfuctl login {f.daemon.urls['registry']}", given=f.daemon.token + "\n")
        await desk(f"dfuctl context --app {APP}")
        await desk("dfuctl claim create --uses 10 > claim")
        f.secrets.append((tmp_path / "claim").read_text().strip())
        told = {}
        for line in commands(HELLO):
            if line.startswith("dfuctl push"):
                (tmp_path / "app" / "main.py").write_text(shown.replace("hello", "hello again"))
            if line.startswith("dfuctl app-image build"):
                (tmp_path / "app" / "main.py").write_text(shown.replace("hello", "hello, fleet"))
            told[line.split(" ./")[0]] = await desk(line)
            if line.startswith("dfuctl board image"):
                lamp = Board(tmp_path / "board", flash=(tmp_path / "board.bin").read_bytes())
                f.boards.append(lamp)
                f.nursery.start_soon(lamp.run)
                with trio.fail_after(60):
                    while (await f.status("lamp1")).get("app", {}).get("current") != "1.0":
                        await trio.sleep(0.1)
        assert len(told) == 9
        assert "runs" in told["dfuctl push"] or "in sync" in told["dfuctl push"], told["dfuctl push"]
        assert [line for line in lamp.console if line.startswith("hello")] == ["hello", "hello again", "hello, fleet"]
        assert (await f.status("lamp1"))["app"]["current"] == "1.1"
