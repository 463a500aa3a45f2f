"""What a row of statuses says of the board behind them: how it fares, and whether it is one board at all. Pure."""

from __future__ import annotations

from dfud.model.deployment import TWINS_AFTER, TWINS_S, Actual, Deployment, Health, Program, State, Twins
from dfud.model.kinds import SYSTEM
from dfud.wire.messages import NO_DIGEST, Banks, Status


def health_of(known: Actual | None, status: Status, now_s: float) -> Health | None:
    """Return how often it has started and crashed, over all and since the running image was first seen."""
    said, before = status.starts, known.health if known is not None else None
    if said is None:
        return None
    digest = status.digest.hex()
    fresh = before is None or known is None or known.sha256 != digest or said.number < before.starts
    if fresh or before is None:
        # The start that brought this image is its own; what crashed before was another's.
        return Health(
            starts=said.number,
            crashes=said.crashes,
            starts_before=max(0, said.number - 1),
            crashes_before=said.crashes,
            reset_reason=said.reset,
            text=said.text,
        )
    return Health(
        starts=said.number,
        crashes=said.crashes,
        starts_before=before.starts_before,
        crashes_before=min(before.crashes_before, said.crashes),
        reset_reason=said.reset,
        text=said.text or before.text,
        crashed_s=now_s if said.crashes > before.crashes else before.crashed_s,
    )


def twins_of(known: Actual | None, status: Status, deployment: Deployment | None, now_s: float) -> Twins | None:
    """Return the signs of a second board, this status among them.

    A contradiction: an image runs that ran before the last one, and no update to it was sent, nor did it go back from one; or
    the count of starts, which had fallen, is at once where it was. deployment: the newest, before this status is heard.
    """
    if known is None:
        return None
    deployment = deployment.of(SYSTEM) if deployment is not None else None
    digest, before = status.digest.hex(), known.twins or Twins()
    contradictions, at_s, high, ran = before.contradictions, before.at_s, before.high, before.before
    found = False
    if digest != known.sha256:
        sent = deployment is not None and deployment.sha256 == digest
        sent = sent and deployment is not None and not deployment.final and deployment.state is not State.PENDING
        went_back = deployment is not None and deployment.sha256 == known.sha256
        found = digest == ran and not sent and not went_back
        ran = known.sha256
    if status.starts is not None and known.health is not None:
        last, number = known.health.starts, status.starts.number
        if number < last:
            high = max(high, last)
        elif high and number >= high:
            found = found or number > last + 1
            high = 0
    if found:
        contradictions = contradictions + 1 if abs(now_s - at_s) < TWINS_S else 1
        at_s = now_s
    after = Twins(before=ran, high=high, contradictions=contradictions, at_s=at_s)
    return after if after != Twins() else None


def are_twins(twins: Twins | None, now_s: float) -> bool:
    return twins is not None and twins.contradictions >= TWINS_AFTER and abs(now_s - twins.at_s) < TWINS_S


def newly_twins(before: Actual | None, after: Actual, now_s: float) -> bool:
    return are_twins(after.twins, now_s) and (before is None or not are_twins(before.twins, now_s))


def actual_of(app: str, device: str, status: Status, transport: str, now_s: float) -> Actual:
    """Return what a status says of a device, to be stored."""
    return Actual(
        app=app,
        device=device,
        version=status.version,
        sha256=status.digest.hex(),
        hardware=status.hardware,
        trial=status.trial,
        sequence=status.sequence,
        kinds=status.kinds,
        payload_bytes=status.payload,
        capacity_bytes=status.capacity,
        attributes=status.attributes,
        defer_reason=status.defer.reason if status.defer else "",
        defer_until_s=now_s + status.defer.retry_s if status.defer else 0.0,
        defer_own=status.defer is not None and status.defer.own,
        seen_s=now_s,
        transport=transport,
        manifest=status.manifest,
        program=_program_of(status.app) if status.app is not None else None,
        boot=status.boot,
    )


def _program_of(banks: Banks) -> Program:
    return Program(
        version=banks.version,
        sha256=banks.digest.hex() if banks.digest != NO_DIGEST else "",
        capacity_bytes=banks.capacity,
        trial=banks.trial,
        sequence=banks.accept,
        manifest=banks.manifest,
    )
