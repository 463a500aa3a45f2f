"""How a device gets from what it runs to what it should run, where not every version may follow every other. Pure.

Versions are compared by the sequence of the image that the device would be given, never by their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from dfud.model.deployment import Actual
from dfud.model.firmware import Firmware


class Ladder:
    """The versions of an app. `free`: none of them says anything of the ways to it, so each is reached directly.

    asked: the attributes of a device by which any image of them is chosen; others change nothing of what it is sent.
    """

    def __init__(self, firmwares: Iterable[Firmware]) -> None:
        self.firmwares = tuple(firmwares)
        self.free = not any(firmware.stop or firmware.requires is not None for firmware in self.firmwares)
        self.asked = frozenset(
            key for firmware in self.firmwares for image in firmware.images for key in image.attributes
        )

    def of(self, hardware: str, attributes: Mapping[str, str]) -> list[Firmware]:
        """Return the versions that have an image for such a device, each with that image alone."""
        found = (firmware.of(hardware, attributes) for firmware in self.firmwares)
        return [firmware for firmware in found if firmware is not None]


def image_for(record: Firmware, actual: Actual | None) -> Firmware:
    """Return the record of a version as it is for a device: with its image alone; whole if there is none for it.

    What it runs stays its image while that is for it. Of a device that has said nothing, or says no hardware, only the one image
    of a version without conditions can be meant.
    """
    if actual is None or not actual.hardware:
        return record
    if record.more and (runs := record.of_digest(actual.sha256)) is not None:
        if runs.first_fits(actual.hardware, actual.attributes):
            return runs
    return record.of(actual.hardware, actual.attributes) or record


def started_from(running: Firmware | None, actual: Actual) -> int:
    """Return the sequence of what a device runs; of an image that nobody published, the one that the device accepts."""
    return running.sequence if running is not None else actual.sequence


def way(start: int, target: Firmware, others: Sequence[Firmware]) -> list[Firmware] | None:
    """Return the versions to install one after the other, the last of them `target`; None if no way leads to it.

    start: the sequence of what runs. others: versions that have an image for the device (Ladder.of). The fewest steps; of equally
    many, the highest versions. Backwards there are no steps between: what runs has to be within `target`'s range.
    """
    if target.sequence <= start:
        return [target] if _admits(target, start) else None
    between = [f for f in others if start < f.sequence < target.sequence]
    stops = sorted(f.sequence for f in between if f.stop)
    nodes = sorted((f for f in between if f.recalled is None), key=lambda f: f.sequence)
    reached: list[_Reached] = [_Reached(None, start, 0, None)]
    for firmware in [*nodes, target]:
        best: _Reached | None = None
        for before in reached:
            if _skips(stops, before.sequence, firmware.sequence) or not _admits(firmware, before.sequence):
                continue
            if best is None or before.steps <= best.steps:
                best = before
        if best is not None:
            reached.append(_Reached(firmware, firmware.sequence, best.steps + 1, best))
    last: _Reached | None = reached[-1]
    if last is None or last.firmware is not target:
        return None
    found: list[Firmware] = []
    while last is not None and last.firmware is not None:
        found.append(last.firmware)
        last = last.before
    return found[::-1]


class _Reached(msgspec.Struct):
    """A version that can be reached, in so many steps, from the one before."""

    firmware: Firmware | None
    sequence: int
    steps: int
    before: _Reached | None


def _admits(firmware: Firmware, sequence: int) -> bool:
    return firmware.requires is None or firmware.requires.admits(sequence)


def _skips(stops: Sequence[int], low: int, high: int) -> bool:
    return any(low < stop < high for stop in stops)


def no_way(start: int, target: Firmware, others: Sequence[Firmware]) -> str:
    """Say why no way leads to a version."""
    recalled = [f for f in others if start < f.sequence < target.sequence and f.stop and f.recalled is not None]
    if recalled:
        return f"no way leads to {target.version}: {recalled[0].version}, which may not be skipped, is recalled"
    if target.requires is not None:
        needs = f"it takes sequences {target.requires.low} to {target.requires.high}"
        return (
            f"no way leads to {target.version}: {needs}, the device runs sequence {start}, and no version leads there"
        )
    return f"no way leads from sequence {start} to {target.version}: a version between them takes neither"
