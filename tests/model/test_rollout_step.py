"""The states of a rollout, and what makes it go on, stop and turn back."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.model.counts import WaveCounts, counter_of, difference, read_counts
from dfud.model.deployment import Deployment
from dfud.model.deployment import State as Deployed
from dfud.model.rollout import OnError, Plan, RolloutStatus, Threshold, Wave
from dfud.model.rollout_states import ACTIVE, FINAL, TABLE, Event, State, advance
from dfud.model.rollout_step import CLOCK_S, apply, forgive, next_time, of_now, recounted, step, waits_for_somebody

WAVES = (Wave(percent=10, soak_s=60, silent_s=1000), Wave(percent=100, soak_s=60, silent_s=1000))
PLAN = Plan("1.1", waves=WAVES)


def running(**changes: object) -> RolloutStatus:
    status = RolloutStatus(State.TELLING, wave=0, since_s=0.0, wave_since_s=0.0, started_s=1.0, expected=(10, 100))
    return msgspec.structs.replace(status, **changes)


def test_every_state_and_event_is_in_the_table_or_refused() -> None:
    for state in State:
        for event in Event:
            after = advance(state, event)
            assert after == TABLE.get((state, event))
            if state in FINAL:
                again = state is State.FINISHED and event in (Event.RETRY, Event.REVERT)
                assert (after is not None) is again, "what has ended stays so, unless a user takes it back or tries again"
    reached = {State.DRAFT}
    while more := {after for (state, _), after in TABLE.items() if state in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert all(any(state == before for before, _ in TABLE) for state in set(State) - FINAL)


def test_a_wave_that_is_good_for_its_soak_time_opens_the_next() -> None:
    status, steps = step(PLAN, running(), {0: WaveCounts(under_way=1, done=8)}, 10.0)
    assert status.state is State.TELLING and not steps, "not all of the wave were told"
    counts = {0: WaveCounts(under_way=1, done=9)}
    status, steps = step(PLAN, status, counts, 20.0)
    assert status.state is State.SOAKING and [s.event for s in steps] == [Event.GOOD]
    assert next_time(PLAN, status, 20.0) == 80.0
    assert step(PLAN, status, counts, 79.0)[1] == []
    status, steps = step(PLAN, status, counts, 80.0)
    assert (status.state, status.wave, status.wave_since_s) == (State.TELLING, 1, 80.0)


def test_a_wave_that_gets_worse_while_it_soaks_waits_again() -> None:
    status = running(state=State.SOAKING, since_s=0.0)
    status, steps = step(PLAN, status, {0: WaveCounts(under_way=2, done=8)}, 10.0)
    assert status.state is State.TELLING and [s.event for s in steps] == [Event.WORSE]


def test_what_began_by_a_clock_that_was_set_back_begins_now() -> None:
    status = running(state=State.SOAKING, since_s=300 * 86400.0, wave_since_s=200 * 86400.0)
    counts = {0: WaveCounts(under_way=1, done=9)}
    now = of_now(status, 1000.0)
    assert (now.since_s, now.wave_since_s) == (1000.0, 1000.0)
    assert step(PLAN, now, counts, 1059.0)[1] == []
    assert step(PLAN, now, counts, 1060.0)[0].wave == 1
    assert of_now(now, 1000.0 - CLOCK_S) is now, "what is set right by little is left alone"


def test_silent_devices_hold_a_wave_up_for_their_time_only() -> None:
    counts = {0: WaveCounts(done=9, under_way=5)}
    assert step(PLAN, running(expected=(15,)), counts, 5000.0)[0].state is State.TELLING, "one is still to be told"
    looked = recounted(running(expected=(15,)), counts[0], untold=0, silent=4)
    assert (looked.expected, looked.silent) == ((14,), (4,))
    assert step(PLAN, looked, counts, 5000.0)[0].state is State.SOAKING, "nine of the ten that were heard of took it"
    assert recounted(looked, counts[0], untold=0, silent=4) is looked, "no news"
    assert step(PLAN, recounted(looked, counts[0], untold=0, silent=3), counts, 5000.0)[0].state is State.TELLING
    none = recounted(running(), WaveCounts(under_way=2), untold=0, silent=2)
    status, _ = step(PLAN, none, {0: WaveCounts(under_way=2)}, 5000.0)
    assert (status.state, status.code) == (State.PAUSED, "success-missed"), "of nobody nothing is known"
    assert status.reason == "wave 1: 0 of 0 devices took it, expected at least 90 %; 2 more were told and are silent"


def test_the_fleet_is_looked_at_only_where_a_wave_waits_for_somebody() -> None:
    def asks(status: RolloutStatus, now_s: float, *, moved: bool = False, **counts: int) -> bool:
        return waits_for_somebody(PLAN, status, {0: WaveCounts(**counts)}, now_s, moved=moved)

    assert not asks(running(), 999.0, done=3) and asks(running(), 999.0, moved=True, done=3)
    assert asks(running(), 1000.0, done=3), "some may be silent"
    assert not asks(running(), 999.0, moved=True, done=9, under_way=1) and asks(running(), 1000.0, done=9, under_way=1)
    assert not asks(running(), 1000.0, moved=True, done=10)
    assert not asks(running(state=State.SOAKING), 1000.0, moved=True) and asks(running(state=State.REVERTING), 0.0)


def test_errors_beyond_the_threshold_pause_it_or_turn_it_back() -> None:
    counts = {0: WaveCounts(done=7, left=1)}
    status, _ = step(PLAN, running(), counts, 5.0)
    assert (status.state, status.code) == (State.PAUSED, "error-threshold")
    assert status.reason == "wave 1: 1 of 8 devices that answered failed or went back, expected at most 5 %"
    revert = msgspec.structs.replace(PLAN, on_error=OnError.REVERT)
    status, _ = step(revert, running(), counts, 5.0)
    assert status.state is State.REVERTING
    assert step(revert, status, {0: WaveCounts(done=1), -1: WaveCounts(done=6)}, 6.0)[0].state is State.REVERTING
    assert step(revert, status, {0: WaveCounts(left=1), -1: WaveCounts(under_way=1, done=6)}, 6.0)[0].state is State.REVERTING
    assert step(revert, status, {0: WaveCounts(left=1), -1: WaveCounts(done=7)}, 6.0)[0].state is State.ABORTED


def test_two_answers_are_no_percentage() -> None:
    assert step(PLAN, running(), {0: WaveCounts(done=1, failed=1)}, 5.0)[0].state is State.TELLING
    assert step(PLAN, running(), {0: WaveCounts(done=2, failed=1)}, 5.0)[0].state is State.PAUSED


def test_who_resumes_it_has_seen_what_failed() -> None:
    counts = {0: WaveCounts(done=7, left=1)}
    status, _ = step(PLAN, running(), counts, 5.0)
    status = forgive(apply(status, Event.RESUME, 6.0, by="eva"), counts)
    assert step(PLAN, status, counts, 7.0)[0].state is State.TELLING
    status, _ = step(PLAN, status, {0: WaveCounts(done=7, left=2)}, 8.0)
    assert status.state is State.PAUSED


def test_the_last_wave_ends_it_and_a_wave_may_wait_for_somebody() -> None:
    ask = Plan("1.1", waves=(msgspec.structs.replace(WAVES[0], approval=True), WAVES[1]))
    status, _ = step(ask, running(state=State.SOAKING), {0: WaveCounts(done=10)}, 60.0)
    assert status.state is State.WAVE_APPROVAL
    status, _ = step(PLAN, running(wave=1, state=State.SOAKING), {0: WaveCounts(done=10), 1: WaveCounts(done=100)}, 60.0)
    assert status.state is State.FINISHED


def test_a_wave_in_which_all_have_answered_and_too_few_took_it_does_not_hang() -> None:
    few = {0: WaveCounts(failed=1)}
    status, _ = step(PLAN, running(expected=(1, 100)), few, 5.0)
    assert (status.state, status.code) == (State.PAUSED, "success-missed")
    assert status.reason == "wave 1: 0 of 1 devices took it, expected at least 90 %"
    assert step(PLAN, running(expected=(1, 100)), {0: WaveCounts(failed=1, under_way=1)}, 5.0)[0].state is State.TELLING
    status = forgive(apply(status, Event.RESUME, 6.0, by="eva"), few)
    assert step(PLAN, status, few, 7.0)[0].state is State.SOAKING


def test_who_could_not_go_back_is_said() -> None:
    status = running(state=State.REVERTING, code="user", reason="bad")
    after, _ = step(PLAN, status, {0: WaveCounts(left=1), -1: WaveCounts(done=3, failed=2)}, 6.0)
    assert (after.state, after.reason) == (State.ABORTED, "bad; 2 devices could not go back")
    assert after.reverted and not apply(running(), Event.ABORT, 1.0).reverted


def test_its_end_pauses_what_is_not_done() -> None:
    plan = msgspec.structs.replace(PLAN, end_s=50.0)
    status, _ = step(plan, running(), {0: WaveCounts(under_way=5)}, 50.0)
    assert (status.state, status.code) == (State.PAUSED, "ended")


COUNTS = st.builds(WaveCounts, *[st.integers(0, 20)] * 5)
STATUSES = st.builds(
    RolloutStatus,
    state=st.sampled_from(State),
    wave=st.integers(0, 1),
    since_s=st.floats(0, 2000),
    wave_since_s=st.floats(0, 2000),
    started_s=st.just(1.0),
    expected=st.just((10, 100)),
)


@given(STATUSES, st.dictionaries(st.integers(-1, 1), COUNTS), st.floats(0, 4000), st.sampled_from(OnError))
def test_a_step_ends_and_what_is_over_stays_over(
    status: RolloutStatus, counts: dict[int, WaveCounts], now_s: float, on_error: OnError
) -> None:
    plan = msgspec.structs.replace(PLAN, on_error=on_error, end_s=3000.0)
    after, steps = step(plan, status, counts, now_s)
    if status.state not in ACTIVE and status.state is not State.REVERTING:
        assert after == status and not steps
    for one in steps:
        assert advance(one.before, one.event) is one.after
    assert after.wave in (status.wave, status.wave + 1) and after.wave < len(WAVES)


def test_a_threshold_by_count_needs_no_whole() -> None:
    assert Threshold(count=2).exceeded(2, 0) and not Threshold(count=2).exceeded(1, 100)


# Counters


def deployment(number: int, state: Deployed, rollout: str, wave: int, back: bool) -> Deployment:
    return Deployment(
        id=f"d{number}",
        app="a",
        device="d",
        version="1",
        sha256="00",
        state=state,
        created_s=0.0,
        updated_s=0.0,
        number=number,
        rollout=rollout,
        wave=wave,
        back=back,
    )


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 3),  # which device
        st.booleans(),  # a new deployment, or a step of its newest
        st.sampled_from(Deployed),
        st.sampled_from(["", "r1", "r2"]),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=60,
)


@given(CHANGES)
def test_counters_equal_a_recount(changes: list[tuple[int, bool, Deployed, str, int, bool]]) -> None:
    newest: dict[int, Deployment] = {}
    last: dict[tuple[int, str], Deployment] = {}  # of each device and rollout
    counters: dict[str, int] = {}
    for number, (device, fresh, state, rollout, wave, back) in enumerate(changes):
        before = newest.get(device)
        if before is None or fresh:
            after = deployment(number, state, rollout, wave, back)
        else:
            after = msgspec.structs.replace(before, state=state)
        if before is not None and after.rollout != before.rollout and after.rollout:
            # Back to a rollout that it had left: what it was there is replaced.
            earlier = last.get((device, after.rollout))
            if earlier is not None:
                before = earlier
        same = before is not None and before.rollout == after.rollout
        for name, n in difference(counter_of(before) if before is not None and same else "", counter_of(after)).items():
            counters[name] = counters.get(name, 0) + n
        newest[device] = after
        if after.rollout:
            last[(device, after.rollout)] = after
    recount: dict[str, int] = {}
    for one in last.values():
        recount[counter_of(one)] = recount.get(counter_of(one), 0) + 1
    assert {name: n for name, n in counters.items() if n} == recount
    for uid in ("r1", "r2"):
        found = read_counts(counters, uid)
        assert sum(c.told + c.cancelled for c in found.values()) == sum(key[1] == uid for key in last)


@pytest.mark.parametrize("state", Deployed)
def test_every_state_of_a_deployment_is_counted_somewhere(state: Deployed) -> None:
    assert counter_of(deployment(1, state, "r", 0, False)).startswith("r/0/")
    assert counter_of(deployment(1, state, "r", 0, True)).startswith("r/-1/")
