"""Why a device runs what it runs, in sentences: what decide() would answer to its last status, said for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dfud.api import Actual, Deployment, Desired, DeviceView, Firmware, State
from dfud.controller.config import ControllerConfig
from dfud.controller.decide import Why, decide
from dfud.controller.observe import are_twins
from dfud.controller.refusals import Refused
from dfud.controller.turn import TODO, Turn
from dfud.model.deployment import Program
from dfud.model.kinds import SYSTEM
from dfud.model.quickest import choice_json, sentence_of
from dfud.model.times import time_of
from dfud.wire.manifest import renewal_due
from dfud.wire.messages import NO_DIGEST, Banks, Code, Defer, Phase, Progress, Status

NEVER_SEEN = "never-seen"
SILENT = "silent"
REFUSED = "refused"
# Two polls may be lost before a device is silent.
SILENT_POLLS = 3
SLOT_UNKNOWN = (1 << 32) - 1
DFU1 = "dfu/1"


class Explanation(msgspec.Struct, frozen=True):
    """code: stable, for programs; sentences: for people, the first the most important; todo: what a user can do, or "".

    values: what the sentences are made of, by name.
    """

    code: str
    sentences: list[str]
    todo: str
    values: dict[str, Any]


def explain(
    view: DeviceView,
    desired: Desired,
    target: Firmware | None,
    policy: ControllerConfig,
    now_s: float,
    *,
    turns: Sequence[Turn] = (),
    published: bool = True,
    refused: Refused | None = None,
) -> Explanation:
    """Explain a device. published: whether what it runs is a firmware of the app; turns: of rollouts that have not come to it;
    refused: how often its credentials were.

    The answer is that of the next status if it says what the last one said. Changes nothing.
    """
    actual, deployment = view.actual, view.deployment
    values: dict[str, Any] = {"wanted": desired.version, "by": desired.origin}
    if desired.other is not None:
        values["other"] = {"wanted": desired.other.version, "by": desired.other.origin, "kind": desired.other.kind}
    said = _wanted(desired)
    if turns:
        values["turns"] = [{"code": turn.code, **turn.values} for turn in turns]
    if actual is None:
        sentence = "It has never reported, so nobody knows what it runs."
        code, said, todo = NEVER_SEEN, [sentence, *said], "Check its credentials, its power and its network."
        if refused is not None:
            code, todo = _denied(refused, said, values)
        return Explanation(code, [*said, *(turn.sentence for turn in turns)], todo, values)
    values |= {"running": actual.version, "seen": time_of(actual.seen_s)}
    verdict = decide(
        app=actual.app,
        device=actual.device,
        status=status_of_actual(actual, deployment, target, now_s),
        deployment=deployment,
        desired=desired,
        target=target,
        policy=policy,
        now_s=now_s,
        heard=True,
        twins=are_twins(actual.twins, now_s),
    )
    sentence, todo = SENTENCES[verdict.why](_Case(view, desired, target, verdict.reason, now_s, values))
    stranger = "" if published else ", an image that nobody published here"
    program = actual.program
    app = "" if program is None else f" with app {program.version}" if program.version else " without an app"
    if program is not None:
        values["app"] = program.version
    runs = f"It runs {actual.version}{stranger}{app}, as it said at {time_of(actual.seen_s)}."
    step = _step(verdict.deployment, desired, target, values)
    said = [sentence, *step, *_package(verdict.deployment, target, values), runs, *said]
    seen = actual.of(target.of_kind) if target is not None else None
    said += _renewal(seen, target) if seen is not None else []
    silent_s = now_s - actual.seen_s
    code = verdict.why.value
    if silent_s > policy.seen_s + SILENT_POLLS * policy.poll_s and verdict.why is not Why.IN_SYNC:
        code = SILENT
        values["silentS"] = int(silent_s)
        said.insert(0, f"It was not heard of since {time_of(actual.seen_s)}.")
        todo = "Check its power and its network."
    if refused is not None and refused.last_s > actual.seen_s:
        if code == SILENT:
            code, todo = _denied(refused, said, values)
        else:
            _denied(refused, said, values, at=len(said))
    said += [turn.sentence for turn in turns]
    if not todo and turns:
        todo = TODO.get(turns[0].code, "").format(**turns[0].values)
    return Explanation(code, said, todo, values)


def _denied(refused: Refused, said: list[str], values: dict[str, Any], *, at: int = 0) -> tuple[str, str]:
    """Say at place `at` of `said` that somebody with the device's name was turned away; return code and todo for when that is all."""
    times = f"{refused.times} times" if refused.times > 1 else "once"
    values["refused"] = {"times": refused.times, "since": time_of(refused.since_s), "reason": refused.reason}
    last = f", the last time at {time_of(refused.last_s)}" if refused.times > 1 else ""
    said.insert(at, f"Its credentials were refused {times} since {time_of(refused.since_s)} ({refused.reason}){last}.")
    return REFUSED, DENIED_TODO.get(refused.reason, "Give it credentials that are right: docs/security.md.")


