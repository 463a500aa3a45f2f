"""Who wins: the device, the running rollout, the rules, the app; and an end takes nobody back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.deployment import Actual, Deployment
from dfud.model.deployment import State as Deployed
from dfud.model.label_index import LabelIndex
from dfud.model.membership import share
from dfud.model.overlap import may_overlap
from dfud.model.policy import Policy, read_rules_untrusted
from dfud.model.resources import Metadata
from dfud.model.rollout import Facts, Rollout, RolloutStatus
from dfud.model.rollout_spec import read_plan_untrusted
from dfud.model.rollout_states import ACTIVE, FINAL, State
from dfud.model.selectors import EVERYTHING, parse_selector_untrusted

APP: dict[str, Any] = {
    "firmware": {"version": "app"},
    "rules": [{"selector": "channel=beta", "firmware": {"version": "rule"}}],
}
BETA = {"channel": "beta"}


def rollout(name: str, state: State = State.TELLING, *, wave: int = 0, created: str = "", **spec: Any) -> Rollout:
    waves = spec.get("waves", [{"percent": 100}])
    plan = read_plan_untrusted({"firmware": name, **spec, "waves": waves})
    shares = tuple(str(share(w.percent)) for w in plan.waves)
    status = RolloutStatus(state, wave=wave, started_s=1.0, shares=shares)
    return Rollout(Metadata(name, "a", uid=name, creation_timestamp=created), {"firmware": name, "waves": waves, **spec}, status)


def facts(labels: dict[str, str] | None = None, running: str = "old", told: str = "") -> Facts:
    return Facts("dev", labels or {}, "", Actual("a", "dev", running, running, "hw"), told)


def deployment(rollout: str, state: Deployed, version: str = "", **changes: Any) -> Deployment:
    made = Deployment(
        id="1",
        app="a",
        device="dev",
        version=version or rollout,
        sha256=version or rollout,
        state=state,
        created_s=0.0,
        updated_s=0.0,
        from_version="old",
        from_sha256="old",
        rollout=rollout,
    )
    return msgspec.structs.replace(made, **changes)


def wanted(rollouts: list[Rollout], f: Facts, spec: dict[str, Any] | None = None, d: Deployment | None = None) -> tuple[str, str]:
    found = Policy(APP, rollouts).wanted(spec or {}, f, d, 100.0)
    return found.version, found.origin


def test_the_order_of_those_who_say_what_should_run() -> None:
    assert wanted([], facts()) == ("app", "app")
    assert wanted([], facts(BETA)) == ("rule", "rule 1")
    assert wanted([rollout("r")], facts(BETA)) == ("r", "rollout r")
    assert wanted([rollout("r")], facts(BETA), {"firmware": {"version": "own"}}) == ("own", "device")


def test_of_two_rollouts_the_higher_priority_and_then_the_newer_counts() -> None:
    old, new = rollout("old-one", created="2026-01-01"), rollout("new-one", created="2026-02-01")
    assert wanted([old, new], facts())[0] == wanted([new, old], facts())[0] == "new-one"
    assert wanted([rollout("high", priority=1, created="2025-01-01"), new], facts())[0] == "high"


def test_till_its_wave_opens_the_rest_speaks() -> None:
    later = rollout("r", wave=0, waves=[{"selector": "canary"}, {"percent": 100}])
    assert wanted([later], facts()) == ("app", "app")
    assert wanted([later], facts({"canary": "1"})) == ("r", "rollout r")
    assert wanted([rollout("r", wave=1, waves=[{"selector": "canary"}, {"percent": 100}])], facts()) == ("r", "rollout r")


@pytest.mark.parametrize("state", State)
def test_in_every_state_nobody_new_is_told_but_where_it_is_active(state: State) -> None:
    assert (wanted([rollout("r", state)], facts())[0] == "r") is (state in ACTIVE)


@pytest.mark.parametrize("state", sorted(set(State) - {State.REVERTING}))
def test_who_took_it_keeps_it_and_what_is_under_way_goes_on(state: State) -> None:
    at = [rollout("r", state)]
    done, going = deployment("r", Deployed.DONE), deployment("r", Deployed.FETCHING)
    assert wanted(at, facts(running="r", told="r"), d=done)[0] == "r"
    assert wanted(at, facts(told="r"), d=going)[0] == "r"
    if state in FINAL:
        assert wanted(at, facts(told="r"), d=deployment("r", Deployed.ROLLED_BACK))[0] == "app"


def test_after_a_promotion_the_app_speaks() -> None:
    promoted = rollout("r", State.FINISHED, promote=True)
    assert wanted([promoted], facts(running="r", told="r"), d=deployment("r", Deployed.DONE))[1] == "app"


def test_who_took_it_goes_back_to_what_it_ran_and_nobody_else() -> None:
    at = [rollout("r", State.REVERTING)]
    assert wanted(at, facts(running="r", told="r"), d=deployment("r", Deployed.DONE)) == ("old", "rollout r, going back")
    back = deployment("r", Deployed.FETCHING, version="old", back=True, from_version="r")
    assert wanted(at, facts(running="r", told="r"), d=back)[0] == "old"
    assert wanted(at, facts())[0] == "app"


def test_a_later_rollout_that_failed_takes_nobody_back_behind_an_earlier_one() -> None:
    at = [rollout("spring", State.FINISHED, created="2026-01-01"), rollout("bad", State.ABORTED, created="2026-02-01")]
    left = deployment("bad", Deployed.ROLLED_BACK)
    assert wanted(at, facts(running="spring", told="bad"), d=left) == ("spring", "rollout spring")
    assert wanted([at[0]], facts(running="spring"))[0] == "spring", "who runs it already needs no deployment"


def test_what_was_taken_back_speaks_for_nobody() -> None:
    bad = rollout("bad", State.ABORTED)
    assert wanted([bad], facts(running="bad", told="bad"), d=deployment("bad", Deployed.CANCELLED))[0] == "bad"
    bad = msgspec.structs.replace(bad, status=msgspec.structs.replace(bad.status, reverted=True))
    assert wanted([bad], facts(running="bad", told="bad"), d=deployment("bad", Deployed.CANCELLED))[0] == "app"


def test_a_device_that_its_version_made_another_stays_a_member() -> None:
    only = [rollout("r", devices={"running": ["old"]})]
    assert wanted(only, facts(running="old"))[0] == "r"
    assert wanted(only, facts(running="r", told="r"), d=deployment("r", Deployed.DONE))[0] == "r"
    assert wanted(only, facts(running="else"))[0] == "app"


def test_a_window_holds_back_who_was_not_told() -> None:
    night = rollout("r", windows=[{"days": ["sun"], "from": "03:00", "to": "03:01"}])
    held = Policy(APP, [night]).wanted({}, facts(), None, 100.0).held
    assert held is not None and held.code == "window" and held.until_s > 100.0
    going = deployment("r", Deployed.FETCHING)
    assert Policy(APP, [night]).wanted({}, facts(told="r"), going, 100.0).version == "r"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({}, "spec.rules: expected a list"),
        ([{}], r"spec.rules\[0\]: expected an object with selector and firmware"),
        ([{"selector": " ", "firmware": {"version": "1"}}], r"spec.rules\[0\].selector: expected text"),
        ([{"selector": "a b", "firmware": {"version": "1"}}], r"spec.rules\[0\].selector: label selector"),
        ([{"selector": "a", "firmware": {"version": 1}}], r"spec.rules\[0\]: spec.firmware.version"),
        ([{"selector": "a", "firmware": {}}], r"spec.rules\[0\]: "),
        ([{"selector": "a", "firmware": None}], r"spec.rules\[0\]: firmware says no version"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_by_its_place(rules: Any, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        read_rules_untrusted(rules)
    assert wanted([], facts()) == ("app", "app"), "what is stored and wrong speaks for nobody"
    assert Policy({**APP, "rules": rules}).wanted({}, facts(BETA), None, 0.0).version == "app"


SELECTORS = st.sampled_from(["", "a=1", "a=2", "a", "!a", "a in (1,2)", "a notin (1)", "b=1", "a=1,b=2", "a!=1,b"])
LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("123"))


@given(SELECTORS, SELECTORS, LABELS)
def test_two_that_mean_one_device_are_found_to_overlap(first: str, second: str, labels: dict[str, str]) -> None:
    plans = [read_plan_untrusted({"firmware": "1", "devices": {"selector": s} if s else {}}) for s in (first, second)]
    if all(plan.whom.selector.matches(labels) for plan in plans):
        assert may_overlap(plans[0], plans[1]) and may_overlap(plans[1], plans[0])


@given(st.lists(SELECTORS, max_size=8), LABELS)
def test_the_index_finds_every_selector_that_matches(texts: list[str], labels: dict[str, str]) -> None:
    selectors = [parse_selector_untrusted(text) if text else EVERYTHING for text in texts]
    candidates = LabelIndex(selectors).candidates(labels)
    assert candidates == sorted(set(candidates))
    assert {n for n, selector in enumerate(selectors) if selector.matches(labels)} <= set(candidates)


def test_the_index_leaves_out_selectors_whose_label_a_device_has_not() -> None:
    selectors = [parse_selector_untrusted(text) for text in ("a", "a,b!=1", "b in (1,2)", "!a", "a!=1", "c,a")]
    index = LabelIndex(selectors)
    assert index.candidates({}) == [3, 4]
    assert index.candidates({"a": "1"}) == [0, 1, 3, 4]
    assert index.candidates({"b": "2"}) == [2, 3, 4]


def test_what_cannot_be_one_device_may_have_one_priority() -> None:
    def plan(**devices: Any) -> Any:
        return read_plan_untrusted({"firmware": "1", "devices": devices})

    assert not may_overlap(plan(selector="a=1"), plan(selector="a=2"))
    assert not may_overlap(plan(selector="!a"), plan(selector="a"))
    assert not may_overlap(plan(hardware=["x"]), plan(hardware=["y"]))
    assert not may_overlap(plan(attributes={"rev": "a"}), plan(attributes={"rev": "b"}))
    assert not may_overlap(plan(names=["a"]), plan(names=["b"]))
    assert may_overlap(plan(names=["a"]), plan(selector="a=1"))
