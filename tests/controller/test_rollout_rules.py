"""Offers, downloads that are activated later, retries, calls back, and small fleets: what the rollout's pure parts make of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.controller.recount import Tally, tally
from dfud.errors import PeerError
from dfud.model.counts import WaveCounts, counter_of, departed
from dfud.model.deployment import Actual, Deployment, Route
from dfud.model.deployment import State as Deployed
from dfud.model.desired import Desired, Held
from dfud.model.membership import place
from dfud.model.policy import Policy, shares_of
from dfud.model.resources import Metadata
from dfud.model.rollout import SOAK_S, Facts, Mode, Rollout, RolloutStatus
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import Event, State
from dfud.model.rollout_step import apply, forgive, is_writing, step
from dfud.wire.messages import Code

WAVES = [{"selector": "canary", "soakS": 60}, {"percent": 100}]
DOWNLOAD = {"mode": "download-only", "waves": WAVES}


def rollout(state: State = State.TELLING, spec: dict[str, Any] | None = None, **status: Any) -> Rollout:
    made = RolloutStatus(state, **{"started_s": 1.0, "shares": ("0", str(1 << 64)), "wave": 1, **status})
    return Rollout(Metadata("r", "a", uid="r"), {"firmware": "new", "waves": WAVES, **(spec or {})}, made)


def deployment(state: Deployed, **changes: Any) -> Deployment:
    base = Deployment(
        id="1",
        app="a",
        device="dev",
        version="new",
        sha256="new",
        state=state,
        created_s=0.0,
        updated_s=0.0,
        from_version="old",
        from_sha256="old",
        rollout="r",
        wave=1,
    )
    return msgspec.structs.replace(base, **changes)


def facts(running: str = "old", told: str = "", seen_s: float = 0.0) -> Facts:
    return Facts("dev", {}, "", Actual("a", "dev", running, running, "hw", seen_s=seen_s), told)


def wanted(made: Rollout, d: Deployment | None = None, running: str = "old", now_s: float = 100.0) -> Desired:
    return Policy({}, [made]).wanted({}, facts(running, d.rollout if d else ""), d, now_s)


# What the spec says


def test_the_defaults_are_safe_for_the_first_waves_and_end_with_the_last() -> None:
    plan = read_plan_untrusted({"firmware": "1"})
    assert [(w.percent, w.soak_s) for w in plan.waves] == [(1, SOAK_S), (10, SOAK_S), (100, 0)]
    plan = read_plan_untrusted({"firmware": "1", "waves": [{"count": 1}, {"count": 5, "soakS": 0}, {"percent": 100}]})
    assert [w.soak_s for w in plan.waves] == [SOAK_S, 0, 0] and plan.mode is Mode.FORCED


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"mode": "soft"}, "spec.mode: 'soft', expected one of forced, offer, download-only"),
        ({"offerUntil": "2026-12-01T00:00:00Z"}, 'spec.offerUntil: only "mode": "offer"'),
        (
            {"mode": "offer", "offerUntil": "2026-12-01"},
            "spec.offerUntil: '2026-12-01', expected a time with its offset",
        ),
        (
            {"mode": "offer", "offerUntil": "2026-12-01T00:00:00Z", "start": "2026-12-02T00:00:00Z"},
            "spec.offerUntil: not behind spec.start",
        ),
        ({"attempts": 0}, "spec.attempts: '0', expected an integer from 1 to 100"),
        ({"backoffS": -1}, "spec.backoffS: '-1', expected a number from 1 to 604800"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(PeerError, match=said.replace("(", r"\(")):
        read_plan_untrusted({"firmware": "1", **spec})


@given(
    st.integers(1, 400),
    st.integers(0, 20),
    st.lists(st.sampled_from([0.5, 1, 10, 40, 100]), min_size=1, unique=True).map(sorted),
)
def test_no_wave_of_percent_is_empty_while_there_are_devices(count: int, seed: int, percents: list[float]) -> None:
    plan = read_plan_untrusted({"firmware": "1", "waves": [{"percent": p} for p in percents]})
    names = [f"{seed}-{n}" for n in range(count)]
    shares = shares_of(plan, "uid", names)
    sizes = [sum(place("uid", name) < limit for name in names) for limit in shares]
    assert sizes == sorted(sizes) and all(size >= min(number, count) for number, size in enumerate(sizes, 1))
    assert shares_of(plan, "uid", [*reversed(names)]) == shares
    if percents[-1] == 100:
        assert sizes[-1] == count


def test_the_first_wave_has_one_that_does_not_run_it_yet() -> None:
    plan = read_plan_untrusted({"firmware": "1"})
    names = sorted((f"d{n}" for n in range(5)), key=lambda name: place("uid", name))
    shares = shares_of(plan, "uid", names, frozenset(names[3:]))
    assert [sum(place("uid", name) < limit for name in names) for limit in shares] == [4, 5, 5]


# Offers


def test_an_offer_becomes_forced_at_its_time() -> None:
    offer = {"mode": "offer", "offerUntil": "1970-01-02T00:00:00+00:00"}
    with pytest.raises(PeerError):
        read_plan_untrusted({"firmware": "1", **offer})
    offer["offerUntil"] = "2026-12-01T00:00:00+00:00"
    until_s = read_plan_untrusted({"firmware": "1", **offer}).offer_until_s
    assert (
        not wanted(rollout(spec=offer), now_s=until_s - 1).forced and wanted(rollout(spec=offer), now_s=until_s).forced
    )
    assert not wanted(rollout(spec={"mode": "offer"}), now_s=1e12).forced and wanted(rollout()).forced


# Downloads


def test_waves_are_of_those_who_wrote_it_until_it_is_activated() -> None:
    plan = read_plan_untrusted({"firmware": "new", **DOWNLOAD})
    status = RolloutStatus(State.TELLING, wave=1, started_s=1.0, expected=(1, 10))
    counts = {1: WaveCounts(written=9, under_way=1)}
    after, steps = step(plan, status, counts, 5.0)
    assert [s.event for s in steps] == [Event.GOOD, Event.STORE] and after.state is State.STORED, (
        "writing needs no soaking"
    )
    assert step(plan, after, counts, 1e9)[1] == []
    after = msgspec.structs.replace(apply(after, Event.ACTIVATE, 6.0), activated_s=6.0)
    assert step(plan, after, counts, 7.0)[0].state is State.TELLING, "nobody runs it yet"
    assert step(plan, after, {1: WaveCounts(done=9, written=1)}, 8.0)[0].state is State.FINISHED
    bad, _ = step(plan, status, {1: WaveCounts(written=3, failed=3)}, 9.0)
    assert (bad.state, bad.code) == (State.PAUSED, "error-threshold") and "3 of 6 devices" in bad.reason
    few, _ = step(plan, status, {1: WaveCounts(written=90, failed=3)}, 9.0)
    assert few.state is State.STORED, "3 of 93"


def test_who_has_written_it_switches_when_its_wave_does() -> None:
    held = deployment(Deployed.WRITTEN, download_only=True)
    for state, status, expected in (
        (State.TELLING, {}, True),
        (State.STORED, {}, True),
        (State.TELLING, {"activated_s": 5.0, "wave": 0}, True),
        (State.TELLING, {"activated_s": 5.0}, False),
        (State.PAUSED, {"activated_s": 5.0}, True),
        (State.FINISHED, {"activated_s": 5.0}, False),
        (State.ABORTED, {"activated_s": 5.0}, True),
        (State.ABORTED, {}, True),
    ):
        found = wanted(rollout(state, DOWNLOAD, **status), held)
        assert (found.version, found.download_only) == ("new", expected), (state, status)
    assert counter_of(held) == "r/1/written" and counter_of(deployment(Deployed.WRITTEN)) == "r/1/under_way"
    assert departed([held]) == {"r/1/written": -1, "r/1/cancelled": 1}


def test_who_has_written_it_switches_within_its_window() -> None:
    spec = {**DOWNLOAD, "windows": [{"from": "02:00", "to": "03:00"}]}
    made = rollout(State.TELLING, spec, activated_s=5.0)
    held = deployment(Deployed.WRITTEN, download_only=True)
    at_one = wanted(made, held, now_s=3600.0)
    assert at_one.download_only and at_one.held == Held("window", 7200.0)
    assert not wanted(made, held, now_s=7200.0).download_only
    going = wanted(rollout(spec={"windows": spec["windows"]}), deployment(Deployed.FETCHING), now_s=3600.0)
    assert going.version == "new" and not going.download_only, "what is fetched goes on"


# Steps


def test_who_is_between_two_steps_is_under_way_and_goes_on() -> None:
    between = deployment(Deployed.DONE, version="mid", sha256="mid", route=Route("new", 1, 2, "old"))
    assert counter_of(between) == "r/1/under_way" and between.final
    for state in (State.PAUSED, State.ABORTED, State.FINISHED, State.TELLING):
        assert wanted(rollout(state), between, running="mid").version == "new"
    assert wanted(rollout(State.ABORTED, called_back=True), between, running="mid").version == "mid", "it keeps what it has"
    left = deployment(Deployed.ROLLED_BACK, blocks=True, from_version="mid", route=Route("new", 2, 2, "old"))
    assert wanted(rollout(State.FINISHED), left, running="mid").version == "mid", "nobody takes it back"
    assert wanted(rollout(State.FINISHED), left, running="old").version == ""
    back = wanted(
        rollout(State.REVERTING),
        deployment(Deployed.DONE, route=Route("new", 2, 2, "old"), from_version="mid"),
        running="new",
    )
    assert (back.version, back.back) == ("old", True), "not to the step"


# Retries and calls back


def test_an_abort_may_call_back_what_is_under_way_and_takes_nobody_back() -> None:
    going, done = deployment(Deployed.FETCHING), deployment(Deployed.DONE)
    assert wanted(rollout(State.ABORTED), going).version == "new"
    assert wanted(rollout(State.ABORTED, called_back=True), going).version == ""
    assert wanted(rollout(State.ABORTED, called_back=True), done, running="new").version == "new"


def test_a_retry_counts_only_while_it_is_the_devices_turn() -> None:
    left = deployment(Deployed.FAILED, blocks=True)
    assert wanted(rollout(retries=2), left).retries == 2
    assert wanted(rollout(State.PAUSED, retries=2), left).retries == 0
    assert wanted(rollout(retries=2, wave=0), left).retries == 0


def test_what_came_right_and_fails_again_is_not_forgiven_twice() -> None:
    plan = read_plan_untrusted({"firmware": "new", "waves": [{"percent": 100, "error": {"count": 2}}]})
    status = RolloutStatus(State.TELLING, started_s=1.0, expected=(10,))
    status = forgive(status, {0: WaveCounts(failed=3, done=3)})
    assert step(plan, status, {0: WaveCounts(failed=3, done=3)}, 5.0)[0].state is State.TELLING
    status, _ = step(plan, status, {0: WaveCounts(failed=1, under_way=2, done=3)}, 6.0)
    assert status.forgiven == (1,)
    assert step(plan, status, {0: WaveCounts(failed=3, done=3)}, 7.0)[0].state is State.PAUSED


# Who is waited for


def looked(
    made: Rollout, d: Deployment | None = None, running: str = "old", *, seen_s: float = 1e6, spec: Any = None
) -> Tally:
    found = Tally()
    plan = read_plan_untrusted(made.spec)
    said = facts(running, d.rollout if d else "", seen_s)
    tally(found, Policy({}, [made]), made, plan, spec or {}, said, d, 1e6 + 60.0)
    return found


def test_who_is_still_to_be_told_holds_its_wave_and_nobody_else() -> None:
    assert looked(rollout()) == Tally(untold=1)
    assert looked(rollout(), running="new") == Tally(), "flashed by hand"
    assert looked(rollout(), spec={"firmware": {"version": "own"}}) == Tally()
    assert looked(rollout(wave=0)) == Tally(), "its wave is not open"
    assert looked(rollout(), seen_s=1000.0) == Tally(), "silent for more than a week"
    assert looked(rollout(wave_since_s=1e6), seen_s=1000.0) == Tally(untold=1), "it has had no week yet"
    assert looked(rollout(), deployment(Deployed.FETCHING)) == Tally()
    assert looked(rollout(), deployment(Deployed.FETCHING), seen_s=1000.0) == Tally(silent=1)
    assert looked(rollout(spec=DOWNLOAD), deployment(Deployed.WRITTEN), seen_s=1000.0) == Tally(), "it has answered"


def test_who_is_to_be_tried_again_holds_its_wave_unless_it_is_hopeless() -> None:
    left = deployment(Deployed.ROLLED_BACK, blocks=True)
    assert looked(rollout(), left) == Tally() and looked(rollout(retries=1), left) == Tally(untold=1)
    assert looked(rollout(retries=1), msgspec.structs.replace(left, retry=1)) == Tally(), "it failed again"
    assert looked(rollout(retries=1), msgspec.structs.replace(left, code=int(Code.HARDWARE))) == Tally()
    assert looked(rollout(retries=1), msgspec.structs.replace(left, state=Deployed.CANCELLED)) == Tally(), (
        "a user said so"
    )


def test_a_revert_waits_for_whoever_has_to_go_back_yet() -> None:
    made, done = rollout(State.REVERTING), deployment(Deployed.DONE)
    assert looked(made, done, "new") == Tally(back=1) and looked(made, done, "new", seen_s=0.0) == Tally(back=1, lost=1)
    assert looked(made, deployment(Deployed.FETCHING)) == Tally(back=1), "it may still come to run it"
    assert looked(made, deployment(Deployed.FAILED)) == Tally(), "it runs what it ran"
    assert looked(made, done, "new", spec={"firmware": {"version": "own"}}) == Tally()
    assert looked(made, msgspec.structs.replace(done, rollout="other"), "new") == Tally(), "another rollout has it now"
    back = deployment(Deployed.FAILED, version="old", sha256="old", back=True, blocks=True)
    assert looked(made, back, "new") == Tally(), "it could not"
    assert is_writing(read_plan_untrusted({"firmware": "1", **DOWNLOAD}), RolloutStatus())
