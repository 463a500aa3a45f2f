"""docs/rollouts.md says what the code does: the table of states, the keys of the spec, and its examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfud.errors import PeerError
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import FINAL, TABLE, Event, State

TEXT = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()


def test_the_table_of_states_is_the_codes() -> None:
    section = TEXT.split("## States")[1].split("\n\n`status`")[0]
    rows = re.findall(r"^\| ([a-z-]+) \| ([a-z]+) \| ([a-z-]+) \|$", section, re.MULTILINE)
    documented = {(State(before), Event(event)): State(after) for before, event, after in rows if before != "from"}
    assert "| any but finished, aborted | abort | aborted |" in section
    documented |= {(state, Event.ABORT): State.ABORTED for state in State if state not in FINAL}
    assert documented == TABLE


@pytest.mark.parametrize("spec", [{"firmware": "1"}, {"firmware": "1", "waves": [{"percent": 1}]}, {"firmware": "1", "devices": {}}])
def test_every_key_that_is_read_is_in_the_document(spec: dict[str, object]) -> None:
    place = spec["waves"][0] if "waves" in spec else spec.get("devices", spec)  # type: ignore[index]
    place["nonsense"] = 1  # type: ignore[index]
    with pytest.raises(PeerError, match="not known, expected one of") as caught:
        read_plan_untrusted(spec)
    for key in str(caught.value).split("expected one of ")[1].split(", "):
        assert re.search(rf'[`."]{key}[`."]', TEXT), key
