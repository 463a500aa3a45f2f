"""A rollout from the command line, over real HTTP devices: good in waves, and one that stops itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import trio

from dfud.cli import rollouts
from dfud.cli.client import CliError, Contexts, Session
from dfud.testing.device import HttpDevice
from tests.cli.test_dfuctl import Dfuctl, dfuctl  # noqa: F401  # a fixture

OLD, NEW, BAD = b"old image " * 400, b"new image " * 400, b"bad image " * 400
SPEC = {"waves": [{"count": 2, "silentS": 600, "soakS": 0}, {"percent": 100, "silentS": 600}], "promote": True}


@pytest.fixture
async def boards(dfuctl: Dfuctl, tmp_path: Path) -> AsyncIterator[list[HttpDevice]]:  # noqa: F811
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    for version, image in (("1.0", OLD), ("1.1", NEW), ("1.2", BAD)):
        (tmp_path / version).write_bytes(image)
        publish = ("firmware", "publish", str(tmp_path / version), "--raw", "--version", version, "--hardware", "esp32c3")
        await dfuctl(*publish)
    async with AsyncExitStack() as stack:
        made = []
        for number in range(6):
            secret = await dfuctl("device", "create", f"d{number}", "-l", f"site={number % 2}")
            client = httpx.AsyncClient(base_url=dfuctl.daemon.urls["http"], auth=(f"d{number}@lamps", secret), timeout=60)
            made.append(HttpDevice(await stack.enter_async_context(client), OLD, "1.0"))
            await made[-1].poll()
        yield made


async def shown(dfuctl: Dfuctl, name: str) -> dict[str, object]:  # noqa: F811
    found: dict[str, object] = json.loads(await dfuctl("-o", "json", "rollout", "show", name))["status"]
    return found


async def live(boards: list[HttpDevice], dfuctl: Dfuctl, name: str, *states: str, bad: str = "") -> dict[str, object]:  # noqa: F811
    """Have the boards poll until the rollout is in one of these states."""
    with trio.fail_after(120):
        while (found := await shown(dfuctl, name))["state"] not in states:
            for board in boards:
                await board.update(good=board.version != "1.0" or not bad)
    return found


async def test_a_good_version_is_rolled_out_and_promoted(dfuctl: Dfuctl, boards: list[HttpDevice], tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    assert "cannot be read" in await dfuctl("rollout", "create", "r", "1.1", "--spec", str(tmp_path / "1.0"), fails=True)
    assert "spec.firmware: 9.9 is not published" in await dfuctl("rollout", "create", "r", "9.9", fails=True)
    await dfuctl("rollout", "create", "r", "1.1", "--spec", str(tmp_path / "spec.json"))
    assert "exists already" in await dfuctl("rollout", "create", "r", "1.1", fails=True)
    await live(boards, dfuctl, "r", "finished")
    assert {board.version for board in boards} == {"1.1"}
    status = await shown(dfuctl, "r")
    assert [wave["done"] for wave in status["waves"]] == [2, 4]  # type: ignore[attr-defined]
    assert "finished" in await dfuctl("rollout", "list")
    assert "finish -> finished" in await dfuctl("rollout", "show", "r", "--watch")
    app = json.loads(await dfuctl("-o", "json", "app", "show", "lamps"))
    assert app["spec"]["firmware"] == {"version": "1.1"}
    assert "create-rollout" in await dfuctl("audit")
    await dfuctl("rollout", "delete", "r", "--yes")
    assert "no rollout r" in await dfuctl("rollout", "show", "r", fails=True)


async def test_a_bad_version_pauses_itself_and_watching_says_so(dfuctl: Dfuctl, boards: list[HttpDevice]) -> None:  # noqa: F811
    await dfuctl("rollout", "create", "bad", "1.2", "--waves", "100")
    found = await live(boards, dfuctl, "bad", "paused", bad="1.2")
    assert found["code"] == "error-threshold"
    assert "devices that answered failed or went back" in await dfuctl("rollout", "show", "bad", "--watch", code=3)
    assert (await dfuctl("rollout", "show", "bad", "--watch", code=3)).splitlines()[0].startswith("bad: paused, wave 1: ")
    found = json.loads(await dfuctl("-o", "json", "rollout", "show", "bad", "--watch", code=3))
    assert found["status"]["code"] == "error-threshold", "one JSON value a line and nothing else"
    assert "pause does nothing there" in await dfuctl("rollout", "pause", "bad", fails=True)
    await dfuctl("rollout", "abort", "bad", "--yes", "--reason", "bad")


async def test_a_channel_is_a_rule_and_a_rollout_may_be_a_draft(dfuctl: Dfuctl, boards: list[HttpDevice]) -> None:  # noqa: F811
    await dfuctl("device", "label", "d0", "channel=beta")
    await dfuctl("channel", "set", "beta", "1.1")
    assert [line.split() for line in (await dfuctl("channel", "list")).splitlines()][1] == ["beta", "1.1", "channel=beta"]
    assert json.loads(await dfuctl("-o", "json", "channel", "list"))[0]["firmware"] == {"version": "1.1"}
    with trio.fail_after(120):
        while boards[0].version != "1.1":  # at first its package may be being made
            await boards[0].update()
    assert boards[1].version == "1.0"
    assert "nothing-wanted" in await dfuctl("drift")
    assert "It runs what it should, 1.1." in await dfuctl("explain", "d0")
    assert "1.1 is wanted by rule 1 of the app" in await dfuctl("firmware", "delete", "1.1", "--yes", fails=True)
    await dfuctl("channel", "remove", "beta")
    assert "no channel beta in app lamps" in await dfuctl("channel", "remove", "beta", fails=True)
    assert "-l: expected labels" in await dfuctl("rollout", "create", "all", "1.1", "-l", "", fails=True)
    assert "give its VERSION" in await dfuctl("rollout", "create", "none", fails=True)
    await dfuctl("rollout", "create", "later", "1.1", "-l", "site=1", "--waves", "100", "--draft", "--priority", "3")
    assert json.loads(await dfuctl("-o", "json", "rollout", "show", "later"))["spec"]["priority"] == 3
    assert "1.1 is wanted by rollout later" in await dfuctl("firmware", "delete", "1.1", "--yes", fails=True)
    assert (await shown(dfuctl, "later"))["state"] == "draft"
    await dfuctl("rollout", "start", "later")
    await live(boards, dfuctl, "later", "finished")
    assert [b.version for b in boards] == ["1.1", "1.1", "1.0", "1.1", "1.0", "1.1"]


def test_watching_goes_on_while_the_registry_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def at(state: str) -> dict[str, object]:
        return {"status": {"state": state}}

    away = CliError("it is away", transient=True)
    answers: list[object] = [away, away, at("telling"), at("finished")]

    def request(self: Session, method: str, path: str) -> object:
        answer = answers.pop(0)
        if isinstance(answer, CliError):
            raise answer
        return answer

    monkeypatch.setattr(Session, "request", request)
    monkeypatch.setattr(rollouts, "WATCH_S", 0.0)
    session = Session(Contexts(tmp_path / "config.toml"), None, "lamps", "text")
    seen = list(rollouts._changes(session, "r", at("telling")))
    assert [found["status"]["state"] for found in seen] == ["telling", "finished"]
    assert capsys.readouterr().err == "it is away; trying again\n"
    answers.append(CliError("no rollout r in app lamps"))
    with pytest.raises(CliError, match="no rollout r"):
        list(rollouts._changes(session, "r", at("telling")))
