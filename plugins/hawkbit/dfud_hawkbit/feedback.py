"""A deployment as hawkBit's feedback. Pure.

hawkBit's limits: 50 messages of 512 characters in one feedback, of which the code is one; more make it refuse the whole, and
a `closed` that is refused leaves the action open. `timestamp` is left out: a stale one leaves the target pending for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from dfud.api import Deployment, HistoryEntry, State
from dfud_hawkbit.text import acceptable, pieces

MESSAGES_MAX = 50
DETAIL_CHARS = 512
CODE_MAX = (1 << 31) - 1  # a Java int
STEPS = 10  # progress is told in tenths

# How each state of a deployment reads in hawkBit; what is not here says nothing new.
EXECUTION = {
    State.NOTIFIED: "proceeding",
    State.FETCHING: "download",
    State.WRITTEN: "downloaded",
    State.TRIAL: "proceeding",
    State.DONE: "closed",
    State.ROLLED_BACK: "closed",
    State.FAILED: "closed",
}


def details(lines: Iterable[str], most: int = MESSAGES_MAX) -> list[str]:
    """Cut `lines` to what hawkBit takes; what was left out is said. Nothing that stands first or last is lost."""
    found: list[str] = []
    for line in lines:
        found += pieces(acceptable(line), DETAIL_CHARS)
    if len(found) <= most:
        return found
    half = most // 2
    left_out = len(found) - (most - 1)
    return [*found[: half - 1], f"({left_out} lines are left out)", *found[len(found) - (most - half) :]]


def body(
    execution: str, finished: str, lines: Iterable[str], *, code: int | None = None, done: int = 0, of: int = 0
) -> Any:
    """Return the body of one feedback. finished: none, success or failure."""
    result: dict[str, Any] = {"finished": finished}
    if of:
        result["progress"] = {"cnt": done, "of": of}
    status: dict[str, Any] = {"execution": execution, "result": result}
    status["details"] = details(lines, MESSAGES_MAX - (code is not None))
    if code is not None:
        status["code"] = min(code, CODE_MAX)
    return {"status": status}


def bare(told: Any) -> Any:
    """Return a feedback with what decides alone: nothing in it is of a stranger's making."""
    status = told["status"]
    return {"status": {"execution": status["execution"], "result": {"finished": status["result"]["finished"]}}}


def step(deployment: Deployment) -> int:
    """Return how many tenths of the transfer are done."""
    return STEPS * deployment.chunks_done // deployment.chunks_total if deployment.chunks_total else 0


def at(time_s: float) -> str:
    """Return a time as people read it: UTC, to the second; "?" for one that no calendar has."""
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "?"


def line(entry: HistoryEntry, version: str = "") -> str:
    """Return one state with its time, and its version where that is not `version`."""
    of = f" {entry.version}:" if version and entry.version != version else ""
    return f"{at(entry.at_s)}{of} {entry.state} ({entry.event}) {entry.text}".rstrip()


def diagnostics(d: Deployment) -> list[str]:
    """Return what dfud knows of why a deployment ended badly."""
    lines = [f"firmware {d.version} ended {d.state}: code {d.code} {d.text}".rstrip()]
    if d.from_version:
        lines.append(f"it came from {d.from_version} and runs that")
    if d.attempts:
        lines.append(f"transfers given up: {d.attempts}")
    if d.crashes:
        lines.append(f"crashes: {d.crashes}, reset reason {d.reset_reason}")
    if d.record:
        lines.append(f"the bootloader's record: {d.record.hex()}")
    return lines


def of_deployment(d: Deployment, news: Sequence[HistoryEntry]) -> Any | None:
    """Return the feedback for the state that `d` is in. news: history that hawkBit has not heard, oldest first.

    None: there is nothing to say. PENDING says something only after an attempt failed.
    """
    lines = [line(entry, d.version) for entry in news]
    if d.state is State.DONE:
        return body("closed", "success", [f"{d.version} runs and is confirmed", *lines])
    if d.state in (State.ROLLED_BACK, State.FAILED):
        return body("closed", "failure", [*diagnostics(d), *lines], code=d.code)
    if d.state is State.PENDING:
        return body("proceeding", "none", lines, code=d.code) if d.attempts and lines else None
    execution = EXECUTION.get(d.state)
    if execution is None:
        return None
    if d.state is State.FETCHING and d.chunks_total:
        # hawkBit takes `progress` and drops it: people read it here.
        percent = 100 * d.chunks_done // d.chunks_total
        lines.append(f"{percent} % ({d.chunks_done} of {d.chunks_total} chunks)")
    return body(execution, "none", lines, done=d.chunks_done, of=d.chunks_total)
