"""`dfuctl rollout plan`: what a rollout would do, by real packages; and what failed at the top of `show`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from dfud.cli.plan import duration, say_failures, size
from dfud.testing.device import HttpDevice
from tests.cli.test_dfuctl import Dfuctl, dfuctl  # noqa: F401  # a fixture
from tests.cli.test_rollouts import NEW, boards, live  # noqa: F401  # fixtures


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (123_456, "123 KB"), (2.5e9, "2.5 GB")])
def test_bytes_are_told_as_people_read_them(number: int, text: str) -> None:
    assert size(int(number)) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 min"), (90, "2 min"), (7260, "2 h 1 min"), (200_000, "2 d 7 h")])
def test_times_are_told_as_people_read_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_a_plan_weighs_real_packages_and_sends_nothing(dfuctl: Dfuctl, boards: list[HttpDevice]) -> None:  # noqa: F811
    await dfuctl("device", "create", "new")
    told = await dfuctl("rollout", "plan", "1.1", "--waves", "50,100", "--per-minute", "60")
    assert "7 devices match: 6 would be told, 0 run 1.1 already, 0 would not get it, 1 later" in told
    assert "never-seen (later)" in told and "It has never reported." in told
    assert "On the air: " in told and "about" not in told.split("On the air: ")[1].split("\n")[0], told
    found: dict[str, Any] = json.loads(await dfuctl("-o", "json", "rollout", "plan", "1.1"))
    (base,) = found["bytes"]["bases"]
    assert (base["from"], base["devices"], base["estimate"]) == ("1.0", 6, False)
    assert 0 < base["package"] < len(NEW) and found["bytes"]["total"] == 6 * base["package"]
    assert [wave["devices"] for wave in found["time"]["waves"]] == [1, 1, 4]
    # It sends nothing, and leaves nothing behind but packages.
    assert "rollout" not in await dfuctl("audit") and await dfuctl("-o", "json", "rollout", "list") == "[]"
    for board in boards:
        assert (await board.poll()).type.name == "WAIT"  # type: ignore[union-attr]
    assert "spec.firmware: 9.9 is not published" in await dfuctl("rollout", "plan", "9.9", fails=True)
    assert "give its VERSION" in await dfuctl("rollout", "plan", fails=True)
    assert "no rollout x" in await dfuctl("rollout", "plan", "--of", "x", fails=True)
    # The package that was weighed is the one that is sent.
    await dfuctl("rollout", "create", "r", "1.1", "--waves", "100")
    assert "leave the version" in await dfuctl("rollout", "plan", "--of", "r", "--promote", fails=True)
    with trio.fail_after(120):
        while boards[0].version == "1.0":  # the rollout may not have started yet
            await boards[0].update()
            await trio.sleep(0.05)
    assert {command.total_bytes for command in boards[0].commands if command.chunks} == {base["package"]}
    found = json.loads(await dfuctl("-o", "json", "rollout", "plan", "--of", "r"))
    assert (found["devices"]["inSync"], found["devices"]["told"]) == (1, 5)
    async with dfuctl.daemon.client() as client:
        path = "/api/dfu/v1/apps/lamps/rollouts:plan"
        plain = (await client.post(path, json={"spec": {"firmware": "1.1"}})).json()
        assert plain["devices"]["matching"] == 7
        for params, body in (({"silentDays": "0"}, {"spec": {"firmware": "1.1"}}), ({}, {"spec": {"firmware": "1.1", "waves": []}})):
            answer = await client.post(path, json=body, params=params)
            assert answer.status_code == 400, answer.text


async def test_the_traceback_stands_at_the_top_of_show(dfuctl: Dfuctl, boards: list[HttpDevice]) -> None:  # noqa: F811
    await dfuctl("rollout", "create", "bad", "1.2", "--waves", "100")
    await live(boards, dfuctl, "bad", "paused", bad="1.2")
    told = (await dfuctl("rollout", "show", "bad")).splitlines()
    assert "rolled-back in wave 1, crashed: " in told[0] and "more" in told[0]
    assert any(line.startswith("bad: 1.2, paused") for line in told[1:])


def test_failures_of_one_kind_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Fake:
        def say(self, text: str) -> None:
            print(text)

    def failure(device: str, fingerprint: str, text: str) -> dict[str, Any]:
        same = {"wave": 1, "state": "rolled-back", "code": "crashed", "title": text.splitlines()[-1]}
        return {"device": device, "fingerprint": fingerprint, "text": text, **same}

    trace = "Traceback (most recent call last):\n  File \"m.py\", line 1\nValueError: no"
    found = {"status": {"failures": [failure("d1", "a", trace), failure("d2", "a", trace), failure("d3", "b", "boom\x1b[31m")]}}
    say_failures(Fake(), found)  # type: ignore[arg-type]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "d1 and 1 more: rolled-back in wave 1, crashed: ValueError: no"
    assert told[1:4] == ["  Traceback (most recent call last):", '    File "m.py", line 1', "  ValueError: no"]
    assert told[-1] == "  boom\\x1b[31m"
