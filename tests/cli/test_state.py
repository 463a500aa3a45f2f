"""Whether an update has ended, and how, judged by what the registry says of the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfud.cli.client import Contexts, Session
from dfud.cli.state import Judged, Outcome, judge, line, state_text
from dfud.cli.watch import Watch, exit_code, show_result, tell_outcomes

TRACEBACK = "Traceback (most recent call last):\nIndexError: of the app\n"


def firmware(
    status: str = "False", reason: str = "", *, target: str = "1.2", state: str = "", of: str = "1.2", blocked: bool = False
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "conditions": [{"type": "InSync", "status": status, **({"reason": reason} if reason else {})}],
        "current": "1.1",
        "target": target,
    }
    if state:
        found["deployment"] = {"version": of, "state": state, "progress": 40.0, **({"blocked": True} if blocked else {})}
    return found


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (firmware("True"), Outcome.IN_SYNC),
        (firmware("True", state="rolled-back", blocked=True), Outcome.IN_SYNC),
        (firmware(reason="pending"), None),
        (firmware("Unknown", "NeverSeen"), None),
        (firmware(reason="fetching", state="fetching"), None),
        (firmware(reason="rolled-back", state="rolled-back", blocked=True), Outcome.ROLLED_BACK),
        (firmware(reason="failed", state="failed", blocked=True), Outcome.FAILED),
        (firmware(reason="cancelled", state="cancelled", blocked=True), Outcome.CANCELLED),
        # It ran 1.2, confirmed it, and went back later.
        (firmware(reason="rolled-back", state="done", blocked=True), Outcome.ROLLED_BACK),
        # What became of an older version says nothing about this one.
        (firmware(reason="failed", state="failed", of="1.1", blocked=True), None),
        (firmware(reason="done", state="done", of="1.1"), None),
        # A retry has let it go; an update that was cancelled for another target begins again.
        (firmware(reason="rolled-back", state="rolled-back"), None),
        (firmware(reason="cancelled", state="cancelled"), None),
        (firmware("Unknown", "BadSpec"), Outcome.IMPOSSIBLE),
        (firmware(reason="NotPublished"), Outcome.IMPOSSIBLE),
        (firmware("True", target="1.3"), Outcome.SUPERSEDED),
        (firmware(reason="written", state="written"), None),
    ],
)
def test_an_update_has_ended_when_nothing_more_will_happen(found: dict[str, Any], outcome: Outcome | None) -> None:
    assert judge(found, "1.2").outcome == outcome


def test_a_download_ends_when_it_is_written() -> None:
    assert judge(firmware(reason="written", state="written"), "1.2", download_only=True).outcome is Outcome.WRITTEN


def test_progress_of_an_older_deployment_is_not_shown_as_this_one_s() -> None:
    assert state_text(firmware(reason="fetching", state="fetching")) == "fetching 40 %"
    assert line(firmware(reason="pending", state="fetching", of="1.1")) == "1.1 -> 1.2: pending"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("cancelled", "  cancelled\n  | by eve\n"), ("pending", "  1.2, yesterday: cancelled\n  | by eve\n")],
)
def test_what_a_retry_let_go_is_shown_as_of_before(reason: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`-> 1.2: pending`, and below it "ok": neither the reason nor that it is over was to be seen."""
    found = firmware(reason=reason, state="cancelled", blocked=reason == "cancelled")
    found["deployment"] |= {"updated": "yesterday", "result": {"code": 0, "reason": "cancelled", "text": "by eve", "crashes": 0}}
    show_result(found)
    assert capsys.readouterr().out == shown


def test_of_an_app_alone_its_own_state_and_end_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """An app that was pushed was shown as "rolled-back" throughout, and its end as the traceback of the system before it."""
    found = firmware(reason="rolled-back", state="rolled-back", blocked=True)
    found["deployment"] |= {"result": {"code": 1, "reason": "crashed", "text": "OSError: of the system", "crashes": 3}}
    found["app"] = {"current": "3.0", "target": "3.1", "inSync": {"status": "False", "reason": "Trial"}}
    assert line(found, of_app=True) == "app 3.0 -> 3.1: on trial"
    assert line(found) == "1.1 -> 1.2, app 3.0 -> 3.1: rolled-back"
    found["app"]["inSync"] = {"status": "False", "reason": "rolled-back", "message": TRACEBACK}
    assert tell(found, app="3.1", out=capsys) == (
        "lamp1: rolled back: IndexError: of the app\n  | Traceback (most recent call last):\n  | IndexError: of the app\n"
        "  It is not sent again by itself; `dfuctl retry lamp1` lets it try again.\n"
    )


def test_an_end_is_told_in_a_line_and_then_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    found = firmware(reason="rolled-back", state="rolled-back", blocked=True)
    found["conditions"][0]["message"] = TRACEBACK
    found["deployment"] |= {"result": {"code": 1, "reason": "crashed", "text": TRACEBACK, "crashes": 3}}
    assert tell(found, version="1.2", out=capsys) == (
        "lamp1: rolled back: IndexError: of the app\n  crashed after 3 crashes\n"
        "  | Traceback (most recent call last):\n  | IndexError: of the app\n"
        "  It is not sent again by itself; `dfuctl retry lamp1` lets it try again.\n"
    )


def tell(found: dict[str, Any], *, version: str | None = None, app: str | None = None, out: pytest.CaptureFixture[str]) -> str:
    session = Session(Contexts(Path("nowhere")), None, "lamps", "text")
    seen = Watch(session, ["lamp1"], version=version, app=app)
    seen.found["lamp1"], seen.outcomes["lamp1"] = found, judge(found, version, app)
    tell_outcomes(session, seen)
    return out.readouterr().out


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([Outcome.IN_SYNC, Outcome.WRITTEN], 0),
        ([Outcome.IN_SYNC, Outcome.WAITING], 4),
        ([Outcome.WAITING, Outcome.ROLLED_BACK], 3),
        *(([Outcome.IN_SYNC, bad], 3) for bad in Outcome if bad not in (Outcome.IN_SYNC, Outcome.WRITTEN, Outcome.WAITING)),
    ],
)
def test_the_exit_code_tells_how_it_went(outcomes: list[Outcome], code: int) -> None:
    assert exit_code(Judged(outcome) for outcome in outcomes) == code
