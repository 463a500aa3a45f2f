"""Every answer of decide() has a code, and every code a sentence that says something: all of them are walked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dfud.api import Device, DeviceView, Metadata
from dfud.controller.config import ControllerConfig
from dfud.controller.decide import Why, decide
from dfud.controller.explain import Explanation, explain, status_of_actual
from dfud.controller.observe import actual_of
from dfud.model.deployment import Deployment, State, Twins
from dfud.model.desired import Desired, Held
from dfud.model.firmware import Firmware
from dfud.wire.messages import Code, Defer, Status
from tests.controller.world import T0, a_firmware, a_status, digest

POLICY = ControllerConfig()
TARGET = a_firmware("1.1")
WANTED = Desired("1.1", origin="app")


def deployment(state: State, **more: Any) -> Deployment:
    same: dict[str, Any] = {"version": "1.1", "sha256": digest("1.1"), "number": 1, "created_s": T0, "updated_s": T0}
    return Deployment(id="d", app="app", device="dev", state=state, **(same | more))


Case = tuple[Why, Status, Deployment | None, Desired, Firmware | None, Twins | None]


def cases() -> Iterator[Case]:
    """Yield one case for each code: what the device says, what is stored, what is wanted."""

    def case(
        why: Why,
        *,
        desired: Desired = WANTED,
        target: Firmware | None = TARGET,
        d: Deployment | None = None,
        version: str = "1.0",
        twins: Twins | None = None,
        **said: Any,
    ) -> Case:
        return why, a_status(version, **said), d, desired, target, twins

    yield case(Why.IN_SYNC, version="1.1")
    yield case(Why.TRIAL, trial=True)
    yield case(Why.NOTHING_WANTED, desired=Desired(), target=None)
    yield case(Why.BAD_SPEC, desired=Desired("9", problem="firmware 9 is not published"), target=None)
    yield case(Why.BARRED, desired=Desired("1.1", problem="1.1: it is not signed"))
    for why in (Why.RECALLED, Why.NO_PATH, Why.RANGE):
        yield case(why, desired=Desired("1.1", problem=f"the reason is {why.value}", code=why.value))
    for code in ("window", "rate", "ceiling"):
        held = Held(code, T0 + 60)
        yield case(Why(code), desired=Desired("1.1", origin="rollout r", rollout="u", held=held))
    yield case(Why.LEFT, d=deployment(State.ROLLED_BACK, blocks=True, code=1, text="boom", crashes=3))
    yield case(Why.HARDWARE, hardware="esp32")
    yield case(Why.TOO_LARGE, capacity=10)
    yield case(Why.NO_BANKS, desired=Desired("3.2", kind="app"), target=a_firmware("3.2", kind="app"))
    yield case(Why.TWIN_ON_TRIAL, d=deployment(State.TRIAL), twins=Twins(contradictions=5, at_s=T0))
    yield case(Why.HOLD, desired=Desired("1.1", hold=True, reason="not on Fridays"))
    yield case(Why.DEFERRED, defer=Defer("lamp on", 60))
    yield case(Why.BACK_OFF, d=deployment(State.PENDING, attempts=1, not_before_s=T0 + 60, code=int(Code.CHUNK), text="torn"))
    yield case(Why.DOWNLOAD_ONLY, desired=Desired("1.1", download_only=True), d=deployment(State.WRITTEN, package="ab" * 16))
    yield case(Why.SENT)


CASES = list(cases())


def explained(case: Case) -> Explanation:
    _, status, d, desired, target, twins = case
    actual = msgspec.structs.replace(actual_of("app", "dev", status, "http", T0), twins=twins)
    view = DeviceView(Device(Metadata("dev", "app")), actual, d)
    return explain(view, desired, target, POLICY, T0)


def test_the_walk_leaves_no_code_out() -> None:
    assert [case[0] for case in CASES] == list(dict.fromkeys(case[0] for case in CASES))
    left = set(Why) - {case[0] for case in CASES}
    assert not left, f"no case for {left}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].value)
def test_each_answer_of_decide_has_its_code_and_a_sentence_with_its_values(case: Case) -> None:
    why, status, d, desired, target, twins = case
    verdict = decide(
        app="app",
        device="dev",
        status=status,
        deployment=d,
        desired=desired,
        target=target,
        policy=POLICY,
        now_s=T0,
        heard=True,
        twins=twins is not None,
    )
    assert verdict.why is why
    found = explained(case)
    assert found.code == why.value
    for sentence in found.sentences:
        assert re.fullmatch(r"[A-Z0-9][^{}]{8,}\.", sentence, re.DOTALL), f"{sentence!r} is no sentence"
        assert "None" not in sentence
    assert len(set(found.sentences)) == len(found.sentences)
    assert "running" in found.values
    for value in (desired.reason, desired.problem, status.defer.reason if status.defer else "", d.text if d else ""):
        if value and why not in (Why.TRIAL,):
            assert any(value.rstrip(".") in s for s in found.sentences), f"{value!r} is not in {found.sentences}"


def test_what_is_asked_is_what_the_device_said() -> None:
    """The status that explain() puts to decide() is the last one that the device sent, as far as it is stored."""
    status = a_status("1.0", sequence=7, attributes={"rev": "2"})
    actual = actual_of("app", "dev", status, "http", T0)
    assert status_of_actual(actual, None, TARGET, T0) == status
