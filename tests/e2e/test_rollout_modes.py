"""The modes of a rollout on boards that run the real agent: an offer that is declined until it is forced, a download that waits."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio

from tests.e2e.fleet import APP, Fleet, firmware, fleet
from tests.real_parts import require

CODE = random.Random(7).randbytes(150_000)  # it has to compress badly: more chunks than between two statuses


async def rollout(f: Fleet, name: str, **spec: Any) -> None:
    body = {"metadata": {"name": name}, "spec": {"firmware": "1.1", "waves": [{"percent": 100}], **spec}}
    await f.request("POST", f"/api/dfu/v1/apps/{APP}/rollouts", json=body)


async def reached(f: Fleet, name: str, state: str) -> None:
    """Wait until a rollout is in a state."""
    with trio.fail_after(120):
        while (await f.request("GET", f"/api/dfu/v1/apps/{APP}/rollouts/{name}")).json()["status"]["state"] != state:
            await trio.sleep(0.1)


async def explained(f: Fleet, device: str) -> dict[str, Any]:
    return dict((await f.request("GET", f"/api/dfu/v1/apps/{APP}/explain/{device}")).json())


async def test_a_board_declines_an_offer_and_is_forced_after_its_date(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        old = firmware("asked", "1.0")
        await f.publish(old, "1.0")
        await f.publish(firmware("asked", "1.1", code=CODE), "1.1")
        board = await f.board("oven", old, wait_s=1)
        f.nursery.start_soon(board.run)
        with trio.fail_after(120):
            while "deferred" not in (await f.status("oven")).get("actual", {}):
                await trio.sleep(0.1)
        await rollout(f, "asks", mode="offer")
        await f.wait("oven", "pending")
        found = await explained(f, "oven")
        assert found["code"] == "deferred" and "something is in the oven" in found["sentences"][0]
        await f.request("POST", f"/api/dfu/v1/apps/{APP}/rollouts/asks/abort", json={"callBack": True})
        until = datetime.now(UTC) + timedelta(seconds=3)
        await rollout(f, "insists", mode="offer", offerUntil=until.isoformat())
        assert (await f.wait("oven", "done"))["deployment"]["chunks"]["total"] > 16
        history = (await f.request("GET", f"/api/dfu/v1/apps/{APP}/history/oven")).json()
        sent = [entry["at"] for entry in history if entry["state"] == "notified"]
        assert len(sent) == 1 and datetime.fromisoformat(sent[0]) >= until - timedelta(milliseconds=1), "declined until then"
        await reached(f, "insists", "finished")


async def test_a_board_keeps_what_it_was_told_to_write_until_it_is_activated(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        old = firmware("good", "1.0")
        await f.publish(old, "1.0")
        await f.publish(firmware("good", "1.1"), "1.1")
        board = await f.board("lamp1", old, wait_s=1)
        f.nursery.start_soon(board.run)
        with trio.fail_after(120):
            while not (await f.status("lamp1")).get("actual"):
                await trio.sleep(0.1)
        await rollout(f, "r", mode="download-only")
        await reached(f, "r", "waiting-for-activation")
        found = await f.status("lamp1")
        assert (found["deployment"]["state"], found["current"]) == ("written", "1.0")
        assert (await explained(f, "lamp1"))["code"] == "download-only"
        await f.request("POST", f"/api/dfu/v1/apps/{APP}/rollouts/r/activate", json={})
        await f.wait("lamp1", "done")
        await reached(f, "r", "finished")
        assert sum(line == "app: running 1.1" for line in board.console) == 1