DENIED_TODO = {
    "password": "Give it the secret that is stored, or a new one.",
    "disabled": "Enable it: core.disabled in the spec of the device or its app.",
    "certificate": "Give it a certificate of one of the app's trust anchors that is valid now.",
    "gateway": "Name the gateway in the device's spec.gatewaySelector.",
    "limit": "Too many wrong ones came in this minute; look for who sends them.",
}


class _Case(msgspec.Struct):
    view: DeviceView
    desired: Desired
    target: Firmware | None
    reason: str
    now_s: float
    values: dict[str, Any]

    @property
    def deployment(self) -> Deployment | None:
        """The newest of the kind that this is about."""
        newest = self.view.deployment
        return newest.of(self.desired.kind) if newest is not None else None

    @property
    def wanted(self) -> str:
        return self.desired.version


def _wanted(desired: Desired) -> list[str]:
    """Say what it should run, and who says so: of each kind that anybody asks for."""
    both = [d for d in (desired, desired.other) if d is not None and d.version]
    if not both:
        return ["Nothing says what it should run."]
    who = {"device": "its own spec.firmware", "app": "the app's spec.firmware"}
    said = [f"It should run {_named(d)}: {who.get(d.origin, d.origin)} says so." for d in both]
    if len(both) == 2 and both[0].origin == both[1].origin:
        names = " with ".join(_named(d) for d in sorted(both, key=lambda d: d.kind, reverse=True))
        said = [f"It should run {names}: {who.get(desired.origin, desired.origin)} says so."]
    return said


def _named(desired: Desired) -> str:
    return desired.version if desired.kind == SYSTEM else f"app {desired.version}"


def _renewal(actual: Actual, target: Firmware | None) -> list[str]:
    """Say that only the manifest is new, where it is so."""
    if target is None or actual.sha256 != target.sha256:
        return []
    if not renewal_due(target.manifest, target.sequence, actual.manifest):
        return []
    return [
        f"It runs the image already, under the manifest with sequence {actual.manifest}; it gets it again under the one with "
        f"sequence {target.sequence}, for that one has a floor or changes keys."
    ]


def _step(
    deployment: Deployment | None, desired: Desired, target: Firmware | None, values: dict[str, Any]
) -> list[str]:
    """Say which step of several it is on."""
    route = deployment.route if deployment is not None and not deployment.final else None
    if route is None or deployment is None or target is None or deployment.sha256 != target.sha256:
        return []
    values |= {"step": route.step, "steps": route.steps, "next": deployment.version}
    return [
        f"That is step {route.step} of {route.steps}: {deployment.version}; {desired.version} cannot follow directly."
    ]


def _package(deployment: Deployment | None, target: Firmware | None, values: dict[str, Any]) -> list[str]:
    """Say why it is sent the package that it is, where there was a choice."""
    choice = deployment.choice if deployment is not None and not deployment.final else None
    if choice is None or deployment is None or choice.package != deployment.package or target is None:
        return []
    if deployment.sha256 != target.sha256 or choice.why == "only":
        return []
    values["package"] = choice_json(choice)
    return [sentence_of(choice)]


