"""Watching one kind of firmware on a device whose other kind did not get where it should."""

from __future__ import annotations

from typing import Any

from dfud.cli.state import Judged, Outcome, judge


def said(*, app: str, app_reason: str, system: str, deployment: dict[str, Any]) -> dict[str, Any]:
    in_sync = {"status": "True" if not app_reason else "False", "reason": app_reason, "message": "its traceback"}
    return {
        "current": system,
        "target": "2.0",
        "conditions": [{"type": "InSync", "status": "False", "reason": "rolled-back", "message": "of the system"}],
        "app": {"current": app, "target": "dev-2", "inSync": in_sync},
        "deployment": deployment,
    }


LEFT = {"version": "2.0", "state": "rolled-back", "blocked": True}


def test_an_application_is_judged_alone() -> None:
    under_way = said(app="dev-1", app_reason="pending", system="1.0", deployment=LEFT)
    assert judge(under_way, app="dev-2") == Judged(None), "the system's end says nothing of it"
    assert judge(said(app="dev-2", app_reason="", system="1.0", deployment=LEFT), app="dev-2").outcome is Outcome.IN_SYNC
    left = judge(said(app="dev-1", app_reason="rolled-back", system="1.0", deployment=LEFT), app="dev-2")
    assert left == Judged(Outcome.ROLLED_BACK, "its traceback")


def test_a_system_is_judged_alone() -> None:
    left = {"version": "dev-2", "state": "rolled-back", "blocked": True}
    assert judge(said(app="dev-1", app_reason="rolled-back", system="1.0", deployment=left), "2.0") == Judged(None)
    done = {"version": "2.0", "state": "done"}
    assert judge(said(app="dev-1", app_reason="rolled-back", system="2.0", deployment=done), "2.0").outcome is Outcome.IN_SYNC
    assert judge(said(app="dev-1", app_reason="pending", system="1.0", deployment=LEFT), "2.0").outcome is Outcome.ROLLED_BACK


def test_both_are_judged_together() -> None:
    found = said(app="dev-2", app_reason="", system="1.0", deployment=LEFT)
    assert judge(found, "2.0", "dev-2").outcome is Outcome.ROLLED_BACK
    assert judge(found).outcome is Outcome.ROLLED_BACK
