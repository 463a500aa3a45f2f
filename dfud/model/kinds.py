"""The two kinds of firmware, system and app, and which of them goes first where a device should get both. Pure.

A range says with which sequences of the other kind an image runs: (lowest, highest), None: with any. What runs without a manifest,
and no app at all, counts as sequence 0.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["system", "app"]
SYSTEM: Kind = "system"
APP: Kind = "app"
KINDS: tuple[Kind, Kind] = (SYSTEM, APP)
Range = tuple[int, int] | None
NAMES = {SYSTEM: "the system firmware", APP: "the app firmware"}


def other_of(kind: Kind) -> Kind:
    return APP if kind == SYSTEM else SYSTEM


def admits(beside: Range, sequence: int) -> bool:
    return beside is None or beside[0] <= sequence <= beside[1]


class Leg(msgspec.Struct, frozen=True):
    """One kind of a device. next_*, version: the image that it would get now; running_*: what it runs."""

    version: str
    next_sequence: int
    next_beside: Range = None
    running_version: str = ""
    running_sequence: int = 0
    running_beside: Range = None


def outside(mine: Leg, other: Leg, kind: Kind) -> str:
    """Say why the next image of a kind cannot run beside what runs of the other kind, or ""."""
    if admits(mine.next_beside, other.running_sequence) or mine.next_beside is None:
        return ""
    runs = other.running_version or "none"
    return (
        f"{mine.version} runs with sequences {mine.next_beside[0]} to {mine.next_beside[1]} of {NAMES[other_of(kind)]}, "
        f"the device runs {runs} with sequence {other.running_sequence}"
    )


def breaks(mine: Leg, other: Leg, kind: Kind) -> str:
    """Say why what runs of the other kind, and stays, could not run beside the next image of a kind, or ""."""
    if admits(other.running_beside, mine.next_sequence) or other.running_beside is None:
        return ""
    return (
        f"{other.running_version}, {NAMES[other_of(kind)]} that runs, takes sequences {other.running_beside[0]} to "
        f"{other.running_beside[1]} of {NAMES[kind]}, {mine.version} has {mine.next_sequence}"
    )


def apart(system: Leg, app: Leg) -> str:
    """Say why two targets do not run together, or ""."""
    for mine, other, kind in ((system, app, SYSTEM), (app, system, APP)):
        if mine.next_beside is not None and not admits(mine.next_beside, other.next_sequence):
            return (
                f"{mine.version} and {other.version} do not run together: {mine.version} takes sequences {mine.next_beside[0]} to "
                f"{mine.next_beside[1]} of {NAMES[other_of(kind)]}, {other.version} has {other.next_sequence}"
            )
    return ""


def first_of(system: Leg, app: Leg) -> tuple[Kind | None, str]:
    """Return which kind goes first where both change, or None and why neither can.

    One whose range admits what runs of the other; of two, one that what runs of the other admits as well; else the system. So a
    pair that runs only together is led there over one start at which the older one is out of its range.
    """
    legs: dict[Kind, tuple[Leg, Leg]] = {SYSTEM: (system, app), APP: (app, system)}
    possible = [kind for kind in KINDS if not outside(*legs[kind], kind)]
    if not possible:
        return None, f"neither can go first: {outside(system, app, SYSTEM)}; {outside(app, system, APP)}"
    smooth = [kind for kind in possible if not breaks(*legs[kind], kind)]
    return (smooth or possible)[0], ""