def status_of_actual(actual: Actual, deployment: Deployment | None, target: Firmware | None, now_s: float) -> Status:
    """Return the status that the device would send if nothing had changed since the last one.

    Devices of other dialects do not say what fits them: they count as made for what they should run.
    """
    native = actual.dialect == DFU1
    progress = None
    if deployment is not None and deployment.state in (State.FETCHING, State.WRITTEN) and deployment.package:
        phase = Phase.WRITTEN if deployment.state is State.WRITTEN else Phase.FETCHING
        progress = Progress(bytes.fromhex(deployment.package), deployment.chunks_done, phase)
    defer = None
    if actual.defer_until_s > now_s:
        defer = Defer(actual.defer_reason, int(actual.defer_until_s - now_s) + 1, actual.defer_own)
    return Status(
        version=actual.version,
        digest=bytes.fromhex(actual.sha256),
        hardware=actual.hardware if native or target is None or target.more else target.hardware,
        kinds=actual.kinds,
        payload=actual.payload_bytes,
        capacity=actual.capacity_bytes if native else SLOT_UNKNOWN,
        trial=actual.trial,
        sequence=actual.sequence,
        attributes=actual.attributes,
        progress=progress,
        defer=defer,
        manifest=actual.manifest,
        app=_banks_of(actual.program) if actual.program is not None else None,
    )


def _banks_of(program: Program) -> Banks:
    return Banks(
        version=program.version,
        digest=bytes.fromhex(program.sha256) or NO_DIGEST,
        capacity=program.capacity_bytes,
        trial=program.trial,
        accept=program.sequence,
        manifest=program.manifest,
    )


def _sent(case: _Case) -> tuple[str, str]:
    d = case.deployment
    if d is None or d.final or case.target is None or d.sha256 != case.target.sha256:
        step = f" (first to {case.target.version})" if case.target is not None and case.desired.steps > 1 else ""
        return f"It will be told to update to {case.wanted}{step} when it asks next.", ""
    case.values |= {"state": str(d.state), "chunks": d.chunks_done, "of": d.chunks_total, "attempts": d.attempts}
    if d.problem:
        case.values["problem"] = d.problem
        return f"Its package cannot be made: {d.problem}.", "Mend that; it is tried again by itself."
    if d.state is State.PENDING:
        return (
            f"Its update to {case.wanted} is decided, and its package is being made or waits for the device to ask.",
            "",
        )
    unit = "bytes" if d.package == d.sha256[:32] else "chunks"  # to other dialects the image itself is sent
    share = f"{d.chunks_done} of {d.chunks_total} {unit}" if d.chunks_total else "not begun"
    return f"It is being updated to {case.wanted}: {d.state}, {share}, last moved at {time_of(d.updated_s)}.", ""


def _all_of(desired: Desired) -> str:
    both = [d for d in (desired, desired.other) if d is not None and d.version]
    return " with ".join(_named(d) for d in sorted(both, key=lambda d: d.kind, reverse=True))


def _last_line(text: str) -> str:
    """Return what a device said in one line: of a traceback the exception. Its status has all of it."""
    lines = text.strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else ""


def _left(case: _Case) -> tuple[str, str]:
    d = case.deployment
    assert d is not None
    case.values |= {"state": str(d.state), "code": d.code, "at": time_of(d.updated_s), "crashes": d.crashes}
    why = f" and said: {_last_line(d.text)}" if d.text else ""
    how = {
        State.ROLLED_BACK: "ran it and went back",
        State.FAILED: "could not be brought to it",
        State.CANCELLED: "had it cancelled",
    }.get(d.state, "left it")
    todo = f"Publish a mended version, or let it try again: dfuctl retry {d.device}."
    if d.code == Code.DOWNGRADE:
        todo = "Publish it again with a higher sequence (--sequence), or signed with --allow-downgrade."
    return f"{d.version} is not sent again: at {time_of(d.updated_s)} the device {how}{why}.", todo


