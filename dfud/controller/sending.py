"""Which package a device gets, and what sending it, or the image itself, does to its deployment. No I/O."""

from __future__ import annotations

import hashlib
from bisect import bisect_right

import msgspec

from dfud.api import Deployment, Desired, Firmware, State
from dfud.controller.config import ControllerConfig
from dfud.controller.decide import FULL_AFTER, Action, Verdict, entry_of
from dfud.controller.hear import wait_s
from dfud.model.deployment import Event
from dfud.model.quickest import ASSUMED, Choice, Pace
from dfud.package.file import PackageFile
from dfud.wire.messages import Command, Kind, Status, Type

KINDS = 1 << Kind.FULL | 1 << Kind.DELTA | 1 << Kind.MAPPED
# Payloads that packages are made for; another one is rounded down, so that devices share packages and one that states
# many sizes makes few.
PAYLOADS = (512, 768, 1024, 1536, 2048, 3072, 4096, 4112, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536)

REPEATS_QUICK = 20  # commands without a sign that one arrived, before the device is asked to wait between them


class Order(msgspec.Struct, frozen=True):
    """A package that is to be made or found: what it is made of. held: the one that the device is fetching already, or "".

    pace: how the device fetches and decodes. It chooses among what was made, and has no part in what is made.
    """

    target: Firmware
    base: Firmware | None
    kinds: int
    payload: int
    held: str = ""
    pace: Pace = ASSUMED


def order_of(
    status: Status, deployment: Deployment, target: Firmware, base: Firmware | None, pace: Pace = ASSUMED
) -> Order:
    """Return the package for a device; one that has begun goes on with its own."""
    kinds = status.kinds & KINDS
    if deployment.attempts and deployment.code in FULL_AFTER:
        kinds &= 1 << Kind.FULL
    if not kinds & ~(1 << Kind.FULL):
        base = None
    if base is None:
        kinds &= 1 << Kind.FULL
    progress = status.progress
    held = deployment.package if progress is not None and progress.package.hex() == deployment.package else ""
    payload = PAYLOADS[max(0, bisect_right(PAYLOADS, status.payload) - 1)]
    return Order(target, base, kinds, payload, held, pace)


def sent(
    verdict: Verdict,
    target: Firmware,
    package: PackageFile,
    policy: ControllerConfig,
    now_s: float,
    choice: Choice | None = None,
) -> None:
    """Note in `verdict` that the command with this package goes out. One that nothing comes of goes out less and less often.

    choice: why this one, None: nobody has chosen it now.
    """
    before = verdict.deployment
    assert before is not None
    name = package.id.hex()
    repeats = before.repeats + 1
    more = repeats - REPEATS_QUICK
    later_s = now_s + wait_s(policy.retry_s, policy.retry_max_s, more) if more > 0 else before.not_before_s
    after = before.step(
        Event.SENT,
        now_s,
        package=name,
        chunks_total=len(package.chunks),
        bytes_total=package.total_bytes,
        chunks_done=before.chunks_done if before.package == name else 0,
        served=before.served if before.package == name else 0,
        repeats=repeats,
        not_before_s=later_s,
        problem="",
        manifest=hashlib.sha256(target.manifest).hexdigest(),
        choice=before.choice if before.package == name else choice,
    )
    if before.state is State.WRITTEN and before.package == name:
        after = msgspec.structs.replace(after, state=State.WRITTEN)
    if after.state is not before.state or before.package != name:
        verdict.steps.append((after, entry_of(after, Event.SENT)))
    verdict.deployment = after


def offered(verdict: Verdict, target: Firmware, offset: int | None, now_s: float) -> None:
    """Note in `verdict` that blocks of the image itself go out: no package, progress in bytes. Where all are there, the device is
    told to boot it: `repeats` counts that.
    """
    before = verdict.deployment
    assert before is not None
    after = before.step(
        Event.SENT,
        now_s,
        package=target.sha256[:32],
        chunks_total=target.size_bytes,
        bytes_total=target.size_bytes,
        problem="",
    )
    if before.state is State.WRITTEN:
        after = msgspec.structs.replace(after, state=State.WRITTEN, repeats=before.repeats + 1)
    elif offset:
        after = after.step(Event.CHUNK, now_s, chunks_done=min(offset, target.size_bytes))
    if after.state is not before.state:
        verdict.steps.append((after, entry_of(after, Event.SENT)))
    verdict.deployment = after


def command_of(verdict: Verdict, target: Firmware | None, desired: Desired, package: PackageFile | None) -> Command:
    if verdict.action is Action.SEND and package is not None and target is not None:
        return Command(
            Type.UPDATE,
            version=target.version,
            manifest=target.manifest,
            package=package.id,
            kind=package.kind,
            size=target.size_bytes,
            chunks=len(package.chunks),
            total_bytes=package.total_bytes,
            base=package.base_sha256 or b"",
        )
    if verdict.action is Action.SYNC:
        return Command(Type.SYNC, verdict.poll_s, desired.version)
    kind = Type.STOP if verdict.action is Action.STOP else Type.WAIT
    return Command(kind, verdict.poll_s, reason=verdict.reason[:200])
