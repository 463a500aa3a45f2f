"""What a device's status says, in a few words, and whether an update of it has ended. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Outcome(StrEnum):
    """How an update of one device ended, as far as somebody watches it."""

    IN_SYNC = "in sync"
    WRITTEN = "written"  # as it was asked for: download only
    ROLLED_BACK = "rolled back"
    FAILED = "failed"
    CANCELLED = "cancelled"
    IMPOSSIBLE = "cannot be done"  # the condition says why
    SUPERSEDED = "superseded"  # something else is wanted of the device by now
    GONE = "deleted"
    WAITING = "not finished"  # when the time was over


GOOD = frozenset({Outcome.IN_SYNC, Outcome.WRITTEN})
_FINAL = {
    "rolled-back": Outcome.ROLLED_BACK,
    "failed": Outcome.FAILED,
    "cancelled": Outcome.CANCELLED,
    "done": Outcome.ROLLED_BACK,  # done, and yet it runs something else: it went back later
}
_IMPOSSIBLE = frozenset({"BadSpec", "NotPublished", "NothingDesired", "NotTrusted", "NotPackaged", "NoBanks"})


# What the registry calls CamelCase, for people.
_WORDS = {
    "BadSpec": "spec.firmware cannot be read",
    "Hold": "on hold",
    "NeverSeen": "never seen",
    "NoBanks": "no app banks",
    "NotPackaged": "no package",
    "NotPublished": "not published",
    "NotTrusted": "not trusted",
    "NothingDesired": "nothing wanted",
    "Recalled": "recalled",
    "Trial": "on trial",
}


class Judged(msgspec.Struct, frozen=True):
    """outcome None: it goes on. why: a few words, or ""."""

    outcome: Outcome | None
    why: str = ""


def in_sync(firmware: dict[str, Any]) -> dict[str, Any]:
    """Return the condition InSync of a status.firmware; an empty one if it has none."""
    found: dict[str, Any] = next((c for c in firmware.get("conditions", ()) if c.get("type") == "InSync"), {})
    return found


def app_in_sync(firmware: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of the app firmware alone, as the condition InSync; that of the whole device if nothing is."""
    found: dict[str, Any] = firmware.get("app", {}).get("inSync") or in_sync(firmware)
    return found


def concerned(firmware: dict[str, Any]) -> dict[str, Any]:
    """Return the deployment if it is about the target; {} if it is an older one, about another version."""
    found: dict[str, Any] = firmware.get("deployment") or {}
    targets = (firmware.get("target"), firmware.get("app", {}).get("target"))
    return found if found.get("version") in targets else {}


def judge(
    firmware: dict[str, Any], version: str | None = None, app: str | None = None, *, download_only: bool = False
) -> Judged:
    """Say whether the update of a device to `version` and `app` (None: to whatever it should run) has ended, and how.

    An older deployment, one of another version or one that a retry has let go, says nothing about this one; nor does what became
    of the kind of firmware that is not named.
    """
    condition = app_in_sync(firmware) if app is not None and version is None else in_sync(firmware)
    target = firmware.get("target", "")
    if version is not None and target != version:
        return Judged(Outcome.SUPERSEDED, f"it should run {target} now" if target else "nothing is wanted of it now")
    program = firmware.get("app", {}).get("target", "")
    if app is not None and program != app:
        return Judged(
            Outcome.SUPERSEDED, f"it should run app {program} now" if program else "no app is wanted of it now"
        )
    if condition.get("status") == "True":
        return Judged(Outcome.IN_SYNC)
    reason = condition.get("reason", "")
    if reason in _IMPOSSIBLE:
        return Judged(Outcome.IMPOSSIBLE, condition.get("message", "") or reason)
    if app is not None and version is None and reason in _FINAL:
        # What is shown as the device's deployment may be the system's.
        return Judged(_FINAL[reason], condition.get("message", ""))
    deployment = concerned(firmware)
    if deployment.get("version") not in (version, app) and (version, app) != (None, None):
        deployment = {}
    state = deployment.get("state", "")
    if version is not None and app is None and state == "done" and firmware.get("current") == version:
        return Judged(Outcome.IN_SYNC)
    if download_only and state == "written":
        return Judged(Outcome.WRITTEN)
    # One that does not block the image is followed by another attempt.
    if state in _FINAL and deployment.get("blocked"):
        return Judged(_FINAL[state], condition.get("message", "") or result_text(deployment))
    return Judged(None)


def state_text(firmware: dict[str, Any], *, of_app: bool = False) -> str:
    """Say in a few words how far a device is. of_app: only how far its app firmware is, whatever became of its system."""
    condition = app_in_sync(firmware) if of_app else in_sync(firmware)
    if condition.get("status") == "True":
        return "in sync"
    deployment = concerned(firmware)
    if deployment.get("state") == "fetching" and (not of_app or is_of_app(deployment)):
        return f"fetching {deployment['progress']:.0f} %"
    found = str(condition.get("reason") or condition.get("status") or "unknown")
    return _WORDS.get(found, found)


def is_of_app(deployment: dict[str, Any]) -> bool:
    return deployment.get("kind") == "app"


def line(firmware: dict[str, Any], *, of_app: bool = False) -> str:
    """Say what a device runs, what it should run, and how far it is. of_app: how far its app firmware is."""
    app = firmware.get("app")
    if of_app and app is not None:
        return f"app {app['current'] or 'none'} -> {app['target'] or '?'}: {state_text(firmware, of_app=True)}"
    system = f"{firmware.get('current') or '?'} -> {firmware.get('target') or '?'}"
    if app is None:
        return f"{system}: {state_text(firmware)}"
    program = f"app {app['current'] or 'none'}" + (f" -> {app['target']}" if app["target"] else "")
    system = system if firmware.get("target") else str(firmware.get("current") or "?")
    return f"{system}, {program}: {state_text(firmware)}"


def result_text(deployment: dict[str, Any]) -> str:
    """Return the reason of a deployment's end in a few words, or ""."""
    result = deployment.get("result")
    if not result:
        return ""
    crashes = result.get("crashes", 0)
    reason = str(result["reason"])
    return f"{reason} after {crashes} {'crash' if crashes == 1 else 'crashes'}" if crashes else reason