def _held(text: str) -> Callable[[_Case], tuple[str, str]]:
    def said(case: _Case) -> tuple[str, str]:
        held = case.desired.held
        until = ""
        if held is not None and held.until_s:
            case.values["until"] = time_of(held.until_s)
            until = f" Next at {time_of(held.until_s)}."
        return f"{text}{until}", ""

    return said


def _back_off(case: _Case) -> tuple[str, str]:
    d = case.deployment
    assert d is not None
    case.values |= {"until": time_of(d.not_before_s), "attempts": d.attempts, "code": d.code}
    why = f" ({_last_line(d.text)})" if d.text else ""
    sentence = f"Attempt {d.attempts} came to nothing{why}; the next one is at {time_of(d.not_before_s)}."
    return sentence, f"To try at once: dfuctl retry {d.device}."


def _deferred(case: _Case) -> tuple[str, str]:
    actual = case.view.actual
    assert actual is not None
    case.values |= {"deferred": actual.defer_reason, "until": time_of(actual.defer_until_s)}
    why = f": {actual.defer_reason}" if actual.defer_reason else ""
    return f"The device puts it off until {time_of(actual.defer_until_s)}{why}.", "Its application decides that."


def _fixed(text: str, todo: str = "") -> Callable[[_Case], tuple[str, str]]:
    return lambda case: (
        text.format(wanted=case.wanted, reason=case.reason.rstrip(".")),
        todo.format(wanted=case.wanted),
    )


SENTENCES: dict[Why, Callable[[_Case], tuple[str, str]]] = {
    Why.IN_SYNC: lambda case: (f"It runs what it should, {_all_of(case.desired)}.", ""),
    Why.TRIAL: _fixed("It runs its image on trial and has not confirmed it yet.", "Its application calls confirm()."),
    Why.NOTHING_WANTED: lambda case: (
        "Nothing is wanted of it.",
        f"Say what it should run: dfuctl update {case.view.device.name} VERSION.",
    ),
    Why.BAD_SPEC: _fixed(
        "What it should run cannot be followed: {reason}.", "Correct the spec, or publish that version."
    ),
    Why.BARRED: _fixed("{wanted} may not be sent to it: {reason}."),
    Why.RECALLED: _fixed(
        "{wanted} is not sent to anybody: {reason}.",
        "Want another version, or take the recall back: dfuctl firmware unrecall {wanted}.",
    ),
    Why.NO_PATH: _fixed(
        "{wanted} is not sent to it: {reason}.",
        "Publish a version between them, or widen what {wanted} takes: dfuctl firmware ways {wanted}.",
    ),
    Why.RANGE: _fixed(
        "{wanted} is not sent to it: {reason}.",
        "Want versions that run together, or publish one that says a wider range (dfuctl sign --with).",
    ),
    Why.NO_BANKS: _fixed(
        "{wanted} is not sent to it: {reason}.", "Give it a flash layout with app banks: docs/board.md."
    ),
    Why.LEFT: _left,
    Why.WINDOW: _held("It waits for its maintenance window."),
    Why.RATE: _held("It waits for its turn: the rollout tells only so many a minute."),
    Why.CEILING: _held("It waits for its turn: the rollout updates only so many at one time."),
    Why.HARDWARE: _fixed("It cannot run {wanted}: {reason}.", "Want a version that is for its hardware."),
    Why.TOO_LARGE: _fixed(
        "It cannot take {wanted}: {reason}.", "Publish a smaller image, or give the device larger slots."
    ),
    Why.TWIN_ON_TRIAL: _fixed(
        "Two boards use this identity, and the other one is on trial.", "Give each board its own."
    ),
    Why.HOLD: _fixed("Its update to {wanted} is on hold: {reason}.", "Remove hold from spec.firmware."),
    Why.DEFERRED: _deferred,
    Why.BACK_OFF: _back_off,
    Why.DOWNLOAD_ONLY: _fixed(
        "It has written {wanted} and does not switch to it, as was asked for.",
        "Remove downloadOnly from spec.firmware.",
    ),
    Why.SENT: _sent,
}
