"""The fleet from the command line, over real HTTP devices: numbers, crashes, what stands still, and what /metrics says."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest
import trio

from dfud.cli import fleet, rollout_pictures, show
from dfud.cli.fleet import BAR, bar, spark
from dfud.testing.device import HttpDevice
from tests.cli.test_dfuctl import Dfuctl, dfuctl  # noqa: F401  # a fixture
from tests.cli.test_rollouts import boards  # noqa: F401  # a fixture


def test_bars_and_sparks_show_what_there_is() -> None:
    assert bar(0.0) == " " * BAR and bar(1.0) == "█" * BAR and bar(2.0) == "█" * BAR
    assert bar(0.0001).strip() == "▏" and len(bar(0.37)) == BAR
    assert spark([0, 5, 10]) == "▁▅█" and spark([0, 0]) == "▁▁" and spark([]) == ""


def test_nothing_is_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    version = "2026.11.27-rc1+a-long-name-as-builds-have-them-with-[/bold]-and-\x1b-in-it"
    shown = "2026.11.27-rc1+a-long-name-as-builds-have-them-with-[/bold]-and-\\x1b-in-it"
    show.print_table(fleet._bars("VERSION", {version: 1_234_567}, {version: [1] * 24}, 168))
    told = capsys.readouterr().out
    assert shown in told and "1234567" in told and "…" not in told and "\x1b" not in told
    waves = [{"expected": 9_999_999, "told": 8_888_888, "done": 7_777_777, "underWay": 6_666_666, "failed": 5_555_555, "left": 4}]
    status = {"state": "paused", "wave": 1, "waves": waves, "reason": "too many failed " * 8}
    found = {"metadata": {"name": "r"}, "spec": {"firmware": version}, "status": status}
    show.say(rollout_pictures.title(found))
    show.print_table(rollout_pictures.rows(found))
    told = capsys.readouterr().out
    assert shown in told and all(str(n) * 7 in told for n in (9, 7, 6, 5)) and "…" not in told
    assert len(told.splitlines()) == 3


async def test_a_fleet_in_numbers(dfuctl: Dfuctl, boards: list[HttpDevice], tmp_path: Path) -> None:  # noqa: F811
    await dfuctl("update", "d0", "1.1")
    await dfuctl("update", "d1", "1.2")
    assert await boards[0].update()
    await boards[1].update(good=False, text="boom at 0x42001234")
    await boards[2].poll()
    told = await dfuctl("fleet")
    assert "6 devices; heard of within the hour 6, the day 6, the week 6; never 0" in told
    assert "1.0" in told and "83%" in told and "rolled-back" in told and "dfuctl fleet --crash" in told
    found = json.loads(await dfuctl("-o", "json", "fleet"))
    assert found["versions"] == {"1.0": 5, "1.1": 1} and found["states"]["done"] == 1
    assert found["codes"] == {"crashed": 1}
    (crash,) = found["crashes"]
    assert crash["devices"] == 1 and crash["sinceVersion"] == "1.2" and crash["among"] == ["d1"]
    whole = json.loads(await dfuctl("-o", "json", "fleet", "--crash", crash["fingerprint"]))
    assert whole["text"] and crash["title"] in await dfuctl("fleet", "--crash", crash["fingerprint"])
    assert "no crash 123" in await dfuctl("fleet", "--crash", "123", fails=True)
    assert "0 updates under way; 0 have not moved" in await dfuctl("attention")
    assert "At risk" not in told
    await dfuctl("firmware", "recall", "1.1", "--reason", "it burns", "--yes")
    assert "At risk: 1 device on 1.1, which is recalled: it burns" in await dfuctl("fleet")
    # What is linked is there.
    async with dfuctl.daemon.client() as client:
        assert (await client.get(crash["link"])).json() == whole
        (raw,) = [(await client.get(link)).json() for link in crash["records"]]
        assert raw[0]["result"]["text"] == whole["text"]
        await dfuctl_metrics(client)


async def dfuctl_metrics(client: httpx.AsyncClient) -> None:
    with trio.fail_after(120):
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            if 'dfud_fleet_devices{app="lamps",version="1.0"} 5' in lines and "dfud_fleet_crashing" in "".join(lines):
                break
            await trio.sleep(0.2)
    assert 'dfud_fleet_devices{app="lamps",version="1.1"} 1' in lines
    assert 'dfud_fleet_failures{app="lamps",code="crashed"} 1' in lines
    assert 'dfud_fleet_seen{app="lamps",within="1h"} 6' in lines


async def test_numbers_are_exact_when_dfud_is_killed_in_the_middle_of_updates(
    dfuctl: Dfuctl,  # noqa: F811
    boards: list[HttpDevice],  # noqa: F811
    nursery: trio.Nursery,
) -> None:
    async def go(number: int) -> None:
        """Go the whole way, whatever hangs up in between."""
        while boards[number].version != "1.1":
            try:
                await boards[number].update()
            except (httpx.HTTPError, AssertionError):
                await trio.sleep(0.05)

    await dfuctl("update", "-l", "site", "1.1")
    for round_ in range(2):
        with trio.move_on_after(0.4 + round_ / 2):
            async with trio.open_nursery() as updating:
                for number in range(len(boards)):
                    updating.start_soon(go, number)
        dfuctl.daemon.signal(signal.SIGKILL)
        await dfuctl.ended.wait()
        dfuctl.ended = trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await dfuctl.daemon.run(task_status=task_status)
            dfuctl.ended.set()

        await nursery.start(run)
        found = json.loads(await dfuctl("-o", "json", "fleet"))
        devices = [one["status"]["firmware"] for one in json.loads(await dfuctl("-o", "json", "device", "list"))]
        states = Counter(d["deployment"]["state"] if "deployment" in d else "none" for d in devices)
        assert found["versions"] == dict(Counter(d["current"] for d in devices)) and found["states"] == dict(states)
    async with trio.open_nursery() as updating:
        for number in range(len(boards)):
            updating.start_soon(go, number)
    for board in boards:
        await board.poll()
    found = json.loads(await dfuctl("-o", "json", "fleet"))
    assert found["versions"] == {"1.1": 6} and found["states"] == {"done": 6}


async def test_counts_survive_a_kill_and_go_with_devices_and_app(
    dfuctl: Dfuctl, boards: list[HttpDevice], nursery: trio.Nursery  # noqa: F811
) -> None:
    await dfuctl("device", "delete", "d5", "--yes")
    dfuctl.daemon.signal(signal.SIGKILL)
    await dfuctl.ended.wait()
    await nursery.start(dfuctl.daemon.run)
    found = json.loads(await dfuctl("-o", "json", "fleet"))
    assert (found["devices"], found["versions"], found["states"]) == (5, {"1.0": 5}, {"none": 5})
    await dfuctl("app", "delete", "lamps", "--yes")
    await dfuctl("app", "create", "lamps", "--unsigned")
    found = json.loads(await dfuctl("-o", "json", "fleet"))
    assert (found["devices"], found["versions"], found["adoption"][-1]["versions"]) == (0, {}, {})
