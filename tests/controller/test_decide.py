"""What a status leads to: every state against every kind of status, and the stories that matter."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from dfud.controller.config import ControllerConfig
from dfud.controller.decide import Action, Verdict, Why, decide
from dfud.model.deployment import FINAL, TABLE, Deployment, Event, State, advance
from dfud.model.desired import Desired, Held
from dfud.model.firmware import Firmware
from dfud.wire.messages import Code, Defer, Outcome, Phase, Progress, Result, Status

POLICY = ControllerConfig(attempts=3, retry_s=10, retry_max_s=15)
OLD, NEW, OTHER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
PACKAGE = b"\xaa" * 16
TARGET = Firmware(app="app", version="2.0", hardware="esp32c3", sequence=2, size_bytes=1000, sha256=NEW.hex(), manifest=b"envelope")
WANT = Desired("2.0")


def status(digest: bytes = OLD, **changes: object) -> Status:
    return msgspec.structs.replace(Status("1.0", digest, "esp32c3", 6, 4160, 100_000), **changes)


def deployment(state: State = State.FETCHING, **changes: object) -> Deployment:
    base = Deployment(
        id="id",
        app="app",
        device="dev",
        version="2.0",
        sha256=NEW.hex(),
        state=state,
        created_s=1.0,
        updated_s=1.0,
        package=PACKAGE.hex(),
        chunks_total=9,
    )
    return msgspec.structs.replace(base, **changes)


def run(
    said: Status,
    held: Deployment | None = None,
    want: Desired = WANT,
    target: Firmware | None = TARGET,
    now_s: float = 100,
) -> Verdict:
    return decide(
        app="app", device="dev", status=said, deployment=held, desired=want, target=target, policy=POLICY, now_s=now_s
    )


def states(verdict: Verdict) -> list[State]:
    return [d.state for d, _ in verdict.steps]


def test_a_device_that_is_behind_gets_a_deployment() -> None:
    verdict = run(status())
    assert (verdict.action, states(verdict)) == (Action.SEND, [State.PENDING])
    assert verdict.deployment is not None
    assert (verdict.deployment.from_version, verdict.deployment.version) == ("1.0", "2.0")


def test_a_device_that_runs_the_target_is_in_sync() -> None:
    assert run(status(NEW)).action is Action.SYNC
    assert run(status(NEW), deployment(State.WRITTEN)).steps[0][0].state is State.DONE


def test_trial_then_confirmed() -> None:
    verdict = run(status(NEW, trial=True), deployment(State.WRITTEN))
    assert (states(verdict), verdict.action) == ([State.TRIAL], Action.WAIT)
    assert states(run(status(NEW), verdict.deployment)) == [State.DONE]


def test_what_was_left_is_not_sent_again_until_somebody_says_so() -> None:
    result = Result(
        outcome=Outcome.ROLLED_BACK,
        digest=NEW,
        code=Code.CRASHED,
        text="Traceback",
        attempts=3,
        reset=12,
        record=b"record",
    )
    verdict = run(status(result=result), deployment(State.TRIAL))
    left = verdict.deployment
    assert left is not None
    assert (left.state, left.text, left.crashes, left.record, left.blocks) == (
        State.ROLLED_BACK, "Traceback", 3, b"record", True,
    )  # fmt: skip
    assert verdict.action is Action.WAIT
    assert run(status(result=result), left).steps == [], "the device repeats its result: nothing new"
    assert run(status(), left).action is Action.WAIT
    assert run(status(), msgspec.structs.replace(left, blocks=False)).action is Action.SEND
    another = msgspec.structs.replace(TARGET, version="2.1", sha256=OTHER.hex())
    assert run(status(), left, Desired("2.1"), another).action is Action.SEND


def test_a_device_that_was_on_trial_and_is_not_any_more_has_left() -> None:
    assert states(run(status(), deployment(State.TRIAL))) == [State.ROLLED_BACK]


def test_failed_attempts_are_repeated_later_and_less_often_up_to_a_limit() -> None:
    held: Deployment | None = deployment()
    waits = []
    for _ in range(2):
        verdict = run(status(result=Result(Outcome.FAILED, NEW, Code.CHUNK, "x")), held)
        held = verdict.deployment
        assert held is not None
        assert (held.state, verdict.action) == (State.PENDING, Action.WAIT)
        waits.append(held.not_before_s - 100)
        assert run(status(), held, now_s=held.not_before_s).action is Action.SEND
        held = held.step(Event.CHUNK, 100)
    assert waits == [10, 15]
    verdict = run(status(result=Result(Outcome.FAILED, NEW, Code.CHUNK, "x")), held)
    assert verdict.deployment is not None
    assert (verdict.deployment.state, verdict.deployment.blocks) == (State.FAILED, True)


@pytest.mark.parametrize("code", [Code.SIGNATURE, Code.DOWNGRADE, Code.HARDWARE, Code.TOO_LARGE, Code.REFUSED])
def test_what_cannot_get_better_is_given_up_at_once(code: Code) -> None:
    verdict = run(status(result=Result(Outcome.FAILED, NEW, code, "no")), deployment())
    assert states(verdict) == [State.FAILED]


def test_a_firmware_that_never_fits_is_refused_before_it_is_sent() -> None:
    verdict = run(status(hardware="esp32s3"))
    assert states(verdict) == [State.PENDING, State.FAILED]
    assert run(status(capacity=10)).steps[-1][0].code == Code.TOO_LARGE


def test_a_target_that_changes_in_mid_transfer_ends_the_old_one() -> None:
    another = msgspec.structs.replace(TARGET, version="2.1", sha256=OTHER.hex())
    said = status(progress=Progress(PACKAGE, 4))
    verdict = run(said, deployment(), Desired("2.1"), another)
    assert states(verdict) == [State.CANCELLED, State.PENDING]
    assert verdict.action is Action.SEND
    verdict = run(said, deployment(), Desired(), None)
    assert (states(verdict), verdict.action) == ([State.CANCELLED], Action.STOP)
    verdict = run(said, deployment(), Desired("1.0"), msgspec.structs.replace(TARGET, sha256=OLD.hex()))
    assert (states(verdict), verdict.action) == ([State.CANCELLED], Action.STOP)


def test_a_device_on_trial_is_left_alone_whatever_is_wanted() -> None:
    another = msgspec.structs.replace(TARGET, version="2.1", sha256=OTHER.hex())
    verdict = run(status(NEW, trial=True), deployment(State.TRIAL), Desired("2.1"), another)
    assert (verdict.action, states(verdict)) == (Action.WAIT, [])


def test_progress_is_followed() -> None:
    verdict = run(status(progress=Progress(PACKAGE, 4)), deployment(State.NOTIFIED))
    assert verdict.deployment is not None
    assert (verdict.deployment.state, verdict.deployment.chunks_done) == (State.FETCHING, 4)
    verdict = run(status(progress=Progress(PACKAGE, 9, Phase.WRITTEN)), deployment())
    assert (states(verdict), verdict.action) == ([State.WRITTEN], Action.SEND)
    assert states(run(status(), deployment())) == [State.PENDING], "it has lost what it had"


def test_a_closed_window_stops_nothing_that_was_told_and_nobody_else_begins() -> None:
    closed = Desired("2.0", held=Held("window", 500.0))
    for state in (State.NOTIFIED, State.FETCHING, State.WRITTEN):
        progress = Progress(PACKAGE, 3, Phase.WRITTEN if state is State.WRITTEN else Phase.FETCHING)
        assert run(status(progress=progress), deployment(state), closed).action is Action.SEND
    for held in (None, deployment(State.PENDING), deployment(State.FETCHING)):
        failed = Result(Outcome.FAILED, NEW, int(Code.CHUNK), "torn") if held and held.state is State.FETCHING else None
        verdict = run(status(result=failed), held, closed, now_s=100.0)
        assert (verdict.action, verdict.why) in ((Action.WAIT, Why.WINDOW), (Action.WAIT, Why.BACK_OFF))
    assert run(status(), deployment(State.PENDING), Desired("2.0")).action is Action.SEND


def test_hold_defer_and_download_only_wait() -> None:
    assert run(status(), None, Desired("2.0", hold=True, reason="window")).reason == "window"
    assert run(status(defer=Defer("busy", 30))).poll_s == 30
    written = status(progress=Progress(PACKAGE, 9, Phase.WRITTEN))
    assert run(written, deployment(), Desired("2.0", download_only=True)).action is Action.WAIT
    assert run(status(), None, Desired("2.0", download_only=True)).action is Action.SEND


def test_a_wish_that_nobody_published_is_said() -> None:
    verdict = run(status(), None, Desired("9", problem="firmware 9 is not published"), None)
    assert (verdict.action, verdict.reason) == (Action.WAIT, "firmware 9 is not published")


def test_every_state_meets_every_event_as_the_table_says() -> None:
    for state, event in itertools.product(State, Event):
        after = advance(state, event)
        assert (after is not None) == ((state, event) in TABLE)
        if state in FINAL and event not in (Event.LEFT, Event.CONFIRMED):
            assert after is None, f"{state} is final"


def test_no_status_in_any_state_leads_outside_the_table() -> None:
    said = [
        status(digest, trial=trial, progress=progress, result=result, defer=defer)
        for digest in (OLD, NEW, OTHER)
        for trial in (False, True)
        for progress in (None, Progress(PACKAGE, 3), Progress(PACKAGE, 9, Phase.WRITTEN), Progress(b"\0" * 16, 1))
        for result in (None, *(Result(o, NEW, c) for o in Outcome for c in (Code.OK, Code.CHUNK, Code.SIGNATURE)))
        for defer in (None, Defer("x", 5))
    ]
    wants = [(WANT, TARGET), (Desired(), None), (Desired("1.0"), msgspec.structs.replace(TARGET, sha256=OLD.hex()))]
    for held in (None, *(deployment(s, blocks=b) for s in State for b in (False, True))):
        for one, (want, target) in itertools.product(said, wants):
            verdict = run(one, held, want, target)
            before = held.state if held is not None else None
            for after, entry in verdict.steps:
                assert entry.state is after.state
                if entry.event != "created":
                    assert before is not None
                    assert TABLE[(before, Event(entry.event))] is after.state
                before = after.state
            if verdict.action is Action.SEND:
                assert verdict.deployment is not None and not verdict.deployment.final
