"""What is kept of the devices on which a rollout failed."""

from __future__ import annotations

import pytest

from dfud.api import Bus, Deployment, State
from dfud.controller.failures import Failures
from tests.controller.world import T0, Records, digest

REFUSED = "1.2 is app firmware, and the device has no banks for it"
CRASHED = 'Traceback (most recent call last):\n  File "main.py", line 4, in main\nValueError: 17 lamps'


@pytest.mark.parametrize(
    ("state", "text", "title"),
    [
        (State.FAILED, REFUSED, REFUSED),
        (State.ROLLED_BACK, "boom 17", "boom N"),
        (State.ROLLED_BACK, CRASHED, "ValueError in main:main"),
    ],
)
async def test_a_refusal_is_told_in_its_own_words_and_a_crash_by_its_kind(state: State, text: str, title: str) -> None:
    """`N.N is app firmware` was what `dfuctl rollout show` and `explain` said of version 1.2."""
    step = Deployment(
        id="d",
        app="app",
        device="dev",
        state=state,
        version="1.2",
        sha256=digest("1.2"),
        number=1,
        created_s=T0,
        updated_s=T0,
        rollout="uid",
        text=text,
    )
    failures = Failures(Records(), Bus())
    await failures.noted([step])
    assert [(one.title, one.text) for one in await failures.of("uid")] == [(title, text)]
