"""The whole way: real daemon, real agent on real MicroPython, real sockets; good updates and bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.e2e.fleet import firmware, fleet
from tests.real_parts import require


async def test_a_device_is_updated_and_confirms(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        new = firmware("good", "1.1", code=bytes(range(256)) * 400)
        await f.publish(old, "1.0")
        await f.publish(new, "1.1")
        board = await f.board("lamp1", old)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done")
        assert (status["current"], status["target"]) == ("1.1", "1.1")
        assert status["conditions"][0]["status"] == "True"
        assert await f.history("lamp1") == ["pending", "notified", "fetching", "written", "trial", "done"]
        assert [b.slot for b in board.boots] == [0, 1]
        assert board.version_line() == "app: confirmed 1.1"


@pytest.mark.parametrize(
    ("kind", "reason", "text"),
    [
        ("crash", "crashed", "ZeroDivisionError"),
        ("hang", "crashed", "RTC watchdog"),
        ("unconfirmed", "unconfirmed", "not confirmed in time"),
        ("memory", "crashed", "MemoryError"),
    ],
)
async def test_a_bad_firmware_is_retried_left_and_explained(tmp_path: Path, kind: str, reason: str, text: str) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        await f.publish(firmware(kind, "1.1"), "1.1")
        board = await f.board("lamp1", old)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "rolled-back")
        result = status["deployment"]["result"]
        assert (result["reason"], result["crashes"]) == (reason, 3)
        assert text in result["text"]
        assert status["current"] == "1.0"
        assert [b.slot for b in board.boots] == [0, 1, 1, 1, 0]
        # It is not sent again: the device goes on with what works.
        await trio.sleep(1)
        assert (await f.status("lamp1"))["deployment"]["state"] == "rolled-back"
        assert len(board.boots) == 5
