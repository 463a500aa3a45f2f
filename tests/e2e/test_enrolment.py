"""The real agent enrols with a claim code: at its first contact, through lost answers and power cuts, and once only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio

from devicefw.sim.board import Board
from dfud.testing.link import Faults, FaultyLink
from tests.e2e.fleet import APP, CONFIRM_S, Fleet, firmware, fleet
from tests.real_parts import require

OLD, NEW = firmware("good", "1.0"), firmware("good", "1.1")


async def claim(f: Fleet, **fields: Any) -> str:
    code = str((await f.request("POST", f"/api/dfu/v1/apps/{APP}/claims", json=fields)).json()["code"])
    f.secrets.append(code)
    return code


def board(f: Fleet, name: str, code: str, **config: Any) -> Board:
    settings = {"url": f.daemon.urls["http"], "app": APP, "claim": code, "confirm_s": CONFIRM_S, "backoff_ms": 300}
    found = Board(f.directory / name, {**settings, **config}, image=OLD)
    f.boards.append(found)
    return found


async def names(f: Fleet) -> list[str]:
    found = (await f.request("GET", f"/api/registry/v1alpha1/apps/{APP}/devices")).json()
    return [d["metadata"]["name"] for d in found]


async def left(f: Fleet) -> int:
    return int((await f.request("GET", f"/api/dfu/v1/apps/{APP}/claims")).json()[0]["left"])


async def test_one_image_for_a_batch_enrols_and_is_updated(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        await f.publish(NEW, "1.1")
        await f.request("POST", f"/api/dfu/v1/apps/{APP}/update", json={"firmware": {"version": "1.1"}})
        code = await claim(f, uses=5)
        for number in range(2):
            f.nursery.start_soon(board(f, f"lamp{number}", code).run)
        found: list[str] = []
        with trio.fail_after(120):
            while len(found) < 2:
                await trio.sleep(0.1)
                found = await names(f)
        for name in found:
            assert len(name) == 12, "named by the chip's id"
            assert (await f.wait(name, "done", timeout_s=120))["current"] == "1.1"
        assert await left(f) == 3
        assert len({(b.directory / "nvs-dfud.json").read_text() for b in f.boards}) == 2, "each has its own secret"


async def test_a_lost_answer_costs_another_try_and_not_another_use(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        code = await claim(f, uses=1)
        link = FaultyLink(f.daemon.ports["http"], Faults(drop_after=[1, 3, 200]))
        port = await f.nursery.start(link.run)
        f.nursery.start_soon(board(f, "lamp", code, device="lamp1", url=f"http://127.0.0.1:{port}").run)
        with trio.fail_after(120):
            while (await f.status("lamp1")).get("current") != "1.0":
                await trio.sleep(0.1)
        assert link.dropped >= 2
        assert (await names(f), await left(f)) == (["lamp1"], 0)


async def test_the_secret_outlives_resets_and_the_code_is_not_needed_again(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        code = await claim(f)
        lamp = board(f, "lamp", code, device="lamp1")
        f.nursery.start_soon(lamp.run)
        with trio.fail_after(120):
            while (await f.status("lamp1")).get("current") != "1.0":
                await trio.sleep(0.1)
        before = json.loads((lamp.directory / "nvs-dfud.json").read_text())
        await f.request("DELETE", f"/api/dfu/v1/apps/{APP}/claims/{code[:10]}")
        await f.publish(NEW, "1.1")
        await f.want("lamp1", "1.1")
        await f.wait("lamp1", "done", timeout_s=120)
        assert [b.slot for b in lamp.boots] == [0, 1]
        kept = json.loads((lamp.directory / "nvs-dfud.json").read_text())
        assert {"secret", "claim", "starts"} <= set(before)
        assert kept.pop("starts") != before.pop("starts"), "each start is counted"
        assert kept == before | {"backoff": 0}, "nothing was changed but the updates counted, which a confirmation takes back"


async def test_a_device_that_can_keep_no_secret_runs_its_application_and_enrols_once_it_can(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        lamp = board(f, "lamp", await claim(f), device="lamp1")
        in_the_way = lamp.directory / "nvs-dfud.json.new"
        in_the_way.mkdir(parents=True)  # each commit to NVS fails
        f.nursery.start_soon(lamp.run)
        tries = "dfu: not enrolled before the secret is kept"
        with trio.fail_after(120):
            while lamp.console.count(tries) < 3 or "app: confirmed 1.0" not in lamp.console:
                await trio.sleep(0.05)
        assert any("nvs: the secret cannot be kept" in line for line in lamp.console)
        assert await names(f) == [], "the server knows no secret that may be lost"
        in_the_way.rmdir()
        with trio.fail_after(120):
            while (await f.status("lamp1")).get("current") != "1.0":
                await trio.sleep(0.1)
        assert len(lamp.boots) == 1 and {"secret", "claim"} <= set(json.loads((lamp.directory / "nvs-dfud.json").read_text()))


async def test_a_code_that_is_no_good_keeps_the_device_out_and_alive(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        lamp = board(f, "lamp", "dfc_abcdef_0000000000000000000000", device="lamp1")
        f.nursery.start_soon(lamp.run)
        with trio.fail_after(120):
            while not any("enrolment: status 403" in line for line in lamp.console) or "app: confirmed 1.0" not in lamp.console:
                await trio.sleep(0.05)
        assert await names(f) == []
        assert len(lamp.boots) == 1
