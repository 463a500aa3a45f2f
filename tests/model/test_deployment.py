"""The deployment's state table, walked whole."""

from __future__ import annotations

import pytest

from dfud.errors import BugError
from dfud.model.deployment import FINAL, TABLE, Deployment, Event, State, advance


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_every_state_and_event_has_a_step_or_none(state: State, event: Event) -> None:
    after = advance(state, event)
    assert after == TABLE.get((state, event))
    if state in FINAL:
        assert after is None or after in FINAL, f"{state} is final, yet {event} leads to {after}"
        assert after is None or event in (Event.LEFT, Event.CONFIRMED), f"{event} changes no verdict"


def test_every_state_but_the_first_can_be_reached_and_every_running_one_can_end() -> None:
    assert set(TABLE.values()) == set(State)
    for state in set(State) - FINAL:
        ends = {advance(state, event) for event in Event} & FINAL
        assert ends == FINAL, f"{state} cannot end as {FINAL - ends}"


def test_the_documented_path_leads_from_pending_to_done() -> None:
    state = State.PENDING
    for event, expected in (
        (Event.SENT, State.NOTIFIED),
        (Event.CHUNK, State.FETCHING),
        (Event.WRITTEN, State.WRITTEN),
        (Event.BOOTED, State.TRIAL),
        (Event.CONFIRMED, State.DONE),
    ):
        after = advance(state, event)
        assert after == expected
        state = after


def test_a_step_that_the_table_does_not_have_is_a_bug() -> None:
    done = Deployment(id="1", app="a", device="d", version="2", sha256="00", state=State.DONE, created_s=0.0, updated_s=0.0)
    with pytest.raises(BugError, match="no step from done on sent"):
        done.step(Event.SENT, 1.0)


def test_a_step_changes_the_state_the_time_and_what_it_is_told_to() -> None:
    before = Deployment(id="1", app="a", device="d", version="2", sha256="00", state=State.TRIAL, created_s=0.0, updated_s=0.0)
    after = before.step(Event.LEFT, 5.0, code=1, text="Traceback")
    assert (after.state, after.updated_s, after.code, after.text) == (State.ROLLED_BACK, 5.0, 1, "Traceback")
    assert before.state is State.TRIAL
