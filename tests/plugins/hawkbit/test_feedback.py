"""A deployment as feedback, within what hawkBit takes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from dfud_hawkbit import feedback
from dfud_hawkbit.case import Case
from dfud_hawkbit.records import Link
from dfud_hawkbit.shared import Shared
from dfud_hawkbit.text import acceptable
from dfud_hawkbit.writeback import WriteBack
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Deployment, HistoryEntry, State


@given(st.lists(st.text(max_size=3000), max_size=80))
def test_details_stay_within_hawkbits_quotas(lines: list[str]) -> None:
    found = feedback.details(lines)
    assert len(found) <= 50
    assert all(0 < len(text.encode("utf-16-le")) <= 1024 for text in found)
    if sum(1 + len(line) // 512 for line in lines) <= 50:
        said = "".join(acceptable(line) for line in lines)
        assert "".join(found).replace(" ", "") == said.replace(" ", "")


def a_deployment(state: State, **more: Any) -> Deployment:
    return Deployment(
        id="d1",
        app="a",
        device="d",
        version="2.0",
        sha256="00" * 32,
        state=state,
        created_s=1.0,
        updated_s=1.0,
        from_version="1.0",
        chunks_total=10,
        **more,
    )


def told_of(d: Deployment, news: Sequence[HistoryEntry]) -> Any:
    told = feedback.of_deployment(d, news)
    assert told is not None
    return told


def entries(*states: State) -> list[HistoryEntry]:
    return [
        HistoryEntry(deployment="d1", app="a", device="d", at_s=float(n), state=state, version="2.0", event="event")
        for n, state in enumerate(states)
    ]


def test_an_action_is_closed_only_by_the_end_of_its_deployment() -> None:
    for state in State:
        told = feedback.of_deployment(a_deployment(state), entries(state))
        closed = told is not None and told["status"]["execution"] == "closed"
        assert closed == (state in (State.DONE, State.ROLLED_BACK, State.FAILED)), state
        if told is not None:
            finished = told["status"]["result"]["finished"]
            expected = {State.DONE: "success", State.ROLLED_BACK: "failure", State.FAILED: "failure"}
            assert finished == expected.get(state, "none")
            assert "timestamp" not in told


def test_a_rollback_carries_code_and_diagnostics() -> None:
    record = bytes(range(256)) * 3
    d = a_deployment(State.ROLLED_BACK, code=1, text="it crashed", crashes=3, reset_reason=12, record=record)
    told = told_of(d, entries(State.TRIAL, State.ROLLED_BACK))
    assert told["status"]["code"] == 1
    text = "".join(told["status"]["details"])
    assert "it crashed" in text and "crashes: 3, reset reason 12" in text and record.hex() in text
    assert max(len(line) for line in told["status"]["details"]) == 512


def test_a_code_leaves_room_for_the_line_that_hawkbit_makes_of_it() -> None:
    lines = [f"line {number}" for number in range(80)]
    with_code = feedback.body("closed", "failure", lines, code=1)["status"]["details"]
    assert (len(with_code), len(feedback.body("closed", "failure", lines)["status"]["details"])) == (49, 50)
    assert (with_code[0], with_code[-1]) == ("line 0", "line 79")
    assert "(32 lines are left out)" in with_code


def test_a_fetch_is_told_in_per_cent() -> None:
    d = a_deployment(State.FETCHING, chunks_done=4)
    told = told_of(d, [])
    assert told["status"]["result"]["progress"] == {"cnt": 4, "of": 10}
    assert told["status"]["details"] == ["40 % (4 of 10 chunks)"]


def test_bare_feedback_holds_what_decides_and_nothing_of_a_strangers() -> None:
    told = feedback.body("closed", "failure", ["x"], code=7, done=1, of=2)
    assert feedback.bare(told) == {"status": {"execution": "closed", "result": {"finished": "failure"}}}


def test_a_line_names_its_time_and_the_version_where_that_is_another() -> None:
    entry = HistoryEntry(deployment="d0", app="a", device="d", at_s=0.0, state=State.DONE, version="1.9", event="confirmed")
    assert feedback.line(entry, "2.0") == "1970-01-01T00:00:00Z 1.9: done (confirmed)"
    assert feedback.line(entry, "1.9") == "1970-01-01T00:00:00Z done (confirmed)"
    assert feedback.at(1e20) == "?"


class Heard:
    """Takes feedback."""

    def __init__(self) -> None:
        self.told: list[int] = []

    async def feedback(self, target: str, kind: str, action: int, told: Any) -> bool:
        self.told.append(action)
        return True


async def test_a_clock_that_is_set_back_keeps_no_progress_waiting() -> None:
    heard, now = Heard(), [1000.0]
    config: Any = SimpleNamespace(feedback_max=50, feedback_s=60.0)
    nobody: Any = None
    client: Any = heard
    write_back = WriteBack(Shared(nobody, client, config, lambda: now[0]), nobody)
    case = Case("a/d", 1, None, Link(registered=True, action=7))

    async def progress(chunks: int) -> None:
        current = a_deployment(State.FETCHING, chunks_done=chunks)
        await write_back._intermediate(case, current, [], told_of(current, []))

    await progress(1)
    await progress(2)
    assert (len(heard.told), case.again_s) == (1, 1060.0), "the second has its pause"
    now[0] -= 300 * 86400
    await progress(3)
    assert len(heard.told) == 2
